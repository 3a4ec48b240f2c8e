"""The threads in which a server reads the sources of one mixture, apart from those that answer calls.

A thread that hangs inside a source cannot be ended. So no thread of calls goes there: it waits for one of these, until
a deadline, or until its client is gone. Arrays and mapped files need no such thread: their rows are copied.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from mixserve.access.call import error_fields
from mixserve.access.identity import current_caller
from mixserve.error_boundary import for_others
from mixserve.failed_read import FailedRead
from mixserve.mixture.gather import SourceRead
from mixserve.mixture.taking import Part
from mixserve_client.errors import Overloaded, Unavailable
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

LOOK_EVERY_S = 0.2  # at whether the client still waits
_LEAST_RETRY_S, _MOST_RETRY_S = 0.5, 5.0

Clock = Callable[[], float]
Start = Callable[[Callable[[], None]], None]


class Abandoned(Unavailable):
    """The client of the call has gone, or does not wait for it any more: nobody sees this error."""


def check_wanted() -> None:
    """Raises Abandoned if the client of the call that this thread answers has gone."""
    if not current_caller().is_wanted():
        raise Abandoned("the client does not wait for this call any more")


def spread(seconds: float) -> float:
    """About as many seconds: clients that were refused together must not come back together."""
    return seconds * random.uniform(0.75, 1.25)


class Readers:
    """Up to `most` reads at a time, each in a thread. Thread-safe."""

    def __init__(self, mixture: str, start: Start, most: int, timeout_s: float, clock: Clock = time.monotonic):
        """`mixture` is the name for errors; a read that takes longer than `timeout_s` is not waited for. `start` runs
        a task that raises nothing in one of `most` threads, and raises Unavailable if the server stops."""
        self._mixture, self._start, self._most, self.timeout_s = mixture, start, most, timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[_Running, None] = {}  # the oldest first
        self._last_end = clock()
        # Their counts: reads that were given up, those that ended after that, and calls that found no thread.
        self.late, self.ended, self.refused = (
            LimitedLog(_logger, "read_timeout_s"),
            LimitedLog(_logger, "late_reads_ended"),
            LimitedLog(_logger, "reading_threads"),
        )

    def read(self, read: SourceRead) -> Callable[[], Iterable[Part]]:
        """As `SourceReader.read`. The function raises what `SourceRead.parts` does; FailedRead, with Unavailable as its
        cause, after `timeout_s`; Overloaded if no thread is free; Abandoned.
        """
        return _Joined(self, read) if read else _no_parts

    def is_stuck(self) -> bool:
        """Whether these threads hang inside their sources, as far as is known: all of them, or as many as have tried.

        What has hung is forgotten after another `timeout_s` unless more follows: without callers nobody would notice
        that a source answers again.
        """
        with self._lock:
            now = self._clock()
            if len(self._running) >= self._most and not any(running.waiting for running in self._running):
                return True
            # The oldest come first, so the last one that is late was given up last.
            late = [running for running in self._running if running.began + self.timeout_s <= now]
            given_up = late[-1].began + self.timeout_s if late else 0.0
            return bool(late) and self._last_end < given_up and now < given_up + self.timeout_s

    def begin(self, read: SourceRead) -> "_Running":
        """Begin a read in a thread. Raises Overloaded if all are busy."""
        running = _Running(read, self._clock())
        with self._lock:
            is_full = len(self._running) >= self._most
            if not is_full:
                self._running[running] = None
        if is_full:
            raise self._refusal()
        try:
            self._start(partial(self._run, running))
        except BaseException:
            with self._lock:
                self._running.pop(running, None)
            raise
        return running

    def wait(self, running: "_Running") -> Sequence[Part]:
        """The parts of a read that `begin` returned. Raises what the function of `read` does."""
        until = running.began + self.timeout_s
        with self._lock:
            running.waiting += 1
        try:
            while not running.has_ended(min(LOOK_EVERY_S, max(0.0, until - self._clock()))):
                if self._clock() >= until:
                    raise self._late(running)
                check_wanted()
        finally:
            with self._lock:
                running.waiting -= 1
        error, running.error = running.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads to this frame, and the frame to it and to the buffers of a reply
        if running.parts is None:  # rows that nobody has written must never be sent
            raise RuntimeError("two callers waited for one read, which failed")
        return running.parts

    def _run(self, running: "_Running") -> None:
        try:
            running.parts = list(running.read.parts())
        except BaseException as error:  # also what is no Exception: a caller waits
            running.error = for_others(error)
        with self._lock:
            now = self._last_end = self._clock()
            self._running.pop(running, None)
            is_late = running.began + self.timeout_s <= now
        running.end()
        if is_late:
            with suppress(BaseException):  # such as SystemExit from a handler of the log: this thread must live
                self.ended.warn(
                    "a read of the mixture %r that was given up after %g s has ended after %.0f s",
                    self._mixture,
                    self.timeout_s,
                    now - running.began,
                )

    def _late(self, running: "_Running") -> FailedRead:
        """The error of a read that is given up, after a line in the log; it names source and record."""
        with self._lock:
            late = sum(one.began + self.timeout_s <= self._clock() for one in self._running)
        cause = Unavailable(f"the source has not answered for {self.timeout_s:g} s (server.limits.read_timeout_s)")
        failed = running.read.unread(cause)
        self.late.warn(
            "the mixture %r: %s; the call is answered with Unavailable, and its thread is inside the source still. %d "
            "of up to %d threads that read this mixture hang so: look at what the source reads from",
            self._mixture,
            failed,
            late,
            self._most,
            extra={"mixture": self._mixture, **failed.read._asdict(), **error_fields(cause)},
        )
        return failed

    def _refusal(self) -> Overloaded:
        """The error of a call that finds no thread, after a line in the log."""
        with self._lock:
            age_s = self._clock() - min((running.began for running in self._running), default=self._clock())
            unwanted = sum(not running.waiting for running in self._running)
        words = (
            f"all {self._most} threads that read the mixture {self._mixture!r} are inside its sources, {unwanted} of "
            f"them for calls that have ended; the oldest for {age_s:.0f} s"
        )
        delay_s = spread(min(max(age_s / 4, _LEAST_RETRY_S), _MOST_RETRY_S))
        error = Overloaded(f"{words}; ask another replica, or again", delay_s)
        said = "%s: calls are refused until one comes back. Look at what the sources read from, or restart the server"
        self.refused.warn(said, words, extra=error_fields(error))
        return error


class _Running:
    """A read in a thread of its own."""

    __slots__ = ("_gate", "began", "error", "parts", "read", "waiting")

    def __init__(self, read: SourceRead, began: float):
        self.read, self.began = read, began
        self.waiting = 0  # callers
        self.parts: Sequence[Part] | None = None
        self.error: Exception | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def has_ended(self, timeout_s: float) -> bool:
        """Wait for the end of the read."""
        if not self._gate.acquire(timeout=timeout_s):
            return False
        self._gate.release()  # for others that wait
        return True

    def end(self) -> None:
        self._gate.release()


class _Joined:
    """The parts of one read. A call after an abandoned one waits for the same read: a source that takes longer than a
    client has patience would never come to an end otherwise. For one thread at a time."""

    __slots__ = ("_read", "_readers", "_running")

    def __init__(self, readers: Readers, read: SourceRead):
        self._readers, self._read = readers, read
        self._running: _Running | None = None

    def __call__(self) -> Iterable[Part]:
        running, self._running = self._running, None
        if running is None or running.error is not None:
            running = self._readers.begin(self._read)
        try:
            return self._readers.wait(running)
        except Abandoned:
            self._running = running
            raise


def _no_parts() -> Iterable[Part]:
    return ()
