"""The tree of errors that a request can raise: on the server, in process and in the client.

MixserveError
├── InvalidRequest       (ValueError)    INVALID_ARGUMENT     the request is wrong; sending it again will not help
├── OutOfRange           (ValueError)    OUT_OF_RANGE         the requested positions do not exist
├── UnknownMixture       (LookupError)   NOT_FOUND            the server has no mixture of that name
├── UnknownSource        (LookupError)   NOT_FOUND            the mixture has no source of that name
├── UnknownSchedule      (LookupError)   NOT_FOUND            the server does not know this schedule; clients send it
├── UnknownSession       (LookupError)   NOT_FOUND            the server has no session of that name
├── UnknownCheckpoint    (LookupError)   NOT_FOUND            the session has no checkpoint of that name
├── SessionTaken                         ABORTED              another client holds the session
├── FingerprintMismatch                  FAILED_PRECONDITION  the mixture, or source, is not the expected one
├── SourceChanged                        FAILED_PRECONDITION  a file of the mixture has changed under the server
├── Unauthenticated                      UNAUTHENTICATED      the server requires credentials
├── PermissionDenied                     PERMISSION_DENIED    these credentials do not allow the call
├── Overloaded                           RESOURCE_EXHAUSTED   clients retry after `retry_after_s`
├── Unavailable          (ConnectionError) UNAVAILABLE        no server answers, or it is starting or draining
├── DeadlineExceeded     (TimeoutError)  DEADLINE_EXCEEDED    `timeout_s` ran out
├── CorruptReply                         DATA_LOSS            the reply breaks the protocol, or was damaged
├── CorruptCheckpoint                    DATA_LOSS            a session's file on the server is damaged
├── StorageFailed                        RESOURCE_EXHAUSTED   the server cannot write to its disk
└── ServerFault                          INTERNAL             a source or the server failed; the log has the id

A client recognises the class by the name that comes with the status; if the name is missing, by the gRPC code.
"""

import math
from typing import ClassVar

from mixserve_client.redaction import hide_tokens


class MixserveError(Exception):
    """Base of all errors of mixserve; `code` is the name of the gRPC status code that carries it.

    `request_id` is the id under which the log of the server speaks of the request, empty if no server sent the error.
    """

    code: ClassVar[str] = "UNKNOWN"
    request_id: str = ""

    def __init__(self, *args: object):
        # Errors show what was given, and people give tokens where a path or a name is due.
        super().__init__(*(hide_tokens(arg) if isinstance(arg, str) else arg for arg in args))


class InvalidRequest(MixserveError, ValueError):
    """The request is wrong; sending it again will not help."""

    code = "INVALID_ARGUMENT"


class OutOfRange(MixserveError, ValueError):
    """The request asks for positions that do not exist."""

    code = "OUT_OF_RANGE"


class UnknownMixture(MixserveError, LookupError):
    """The server has no mixture of that name."""

    code = "NOT_FOUND"


class UnknownSource(MixserveError, LookupError):
    """The mixture has no source of that name."""

    code = "NOT_FOUND"


class UnknownSchedule(MixserveError, LookupError):
    """The server does not know the schedule that the request names; clients can send it at any time."""

    code = "NOT_FOUND"


class UnknownSession(MixserveError, LookupError):
    """The server has no session of that name."""

    code = "NOT_FOUND"


class UnknownCheckpoint(MixserveError, LookupError):
    """The session has no checkpoint of that name."""

    code = "NOT_FOUND"


class SessionTaken(MixserveError):
    """Another client holds the session; the client that gets this error can no longer move it."""

    code = "ABORTED"


class FingerprintMismatch(MixserveError):
    """The mixture, or the source, is not the one that the caller expects, so its batches would differ."""

    code = "FAILED_PRECONDITION"


class SourceChanged(MixserveError):
    """A file that the server reads has changed since it was opened; the message names file and source."""

    code = "FAILED_PRECONDITION"


class Unauthenticated(MixserveError):
    """The server requires credentials, and the request has none that it knows."""

    code = "UNAUTHENTICATED"


class PermissionDenied(MixserveError):
    """The server knows the credentials, and they do not allow this call."""

    code = "PERMISSION_DENIED"


class Overloaded(MixserveError):
    """The server has more work than it accepts; retry after `retry_after_s` seconds.

    Clients retry by themselves for up to `patience_s`. `retry_after_s` is infinite if the error does not come from a
    mixserve server: a limit of gRPC or of a proxy may never change.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 1.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(MixserveError, ConnectionError):
    """No server answers, or the one that does is starting or draining."""

    code = "UNAVAILABLE"


class DeadlineExceeded(MixserveError, TimeoutError):
    """The call took longer than `timeout_s`."""

    code = "DEADLINE_EXCEEDED"


class CorruptReply(MixserveError):
    """The reply breaks the protocol."""

    code = "DATA_LOSS"


class CorruptCheckpoint(MixserveError):
    """A session's file on the server is not what the server wrote; the message names the file."""

    code = "DATA_LOSS"


class StorageFailed(MixserveError):
    """The server cannot write what it must keep, for example because its disk is full; earlier data stay intact."""

    code = "RESOURCE_EXHAUSTED"


class ServerFault(MixserveError):
    """A source of the server failed, and the message names record and position; or the server has a bug.

    Its log has the cause under the id that the message names.
    """

    code = "INTERNAL"


_CLASSES: tuple[type[MixserveError], ...] = (
    InvalidRequest,
    OutOfRange,
    UnknownMixture,
    UnknownSource,
    UnknownSchedule,
    UnknownSession,
    UnknownCheckpoint,
    SessionTaken,
    FingerprintMismatch,
    SourceChanged,
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
# Reversed, so that the first class of each code wins: NOT_FOUND alone means UnknownMixture, the oldest of its classes.
_BY_CODE = {cls.code: cls for cls in reversed(_CLASSES)}


def class_of(error: MixserveError) -> type[MixserveError]:
    """The error's own class if it is in this tree, otherwise its nearest base class that is."""
    # A source may raise a subclass of its own; no client could recognise its name.
    return next((cls for cls in type(error).__mro__ if cls in _CLASSES), MixserveError)


def from_wire(name: str | None, code: str, message: str, retry_after_s: float | None = None) -> MixserveError:
    """The error of a failed call.

    `name` is the `mixserve-error` metadatum, None if gRPC or a proxy set the status; `code` is the gRPC status code's
    name. A code outside the tree becomes a ServerFault that names it. `retry_after_s`, in seconds, belongs to an
    Overloaded; None if the server sent none.
    """
    cls = _BY_NAME.get(name or "") or _BY_CODE.get(code)
    if cls is None:
        older = "; is the server older than this client?" if code == "UNIMPLEMENTED" else ""
        return ServerFault(f"the call ended with {code}: {message}{older}")
    if cls is Overloaded:
        # Without a name, the status comes from a limit of gRPC or of a proxy: waiting does not lift it.
        return Overloaded(message, (1.0 if name else math.inf) if retry_after_s is None else retry_after_s)
    return cls(message)
