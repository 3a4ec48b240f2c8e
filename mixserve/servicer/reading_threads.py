"""The threads in which a server reads the sources of one mixture, apart from those that answer calls.

Arrays and mapped files need no such thread: their rows are copied.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mixserve import tracing
from mixserve.mixture.gather import SourceRead
from mixserve.mixture.taking import Part
from mixserve.servicer.jobs import Abandoned, Clock, Jobs, Running, Start, Words
from mixserve_client.errors import Unavailable

_WORDS = Words(
    late="the mixture %r: %s; the call is answered with Unavailable, and its thread is inside the source still. %d of "
    "up to %d threads that read this mixture hang so: look at what the source reads from",
    ended="a read of the mixture %r that was given up after %g s has ended after %.0f s",
    full="all %d threads that read the mixture %r are inside its sources",
    full_kind="reading_threads",
)


class ReadingThreads(Jobs):
    """Up to `most` reads at a time, each in a thread. Thread-safe."""

    def __init__(self, mixture: str, start: Start, most: int, timeout_s: float, clock: Clock = time.monotonic):
        """As `Jobs`."""
        super().__init__(mixture, start, most, timeout_s, _WORDS, clock)

    def read(self, read: SourceRead) -> Callable[[], Iterable[Part]]:
        """As `SourceReader.read`. The function raises what `SourceRead.parts` does; FailedRead, with Unavailable as its
        cause, after `timeout_s`; Overloaded if no thread is free; Abandoned.
        """
        return _Joined(self, read) if read else _no_parts


class _Read:
    """A read as a job, within the spans of the thread that makes this."""

    is_read = True

    def __init__(self, read: SourceRead):
        self._read = read
        self._spans = None if tracing.spans is None else partial(tracing.spans.within, tracing.spans.here())

    def run(self) -> Sequence[Part]:
        return self._parts() if self._spans is None else self._spans(self._parts)

    def late(self, said: str) -> Exception:
        return self._read.unread(Unavailable(f"the source {said}"))  # names source and record, too

    def _parts(self) -> Sequence[Part]:
        return list(self._read.parts())


class _Joined:
    """The parts of one read. A call after an abandoned one waits for the same read: a source that takes longer than a
    client has patience would never come to an end otherwise. For one thread at a time."""

    __slots__ = ("_read", "_running", "_threads")

    def __init__(self, threads: ReadingThreads, read: SourceRead):
        self._threads, self._read = threads, read
        self._running: Running[Sequence[Part]] | None = None

    def __call__(self) -> Iterable[Part]:
        running, self._running = self._running, None
        if running is None or running.error is not None:
            running = self._threads.begin(_Read(self._read))
        try:
            return self._threads.wait(running)
        except Abandoned:
            self._running = running
            raise


def _no_parts() -> Iterable[Part]:
    return ()
