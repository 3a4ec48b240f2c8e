"""Sessions: their requests, replies and descriptions, and the rules for names of sessions and checkpoints."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixserve_client.errors import InvalidRequest

HELD_LIMIT = 1000  # sessions in one request
LEAST_TTL_S = 0.2  # clients renew leases at most every 0.1 s
HOLDER_LIMIT = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_LEASE = re.compile(r"[0-9a-f]{32}")


class HeldSession(NamedTuple):
    """A session, and the lease of the client that holds it."""

    mixture: str
    name: str
    lease: str


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request to hold the session of that name: to resume it, or to start it."""

    mixture: str
    name: str
    lease: str
    holder: str = ""
    fresh: bool = False
    take_over: bool = False
    strict: bool = True
    expected_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """The position of a session when it was opened, and for how many seconds the lease holds without renewal."""

    ttl_s: float
    sequence: int
    index: int
    epoch: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """A session on a server: its holder (empty for none), position and checkpoints.

    `idle_s`: seconds since its last call or renewal. `damaged`: what is wrong with its journal, if anything.
    `saved_only`: whether only its checkpoints are left.
    """

    mixture: str
    name: str
    holder: str
    idle_s: float
    index: int
    epoch: int
    checkpoints: tuple[str, ...]
    damaged: str = ""
    saved_only: bool = False


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One operation on a session.

    With `sequence` 0 it does not move the session; without a lease it is open to every client.
    """

    mixture: str
    name: str
    operation: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    lease: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class CallReply:
    """The result of an operation, and the session's position after it."""

    value: Any
    ended: bool
    index: int
    epoch: int


def is_name(name: Any) -> bool:
    """Whether `name` is a valid name of sessions and checkpoints."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_lease(lease: Any) -> bool:
    """Whether `lease` has the form of a lease."""
    return isinstance(lease, str) and _LEASE.fullmatch(lease) is not None


def check_name(kind: str, name: Any) -> str:
    """`name` itself; it becomes a file name on the server.

    Raises InvalidRequest unless it is a valid name of sessions and checkpoints.
    """
    if not is_name(name):
        shown = f"{name!r:.60}…" if isinstance(name, str) and len(name) > 60 else f"{name!r:.100}"
        raise InvalidRequest(
            f"the name of a {kind} must be 1 to 128 ASCII letters, digits, '.', '_' or '-', and begin with a letter or "
            f"a digit; got {shown}"
        )
    return name
