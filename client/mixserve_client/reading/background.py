"""A stream of batches that a background thread reads, and its consumer takes in order."""

import threading
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from mixserve_client.errors import DeadlineExceeded, Unavailable
from mixserve_client.reading.stream import BatchStream
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.schema.fields import Batch
from mixserve_client.transport.waits import LATE, wait_s

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan

CLOSED = "this iterator was closed while a call waited for a batch"


class BackgroundStream:
    """The batches of `stream`, which a worker thread fetches without waiting for `take`.

    It starts when `after`, the stream before it, expects its last reply. So one stream opens while the other ends, and
    batches arrive in the order in which `take` returns them.
    """

    def __init__(self, stream: BatchStream, workers: DaemonThreadPool, after: "BackgroundStream | None"):
        self._stream = stream
        # Weak: the fetching thread refers to this object, and must not keep a client alive that the user has dropped.
        self._workers = weakref.ref(workers)
        self._ready: deque[Batch] = deque()
        # SimpleQueue, since its `put` is reentrant: the collector may call `cancel` in the middle of another `put`.
        self._arrived: SimpleQueue[list[Batch] | BaseException] = SimpleQueue()
        # Reentrant: the collector may finalize an iterator, and so cancel this, while the same thread has the lock.
        self._lock = threading.RLock()
        self._cancelled = False
        self._nearly_done = False
        self._next: BackgroundStream | None = None
        if after is None or not after._will_start(self):
            self._start()

    @property
    def request(self) -> "RequestSpan | None":
        """As `BatchStream.request`."""
        return self._stream.request

    def take(self, deadline: float | None) -> Batch:
        """The next batch. Waits until `deadline`, a time of `time.monotonic()`.

        Raises what fetching it raised, and DeadlineExceeded.
        """
        while True:
            try:  # not an emptiness check: another thread may cancel, and clear it, in between
                return self._ready.popleft()
            except IndexError:
                pass  # `suppress` would cost 0.4 microseconds for each batch
            try:
                arrived = self._arrived.get(timeout=None if deadline is None else wait_s(deadline))
            except Empty:
                raise DeadlineExceeded(LATE) from None
            if isinstance(arrived, BaseException):
                try:
                    raise arrived
                finally:
                    # A cycle: its traceback leads to this frame. It would keep the batches of all callers' frames, and
                    # their slots of shared memory, until the cycle collector runs.
                    del arrived
            self._ready.extend(arrived)

    def cancel(self) -> None:
        """Drop the batches that have not been taken, and release their memory. A waiting `take` raises Unavailable."""
        self._stream.cancel()
        with self._lock:
            self._cancelled = True
            self._ready.clear()
            with suppress(Empty):
                while True:
                    self._arrived.get_nowait()
            self._arrived.put(Unavailable(CLOSED))

    def _start(self) -> None:
        try:
            workers = self._workers()
            if workers is None:
                raise Unavailable("this iterator's client no longer exists; make another client, and an iterator of it")
            workers.submit(self._fetch)
        except BaseException as error:
            self._put(error)
            self._start_next()

    def _fetch(self) -> None:
        try:
            if self._stream.is_nearly_done:
                self._start_next()
            for batches in self._stream:
                self._put(batches)
                del batches  # this frame must not keep them, and their memory, until the next ones arrive
                if self._stream.is_nearly_done:
                    self._start_next()
            self._put(Unavailable(CLOSED))  # `take` sees it only if the stream ended early, as `cancel` makes it do
        except BaseException as error:
            self._put(error)
        finally:
            self._start_next()

    def _put(self, arrived: list[Batch] | BaseException) -> None:
        # Drop what arrives after a cancel: an error's traceback leads back to this object, and the memory of its
        # batches would be held until the cycle collector runs.
        with self._lock:
            if not self._cancelled:
                self._arrived.put(arrived)

    def _will_start(self, following: "BackgroundStream") -> bool:
        """Whether this stream will start `following`; False if it is nearly done already."""
        with self._lock:
            if not self._nearly_done:
                self._next = following
            return not self._nearly_done

    def _start_next(self) -> None:
        with self._lock:
            following, self._next = self._next, None
            self._nearly_done = True
        if following is not None:
            following._start()
