"""Errors that are not ours -> ServerFault, which tells the client only where the log has the cause."""

import logging
import secrets
import threading

from mixserve.access.identity import current_caller
from mixserve.failed_read import FailedRead, Read, describe_cause, read_note
from mixserve.faults import FAULTS, Kind
from mixserve_client.errors import MixserveError, ServerFault, Unavailable, class_of
from mixserve_client.schema.text import shorten

_logger = logging.getLogger("mixserve")
_SHOWN = 1000


class WrongRecord(ValueError):
    """A source returned a record that differs from what it declared: `read`, at the index `position` of an epoch, if
    these are known."""

    read: Read | None = None
    position: int | None = None


class StrayEnd(RuntimeError):
    """A user's code raised StopIteration, StopAsyncIteration or GeneratorExit, which would end a loop of ours."""


class error_boundary:  # noqa: N801  # it is used like a function
    """Turns all errors but MixserveError into ServerFault with an id, under which the log has the cause.

    `what` is the call, for the log. Errors that belong to the caller (`is_callers_own`) pass through. Faults of sources
    keep their message, because its reader can do something about them. If a source itself raised a MixserveError, its
    class stays.

    Of faults alike, one per second is in the log, and the others have its id. They are alike if method (without a call
    `kind`, or `what`), mixture, source and class of the cause are the same.
    """

    # Not a generator, which takes three times as long to enter and leave: there is one of these around every call.
    __slots__ = ("_kind", "_what")

    def __init__(self, what: str, kind: str = ""):
        self._what, self._kind = what, kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # gRPC answers a call only if its handler ends with an Exception: a source's SystemExit would leave the client
        # waiting.
        if error is None or isinstance(error, MixserveError) or is_callers_own(error):
            return
        if isinstance(error, FailedRead) and isinstance(error.__cause__, MixserveError):
            raise class_of(error.__cause__)(str(error)) from error
        fault = self._log(error)
        found = ServerFault(f"{_told(error)}; the server's log has the cause under the id {fault}")
        found.request_id = fault
        try:
            raise found from error
        finally:
            # Its traceback leads to this frame: such a cycle would keep what the frames of the call hold, also the call
            # itself, until Python's cycle collector runs; and a connection may have 256 calls.
            del found

    def _log(self, error: BaseException) -> str:
        """Log the fault, unless one like it was just logged. Returns the id of the line."""
        call, (read, position) = current_caller().call, _place_of(error)
        cause = error.__cause__ if isinstance(error, FailedRead) and error.__cause__ is not None else error
        kind = Kind(
            self._kind or self._what if call is None else call.method,
            "" if call is None else call.mixture,
            "" if read is None else read.source,
            type(cause).__name__,
        )
        id_, is_due, untold = FAULTS.note(kind, secrets.token_hex(4) if call is None else call.id)
        if is_due:
            about = {"source": read.source, "record": read.record} if read is not None else {}
            _logger.error(
                "fault %s in %s%s",
                id_,
                self._what,
                f" (and {untold} more like it since the last such line)" if untold else "",
                exc_info=error,
                extra={"request": id_, **about, "position": position, "error": kind.error},
            )
        return id_


def _place_of(error: BaseException) -> tuple[Read | None, int | None]:
    """What could not be read, and its position, as far as they are known."""
    if isinstance(error, FailedRead | WrongRecord):
        return error.read, error.position
    note = read_note(error)
    return (None, None) if note is None else (note.read, note.position)


def _told(error: BaseException) -> str:
    """What a client may know of `error`."""
    note = read_note(error)
    if note is None and not isinstance(error, FailedRead | WrongRecord | StrayEnd):
        return "the server failed on this request"
    said, cause = str(note or error), error.__cause__ if isinstance(error, FailedRead) else error
    # Only our own words: the text of any other error may hold what a client must not see, such as credentials.
    if cause is not None and not isinstance(cause, WrongRecord | StrayEnd | MixserveError):
        said = said.removesuffix(describe_cause(cause)) + type(cause).__name__
    return shorten(said, _SHOWN)


def is_callers_own(error: BaseException) -> bool:
    """Whether a signal handler (Ctrl-C, say) may have raised `error` in the caller's own thread."""
    # Python runs signal handlers only in the main thread, and gRPC never answers calls there. So in the main thread the
    # caller is in process, and gets what is not an Exception. In other threads, a source raised it.
    if isinstance(error, Exception | GeneratorExit):
        return False
    return threading.current_thread() is threading.main_thread()


def for_others(error: BaseException) -> Exception:
    """The error for threads that wait for a result, if the thread that made it ended with `error`."""
    if isinstance(error, Exception):
        return error
    if is_callers_own(error):
        return Unavailable("the caller who was making this reply was interrupted; ask again")
    found = RuntimeError(f"a source raised {type(error).__name__}")
    found.__cause__ = error
    return found


class user_code:  # noqa: N801  # it is used like a function
    """Around users' code: turns exceptions that would look like the end of the records into StrayEnd.

    `what` is formatted with `about` only for an error.
    """

    # Formatted late and with __slots__, because there is one of these around every record.
    # Not a generator: contextlib takes a RuntimeError whose cause is a StopIteration for the one that Python makes of a
    # StopIteration in a generator, and lets the StopIteration through.
    __slots__ = ("_about", "_what")

    def __init__(self, what: str, *about: object):
        self._what, self._about = what, about

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit):
            raise StrayEnd(
                f"{self._what.format(*self._about)} raised {type(error).__name__}, which must not end the epoch; raise "
                "another error"
            ) from error
