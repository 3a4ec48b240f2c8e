"""What is no error of ours -> one that tells the client nothing but where to look."""

import logging
import secrets
import threading
from collections.abc import Generator
from contextlib import contextmanager

from mixserve_client.errors import MixserveError, ServerFault, Unavailable

_logger = logging.getLogger("mixserve")
_SHOWN = 1000


class WrongRecord(ValueError):
    """A source gave a record that is not what it declared."""


class StrayEnd(RuntimeError):
    """Code of a source's, or of a function's of the user, raised what ends loops and generators."""


@contextmanager
def error_boundary(what: str) -> Generator[None]:
    """Turns other errors than ours into ServerFault with an id, under which the log has the cause.

    Whatever a source raises: gRPC answers a call only if its handler ends with an Exception, so a SystemExit would
    leave the client waiting. What belongs to the caller alone (`is_callers_own`) goes through. What a source did wrong
    is said as it is, since whoever reads the message can do something about it.
    """
    try:
        yield
    except MixserveError:
        raise
    except BaseException as error:
        if is_callers_own(error):
            raise
        fault = secrets.token_hex(4)
        _logger.exception("fault %s in %s", fault, what)
        is_told = isinstance(error, WrongRecord | StrayEnd)
        said = f"{error!s:.{_SHOWN}}" if is_told else "the server failed on this request"
        raise ServerFault(f"{said}; its log has the cause under the id {fault}") from error


def is_callers_own(error: BaseException) -> bool:
    """Whether a signal handler may have raised `error` in a caller's own thread: Ctrl-C, say.

    Python runs signal handlers in the main thread only, and gRPC answers calls in other threads. So a caller in the
    main thread is in process, and keeps what is not an Exception. In other threads a source has raised it.
    """
    if isinstance(error, Exception | GeneratorExit):
        return False
    return threading.current_thread() is threading.main_thread()


def for_others(error: BaseException) -> Exception:
    """What those get who wait for what ended with `error` in another thread."""
    if isinstance(error, Exception):
        return error
    if is_callers_own(error):
        return Unavailable("the caller who was making this reply was interrupted; ask again")
    found = RuntimeError(f"a source raised {type(error).__name__}")
    found.__cause__ = error
    return found


class user_code:  # noqa: N801  # it is used as a function is
    """Around code that is not ours: turns what would pass for the end of records into an error. Raises StrayEnd.

    What the code does is formatted with `about` when it is needed: there is one of these around every record.
    """

    # Not a generator: contextlib takes a RuntimeError that a StopIteration caused for one that Python made of it, and
    # lets the StopIteration go on.
    __slots__ = ("_about", "_what")

    def __init__(self, what: str, *about: object):
        self._what, self._about = what, about

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit):
            raise StrayEnd(
                f"{self._what.format(*self._about)} raised {type(error).__name__}, which must not pass for the end of "
                "the epoch"
            ) from error
