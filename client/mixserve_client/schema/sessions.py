"""Sessions: how they and their checkpoints may be named, and what is asked and told of them."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixserve_client.errors import InvalidRequest

HELD_LIMIT = 1000  # sessions in one request
LEAST_TTL_S = 0.2  # clients renew leases every tenth of a second at most
HOLDER_LIMIT = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_LEASE = re.compile(r"[0-9a-f]{32}")


class HeldSession(NamedTuple):
    """A session and the lease under which somebody holds it."""

    mixture: str
    name: str
    lease: str


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Hold the session of that name: go on with it, or begin it."""

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
    """Where a session stood when it was opened, and for how long it is held."""

    ttl_s: float
    sequence: int
    index: int
    epoch: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """A session that a server knows: who holds it (empty for nobody), where it stands, its checkpoints, and what is
    wrong with its journal, and whether nothing but its checkpoints is left."""

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
    """One operation on a session; without a number it does not move it, without a lease anybody may ask for it."""

    mixture: str
    name: str
    operation: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    lease: str = ""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class CallReply:
    """What an operation gave, and where the session stands now."""

    value: Any
    ended: bool
    index: int
    epoch: int


def is_name(name: Any) -> bool:
    """Whether sessions and checkpoints may be called so."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def is_lease(lease: Any) -> bool:
    """Whether somebody may hold a session under it."""
    return isinstance(lease, str) and _LEASE.fullmatch(lease) is not None


def check_name(kind: str, name: Any) -> str:
    """`name` itself, where sessions and checkpoints may be called so: it becomes the name of a file on the server.

    Raises InvalidRequest.
    """
    if not is_name(name):
        shown = f"{name!r:.60}…" if isinstance(name, str) and len(name) > 60 else f"{name!r:.100}"
        raise InvalidRequest(
            f"the name of a {kind} must be 1 to 128 letters of ASCII, digits, '.', '_' and '-', of which the first is "
            f"a letter or a digit; got {shown}"
        )
    return name
