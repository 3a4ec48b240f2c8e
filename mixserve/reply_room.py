"""Room for the reply that a thread is about to make: taken before the reply takes memory."""

from collections.abc import Callable
from contextvars import ContextVar, Token

# Counts a reply of so many bytes. Raises Overloaded if there is no room for it.
Reserve = Callable[[int], None]


def reserve_room(size: int) -> None:
    """Take room for `size` bytes of the reply to the current call. Raises Overloaded. Does nothing in process."""
    reserve = _current.get()
    if reserve is not None:
        reserve(size)


class reserving_with:  # noqa: N801  # it is used like a function
    """In the block, this thread takes room for replies by `reserve`."""

    __slots__ = ("_reserve", "_token")

    def __init__(self, reserve: Reserve):
        self._reserve = reserve
        self._token: Token[Reserve | None] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self._reserve)

    def __exit__(self, *exception: object) -> None:
        assert self._token is not None
        _current.reset(self._token)


_current: ContextVar[Reserve | None] = ContextVar("mixserve_reserve", default=None)
