"""The threads in which a server does for one mixture what may hang, apart from those that answer calls.

A thread that hangs inside a source cannot be ended. So no thread of calls goes there: it waits for one of these, until
a deadline, or until its client is gone.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from mixserve.access.call import error_fields
from mixserve.access.identity import current_caller
from mixserve.error_boundary import for_others
from mixserve.failed_read import FailedRead
from mixserve_client.errors import MixserveError, Overloaded, Unavailable
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

LOOK_EVERY_S = 0.2  # at whether the client still waits
_LEAST_RETRY_S, _MOST_RETRY_S = 0.5, 5.0

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
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


class Job(Protocol[T_co]):
    """What is to be done."""

    @property
    def is_read(self) -> bool:
        """Whether it hangs only if the mixture's sources do, as far as is known."""
        ...

    def run(self) -> T_co:
        """Do it. It may raise anything."""
        ...

    def late(self, said: str) -> Exception:
        """An error for those who have waited for it, of the class Unavailable or with one as its cause. What is late
        comes before `said`: has not answered for so long."""
        ...


class Words(NamedTuple):
    """How the log and errors speak of these jobs."""

    late: str  # of the mixture, the error, how many are late and how many may be
    ended: str  # of the mixture, the seconds after which it was given up and those that it took
    full: str  # of how many there may be, and the mixture
    full_kind: str  # the name of the limit, for `limit_hits`


class Jobs:
    """Up to `most` jobs at a time, each in a thread. Thread-safe."""

    def __init__(
        self, mixture: str, start: Start, most: int, timeout_s: float, words: Words, clock: Clock = time.monotonic
    ):
        """`mixture` is the name for errors; a job that takes longer than `timeout_s` is not waited for. `start` runs
        a task that raises nothing in one of `most` threads, and raises Unavailable if the server stops."""
        self._mixture, self._start, self._most, self.timeout_s = mixture, start, most, timeout_s
        self._words = words
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Running[Any], None] = {}  # the oldest first
        self._last_end = clock()
        # Their counts: jobs that were given up, those that ended after that, and calls that found no thread.
        self.late, self.ended, self.refused = (
            LimitedLog(_logger, "read_timeout_s"),
            LimitedLog(_logger, "late_reads_ended"),
            LimitedLog(_logger, words.full_kind),
        )

    def is_stuck(self) -> bool:
        """Whether these threads hang inside the mixture's sources, as far as is known: all, or as many as have tried.

        What has hung is forgotten after another `timeout_s` unless more follows: without callers nobody would notice
        that a source answers again.
        """
        with self._lock:
            now = self._clock()
            reads = [running for running in self._running if running.job.is_read]
            if len(reads) >= self._most and not any(running.waiting for running in reads):
                return True
            # The oldest come first, so the last one that is late was given up last.
            late = [running for running in reads if running.began + self.timeout_s <= now]
            given_up = late[-1].began + self.timeout_s if late else 0.0
            return bool(late) and self._last_end < given_up and now < given_up + self.timeout_s

    def begin(self, job: Job[T]) -> "Running[T]":
        """Begin a job in a thread. Raises Overloaded if all are busy, and Unavailable if the system has no thread."""
        running = Running(job, self._clock())
        with self._lock:
            is_full = len(self._running) >= self._most
            if not is_full:
                self._running[running] = None
        if is_full:
            self._refuse()
        try:
            self._start(lambda: self._run(running))
        except BaseException as error:
            with self._lock:
                self._running.pop(running, None)
            if isinstance(error, RuntimeError):  # of the system's limit on threads
                raise Unavailable(f"this server has no thread for the call ({error}); ask again") from error
            raise
        return running

    def wait(self, running: "Running[T]", since: float | None = None) -> T:
        """The result of a job that `begin` returned. Raises what the job does, what its `late` returns if it takes
        longer than `timeout_s` from the time `since` on (None: from its beginning), and Abandoned."""
        until = (running.began if since is None else since) + self.timeout_s
        with self._lock:
            running.waiting += 1
        try:
            while not running.has_ended(min(LOOK_EVERY_S, max(0.0, until - self._clock()))):
                if self._clock() >= until:
                    self._give_up(running)
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
        if running.result is None:  # rows that nobody has written must never be sent
            raise RuntimeError("two callers waited for one job, which failed")
        return running.result[0]

    def _run(self, running: "Running[T]") -> None:
        try:
            running.result = (running.job.run(),)
        except BaseException as error:  # also what is no Exception: a caller waits
            running.error = for_others(error)
        with self._lock:
            now = self._last_end = self._clock()
            self._running.pop(running, None)
            is_late = running.began + self.timeout_s <= now
        running.end()
        if is_late:
            with suppress(BaseException):  # such as SystemExit from a handler of the log: this thread must live
                self.ended.warn(self._words.ended, self._mixture, self.timeout_s, now - running.began)

    def _give_up(self, running: "Running[T]") -> None:
        """Raises what the job's `late` returns."""
        with self._lock:
            late = sum(one.began + self.timeout_s <= self._clock() for one in self._running)
        error = running.job.late(f"has not answered for {self.timeout_s:g} s (server.limits.read_timeout_s)")
        read = error.read._asdict() if isinstance(error, FailedRead) else {}
        cause = error.__cause__ if isinstance(error, FailedRead) else error
        fields = error_fields(cause) if isinstance(cause, MixserveError) else {}
        extra = {"mixture": self._mixture, **read, **fields}
        self.late.warn(self._words.late, self._mixture, error, late, self._most, extra=extra)
        raise error

    def _refuse(self) -> None:
        """Raises Overloaded."""
        with self._lock:
            age_s = self._clock() - min((running.began for running in self._running), default=self._clock())
            unwanted = sum(not running.waiting for running in self._running)
        words = (
            f"{self._words.full % (self._most, self._mixture)}, {unwanted} of them for calls that have ended; the "
            f"oldest for {age_s:.0f} s"
        )
        delay_s = spread(min(max(age_s / 4, _LEAST_RETRY_S), _MOST_RETRY_S))
        error = Overloaded(f"{words}; ask another replica, or again", delay_s)
        said = "%s: calls are refused until one comes back. Look at what the sources read from, or restart the server"
        self.refused.warn(said, words, extra=error_fields(error))
        raise error


class Running(Generic[T]):
    """A job in a thread of its own."""

    __slots__ = ("_gate", "began", "error", "job", "result", "waiting")

    def __init__(self, job: Job[T], began: float):
        self.job, self.began = job, began
        self.waiting = 0  # callers
        self.result: tuple[T] | None = None
        self.error: Exception | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def has_ended(self, timeout_s: float) -> bool:
        """Wait for the end of the job."""
        if not self._gate.acquire(timeout=timeout_s):
            return False
        self._gate.release()  # for others that wait
        return True

    def end(self) -> None:
        """The job has ended."""
        self._gate.release()
