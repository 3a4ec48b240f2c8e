"""How many servers have asked for the records that this thread reads, one for the next."""

from contextvars import ContextVar, Token

_hops: ContextVar[int] = ContextVar("mixserve_hops", default=0)


def current_hops() -> int:
    """0 if the records are for a client."""
    return _hops.get()


class passing_on:  # noqa: N801  # it is used like a function
    """In the block, this thread reads records that `hops` servers have asked for."""

    __slots__ = ("_hops", "_outer")

    def __init__(self, hops: int):
        self._hops = hops
        self._outer: Token[int] | None = None

    def __enter__(self) -> None:
        self._outer = _hops.set(self._hops)

    def __exit__(self, *exception: object) -> None:
        assert self._outer is not None
        _hops.reset(self._outer)
