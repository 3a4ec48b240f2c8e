"""Who calls, and what they may do."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mixserve.access.call import Call
from mixserve_client.errors import PermissionDenied
from mixserve_client.schema.text import show


class Role(IntEnum):
    """What a caller may do: each role may do what the roles before it may."""

    READER = 1  # MixService
    TRAINER = 2  # and StateService
    ADMIN = 3  # and everything else

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller by the name of its token. `mixtures` are those that it may use; None for all."""

    name: str
    role: Role
    mixtures: frozenset[str] | None = None

    def may_use(self, mixture: str) -> bool:
        """Whether the identity may use the mixture of that name."""
        return self.mixtures is None or mixture in self.mixtures


# The caller of a server without tokens, and of one in this process.
EVERYBODY = Identity("everybody", Role.ADMIN)


def _always() -> bool:
    return True


class Caller(NamedTuple):
    """An identity, the function that says from where it calls, the role that its call needs, the function that says
    whether it still waits for the reply, and the call; only the thread that answers the call may ask."""

    identity: Identity
    peer: Callable[[], str]
    needed: Role
    is_wanted: Callable[[], bool] = _always
    call: Call | None = None  # None in process, where nobody else could tell the calls of many threads apart


_IN_PROCESS = Caller(EVERYBODY, lambda: "", Role.READER)
_current: ContextVar[Caller] = ContextVar("mixserve_caller", default=_IN_PROCESS)


def current_caller() -> Caller:
    """The caller that this thread answers."""
    return _current.get()


class acting_as:  # noqa: N801  # it is used like a function
    """In the block, this thread answers a call of `identity` that needs the role `needed`."""

    # A class, because there is one of these around every reply of a stream.
    __slots__ = ("_caller", "_outer")

    def __init__(
        self,
        identity: Identity,
        peer: Callable[[], str] = lambda: "",
        needed: Role = Role.READER,
        is_wanted: Callable[[], bool] = _always,
        call: Call | None = None,
    ):
        self._caller = Caller(identity, peer, needed, is_wanted, call)
        self._outer: Token[Caller] | None = None

    def __enter__(self) -> None:
        self._outer = _current.set(self._caller)

    def __exit__(self, *exception: object) -> None:
        assert self._outer is not None
        _current.reset(self._outer)


def usable(mixtures: Iterable[str]) -> list[str]:
    """Those of `mixtures` that the current caller may use, in the same order."""
    identity = _current.get().identity
    return [mixture for mixture in mixtures if identity.may_use(mixture)]


def check_mixture(mixture: str) -> None:
    """Raises PermissionDenied if the current caller may not use the mixture, whether or not there is one."""
    caller = _current.get()
    if not caller.identity.may_use(mixture):
        raise PermissionDenied(
            f"this token is not for the mixture {show(mixture, 100)}: use one of the role {caller.needed} whose "
            "mixtures have that name, or that has no list of mixtures"
        )


def check_role(identity: Identity, needed: Role, method: str) -> None:
    """Raises PermissionDenied if the role of `identity` is not enough for a method."""
    if identity.role < needed:
        raise PermissionDenied(
            f"{method.rpartition('/')[2]} needs a token of the role {needed}"
            f"{'' if needed == Role.ADMIN else ' or above'}, and this one has the role {identity.role}"
        )
