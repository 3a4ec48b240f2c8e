"""A stream of batches that is read by the thread that takes them: no other thread wakes it for each batch."""

import threading
from collections import deque
from typing import TYPE_CHECKING

from mixserve_client.errors import Unavailable
from mixserve_client.reading.background import CLOSED
from mixserve_client.reading.stream import BatchStream
from mixserve_client.schema.fields import Batch
from mixserve_client.transport.base import Lane
from mixserve_client.transport.waits import acquire

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan


class DirectStream:
    """The batches of `stream`. `begin` sends its request, and `read_ahead` may read some before they are taken."""

    def __init__(self, stream: BatchStream, lane: Lane, before: "DirectStream | None"):
        """`before` is the lane's stream before this one: it begins first, and is read to its end first."""
        self._lane = lane
        self._has_begun = False
        self._stream = stream
        self._batches = iter(stream)
        self._before = before
        self._ending: DirectStream | None = None
        self._ready: deque[Batch] = deque()
        self._reading = threading.Lock()
        self._is_awaited = False
        self._cancelled = False
        self.has_ended = False
        self._error: BaseException | None = None

    def begin(self, deadline: float | None = None) -> None:
        """Send the requests of the lane's streams up to this one, if they have not been sent.

        Waits for another thread that sends them, until `deadline`; raises DeadlineExceeded.
        """
        if self._has_begun:
            return
        acquire(self._lane.opening, deadline)
        try:
            self._begin()
        finally:
            self._lane.opening.release()

    def _begin(self) -> None:
        waiting, one = list[DirectStream](), self
        while one is not None and not one._has_begun:  # no recursion: there may be thousands
            waiting.append(one)
            one = one._before
        for one in reversed(waiting):
            one._stream.begin(self._lane)
            one._has_begun = True

    @property
    def request(self) -> "RequestSpan | None":
        """As `BatchStream.request`."""
        return self._stream.request

    def take(self, deadline: float | None) -> Batch:
        """The next batch. Waits until `deadline`, a time of `time.monotonic()`.

        Raises what reading it raised, and DeadlineExceeded.
        """
        while True:
            try:
                return self._ready.popleft()
            except IndexError:
                pass  # `suppress` would cost 0.4 microseconds for each batch
            if self._cancelled:
                raise Unavailable(CLOSED)
            self._await_turn(deadline)
            try:
                if not self._ready:
                    self._read(deadline)
            finally:
                self._reading.release()

    def read_ahead(self) -> bool:
        """Read to the end, until a thread waits in `take`, or reading fails. Whether the end was reached."""
        if not self._reading.acquire(blocking=False):
            return False
        try:
            # An error that waits for `take` would have its traceback extended at each try.
            while self._error is None and not (self._is_awaited or self._cancelled or self.has_ended):
                self._read(None)
        except BaseException as error:
            self._error = error  # for `take`, which comes to it after the batches before it
            if self._cancelled:
                self._error = None  # its traceback leads to this object: it would be a cycle
            return False
        finally:
            self._reading.release()
        return self.has_ended

    def cancel(self) -> None:
        """Drop the batches that have not been taken, and release their memory. A waiting `take` raises Unavailable."""
        self._cancelled = True
        self._stream.cancel()
        ending = self._ending
        if ending is not None:  # all of its batches have been taken, and a thread waits for its end, in vain now
            ending.cancel()
        self._ready.clear()
        self._error = None

    def finish(self, deadline: float | None) -> None:
        """Read what is left, mostly the end alone; of a cancelled stream nothing. Raises what reading it raises."""
        self._await_turn(deadline)
        try:
            while not (self.has_ended or self._cancelled):
                self._read(deadline)
        finally:
            self._reading.release()

    def _await_turn(self, deadline: float | None) -> None:
        """Acquire `_reading`. Raises DeadlineExceeded."""
        if not self._reading.acquire(blocking=False):
            self._is_awaited = True  # the thread that reads ahead stops after the next reply
            acquire(self._reading, deadline)
        self._is_awaited = False

    def _read(self, deadline: float | None) -> None:
        """Read one reply, or the end."""
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # a cycle: its traceback leads to this frame, as in `BackgroundStream.take`
        self.begin(deadline)
        if self._before is not None:
            self._ending = self._before
            if not self._cancelled:
                self._before.finish(deadline)
            self._before = self._ending = None
        self._stream.wait_until(deadline)
        try:
            batches = next(self._batches, None)
        except Unavailable as error:
            if self._cancelled:
                raise Unavailable(CLOSED) from error
            raise
        if batches is not None:
            self._ready.extend(batches)
        elif self.has_ended or self._cancelled:
            raise Unavailable(CLOSED)
        self.has_ended = batches is None
        if self._cancelled:  # by another thread, meanwhile: they will not be taken
            self._ready.clear()
