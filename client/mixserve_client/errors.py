"""Everything that mixserve raises for a request, on the server, in process and in the client.

MixserveError
├── InvalidRequest       (ValueError)    INVALID_ARGUMENT     the request is wrong; sending it again will not help
├── OutOfRange           (ValueError)    OUT_OF_RANGE         the positions asked for do not exist
├── UnknownMixture       (LookupError)   NOT_FOUND            the server holds no mixture of that name
├── UnknownSchedule      (LookupError)   NOT_FOUND            the server was not told this schedule; clients tell it
├── UnknownSession       (LookupError)   NOT_FOUND            the server knows no session of that name
├── UnknownCheckpoint    (LookupError)   NOT_FOUND            the session has no checkpoint of that name
├── SessionTaken                         ABORTED              somebody else holds the session
├── FingerprintMismatch                  FAILED_PRECONDITION  the mixture is not the one that was expected
├── Unauthenticated                      UNAUTHENTICATED      the server wants credentials
├── PermissionDenied                     PERMISSION_DENIED    these credentials do not allow the call
├── Overloaded                           RESOURCE_EXHAUSTED   clients try again after `retry_after_s`
├── Unavailable          (ConnectionError) UNAVAILABLE        no server answers, or it is starting or draining
├── DeadlineExceeded     (TimeoutError)  DEADLINE_EXCEEDED    `timeout_s` ran out
├── CorruptReply                         DATA_LOSS            the reply is not what the protocol allows
├── CorruptCheckpoint                    DATA_LOSS            a file of a session on the server is damaged
├── StorageFailed                        RESOURCE_EXHAUSTED   the server cannot write what it must keep
└── ServerFault                          INTERNAL             a bug in the server; its log holds the id in the message

A class is recognised across the wire by its name, and where the name is missing by its gRPC code.
"""

import math
from typing import ClassVar


class MixserveError(Exception):
    """Base of all errors of mixserve; `code` is the name of the gRPC status code that carries it."""

    code: ClassVar[str] = "UNKNOWN"


class InvalidRequest(MixserveError, ValueError):
    """The request is wrong in itself."""

    code = "INVALID_ARGUMENT"


class OutOfRange(MixserveError, ValueError):
    """The request asks for positions that do not exist."""

    code = "OUT_OF_RANGE"


class UnknownMixture(MixserveError, LookupError):
    """The server holds no mixture of that name."""

    code = "NOT_FOUND"


class UnknownSchedule(MixserveError, LookupError):
    """The server does not know the schedule that the request names; it can be told at any time."""

    code = "NOT_FOUND"


class UnknownSession(MixserveError, LookupError):
    """The server knows no session of that name."""

    code = "NOT_FOUND"


class UnknownCheckpoint(MixserveError, LookupError):
    """The session has no checkpoint of that name."""

    code = "NOT_FOUND"


class SessionTaken(MixserveError):
    """Somebody else holds the session; whoever gets this no longer moves it."""

    code = "ABORTED"


class FingerprintMismatch(MixserveError):
    """The mixture is not the one that the caller expects, so its batches would be others."""

    code = "FAILED_PRECONDITION"


class Unauthenticated(MixserveError):
    """The server wants credentials and got none that it knows."""

    code = "UNAUTHENTICATED"


class PermissionDenied(MixserveError):
    """The credentials are known and do not allow this call."""

    code = "PERMISSION_DENIED"


class Overloaded(MixserveError):
    """The server has more work than it takes on; ask again after `retry_after_s` seconds.

    Clients do so by themselves until their patience ends. It is infinite where no server of ours has said so: a limit
    of gRPC or of a proxy may stay for ever.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(MixserveError, ConnectionError):
    """No server answers, or the one that does is starting or draining."""

    code = "UNAVAILABLE"


class DeadlineExceeded(MixserveError, TimeoutError):
    """The time given for the call ran out."""

    code = "DEADLINE_EXCEEDED"


class CorruptReply(MixserveError):
    """The reply is not what the protocol allows."""

    code = "DATA_LOSS"


class CorruptCheckpoint(MixserveError):
    """A file that the server kept of a session is not what was written; the message names it."""

    code = "DATA_LOSS"


class StorageFailed(MixserveError):
    """The server cannot keep what it must keep: its disk is full, say. What was kept before is still there."""

    code = "RESOURCE_EXHAUSTED"


class ServerFault(MixserveError):
    """A bug in the server; its log holds the id that the message names."""

    code = "INTERNAL"


_CLASSES: tuple[type[MixserveError], ...] = (
    InvalidRequest,
    OutOfRange,
    UnknownMixture,
    UnknownSchedule,
    UnknownSession,
    UnknownCheckpoint,
    SessionTaken,
    FingerprintMismatch,
    Unauthenticated,
    PermissionDenied,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    CorruptReply,
    CorruptCheckpoint,
    StorageFailed,
    ServerFault,
)
_BY_NAME = {cls.__name__: cls for cls in _CLASSES}
_BY_CODE = {cls.code: cls for cls in reversed(_CLASSES)}  # the first of those that share a code


def class_of(error: MixserveError) -> type[MixserveError]:
    """The class in this tree that stands for the error: its own, or the nearest that it is made from."""
    return next((cls for cls in type(error).__mro__ if cls in _CLASSES), MixserveError)


def from_wire(name: str | None, code: str, message: str, retry_after_s: float | None = None) -> MixserveError:
    """The error that a failed call stands for.

    `name` is the `mixserve-error` metadatum, None where something between client and server made the status; `code`
    is the gRPC status code's name. A code outside the tree becomes a ServerFault that names it. `retry_after_s` is
    that of an Overloaded, None where the server did not say.
    """
    cls = _BY_NAME.get(name or "") or _BY_CODE.get(code)
    if cls is None:
        older = "; is the server older than this client?" if code == "UNIMPLEMENTED" else ""
        return ServerFault(f"the call ended with {code}: {message}{older}")
    if cls is Overloaded:
        return Overloaded(message, (1.0 if name else math.inf) if retry_after_s is None else retry_after_s)
    return cls(message)
