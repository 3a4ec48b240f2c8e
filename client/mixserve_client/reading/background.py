"""A span of batches under way: fetched in the background as fast as they come, taken in order."""

import threading
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue

from mixserve_client.errors import DeadlineExceeded, Unavailable
from mixserve_client.reading.assembly import Batch
from mixserve_client.reading.stream import BatchStream
from mixserve_client.rpc.deadlines import wait_s
from mixserve_client.rpc.threads import DaemonThreadPool


class BackgroundStream:
    """The batches of `stream`, fetched by a worker whether they are taken or not.

    It begins when `after`, the reading before it, has nearly ended: then one stream opens while the other closes, and
    batches come in the order in which they are taken.
    """

    def __init__(self, stream: BatchStream, workers: DaemonThreadPool, after: "BackgroundStream | None"):
        self._stream = stream
        # The thread that fetches has this, and must not keep a client alive that everything else has dropped.
        self._workers = weakref.ref(workers)
        self._here: deque[Batch] = deque()
        self._arrived: SimpleQueue[list[Batch] | BaseException] = SimpleQueue()
        self._lock = threading.RLock()  # an iterator may be collected, and this cancelled, wherever this thread is
        self._cancelled = False
        self._nearly_ended = False
        self._next: BackgroundStream | None = None
        if after is None or not after._is_followed_by(self):
            self._begin()

    def take(self, deadline: float | None) -> Batch:
        """The next batch, waited for until `deadline`, a time of `time.monotonic()`.

        Raises what fetching it raised, and DeadlineExceeded.
        """
        while True:
            with suppress(IndexError):  # they may be dropped at any time
                return self._here.popleft()
            try:
                arrived = self._arrived.get(timeout=None if deadline is None else wait_s(deadline))
            except Empty:
                raise DeadlineExceeded("timeout_s ran out before the batch was here; allow more time") from None
            if isinstance(arrived, BaseException):
                try:
                    raise arrived
                finally:
                    del arrived  # its traceback leads to this frame: a circle
            self._here.extend(arrived)

    def cancel(self) -> None:
        """Drop what has not been taken, and give its memory back."""
        self._stream.cancel()
        with self._lock:
            self._cancelled = True
            self._here.clear()
            with suppress(Empty):
                while True:
                    self._arrived.get_nowait()
            self._arrived.put(Unavailable("this iterator was closed while a batch was waited for"))

    def _begin(self) -> None:
        try:
            workers = self._workers()
            if workers is None:
                raise Unavailable("the client of this iterator is gone")
            workers.submit(self._fetch)
        except BaseException as error:
            self._put(error)
            self._begin_next()

    def _fetch(self) -> None:
        try:
            if self._stream.is_nearly_done:
                self._begin_next()
            for batches in self._stream:
                self._put(batches)
                del batches  # they must not stay alive until the next ones are here
                if self._stream.is_nearly_done:
                    self._begin_next()
            self._put(Unavailable("this iterator was closed while a batch was waited for"))
        except BaseException as error:
            self._put(error)
        finally:
            self._begin_next()

    def _put(self, arrived: list[Batch] | BaseException) -> None:
        # What comes after a cancel must not stay: an error's traceback leads back to this reading, and the memory of
        # its batches would wait for the collector of circles.
        with self._lock:
            if not self._cancelled:
                self._arrived.put(arrived)

    def _is_followed_by(self, reading: "BackgroundStream") -> bool:
        """Whether this reading will begin `reading`; not where it has nearly ended."""
        with self._lock:
            if not self._nearly_ended:
                self._next = reading
            return not self._nearly_ended

    def _begin_next(self) -> None:
        with self._lock:
            following, self._next = self._next, None
            self._nearly_ended = True
        if following is not None:
            following._begin()
