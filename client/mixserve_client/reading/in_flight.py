"""The batches that an iterator has requested and not yielded yet, in order."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixserve_client.forks import leave_to_parent
from mixserve_client.reading.assembly import concatenate, no_rows
from mixserve_client.reading.direct import DirectStream
from mixserve_client.reading.read_ahead import ReadAhead
from mixserve_client.reading.reader import AnyStream, Reader
from mixserve_client.reading.window import Fetch, Window
from mixserve_client.schema.fields import Batch, Field
from mixserve_client.transport.base import Lane

_TELL_EVERY_S = 20.0  # servers no longer count a reader that is silent for a minute


@dataclass(slots=True)
class _Fetching:
    """A fetch in flight; `left` of its batches have not been taken."""

    fetch: Fetch
    weight: int  # what one of its batches counts of those in flight
    left: int
    streams: tuple[AnyStream, ...]

    def cancel(self) -> None:
        for stream in self.streams:
            stream.cancel()


class InFlight:
    """The batches in flight. For one thread at a time; any thread may call `cancel`."""

    def __init__(self, position: int, most_wait_s: float | None):
        """`most_wait_s` is how long a trainer waits for a batch at most."""
        self.next_request_at = position
        self._most_wait_s = most_wait_s
        self._fetching: deque[_Fetching] = deque()
        # The stream whose batches were taken last, if the lane has connections. Its end may be on its way still: if the
        # stream was dropped before that, its connection would have to be closed, and the next request would need
        # another one.
        self._taken: AnyStream | None = None
        self.count = 0  # batches in flight, each as often as it has streams
        # When to refill: if so few are in flight, or at that time, if a trainer is slow. Requests tell the server how
        # long a trainer waits, and that it is there.
        self.refill_at, self.refill_by = 0, 0.0
        self._lane = Lane()
        self._ahead = ReadAhead()
        self._submit: Callable[[Callable[[], None]], None] | None = None  # since the first refill

    def refill(self, reader: Reader, window: Window, at_least: int = 0) -> None:
        """Request what `window` has room for, and at least `at_least` batches."""
        self.refill_at, now = window.refill_at(at_least), time.monotonic()
        is_early, self.refill_by = now >= self.refill_by, now + _TELL_EVERY_S
        self._submit = reader.submit
        idle = not self._fetching
        for fetch in window.fetches(self.next_request_at, self.count, idle=idle, at_least=at_least, early=is_early):
            # Each stream starts after the one before it, so that batches arrive in the order in which they are taken.
            last, streams = self._last_stream(), list[AnyStream]()
            for part in fetch.parts:
                stream = last = reader.start(part, last, self._lane, self._most_wait_s)
                # A trainer need not wait until its request is sent, if another thread reads ahead of it.
                if isinstance(stream, DirectStream) and not self._ahead.is_wanted:
                    stream.begin()
                streams.append(stream)
            self._fetching.append(_Fetching(fetch, fetch.streams_per_batch, fetch.count, tuple(streams)))
            self.count += fetch.count * fetch.streams_per_batch
            self.next_request_at = fetch.end
        self._read_ahead()

    def take(self, fields: tuple[Field, ...], deadline: float | None) -> tuple[Batch, int | None, bool]:
        """Wait for the next batch: it, where it ended (None if more batches of its fetch follow), and whether it is
        short.

        Raises what fetching the batch raised, and DeadlineExceeded; then the batches in flight are for `drop_after`.
        """
        first = self._fetching[0]
        streams = first.streams
        if len(streams) == 1:
            batch = streams[0].take(deadline)
        else:
            batch = concatenate([stream.take(deadline) for stream in streams]) if streams else no_rows(fields)
        first.left -= 1
        self.count -= first.weight
        if first.left:
            return batch, None, False
        self._fetching.popleft()
        if streams:
            self._taken = streams[-1] if self._lane.connections else None
        return batch, first.fetch.end, first.fetch.short

    def finish(self, deadline: float | None) -> None:
        """Read the end of the stream whose batches were taken last, which has come while the trainer computed.

        A connection without streams in progress shows whether the server has closed it meanwhile. Raises what reading
        raises, and DeadlineExceeded.
        """
        taken = self._taken  # another thread may cancel it
        if isinstance(taken, DirectStream):
            taken.finish(deadline)

    def first(self) -> Sequence[AnyStream]:
        """The streams of the next batch, as far as it has been requested."""
        return self._fetching[0].streams if self._fetching else ()

    def come(self, now: float) -> None:
        """The trainer comes for a batch; `now` is a time of `time.monotonic()`."""
        self._ahead.come(now)

    def leave(self, now: float) -> None:
        """The trainer goes on with its batch: another thread may read what is in flight."""
        self._ahead.left_at = now
        self._read_ahead()

    def _last_stream(self) -> AnyStream | None:
        """The stream that was opened last, if its end may still have to be read."""
        with_streams = (fetching for fetching in reversed(self._fetching) if fetching.streams)
        last = next(with_streams, None)
        return self._taken if last is None else last.streams[-1]

    def _read_ahead(self) -> None:
        if self._ahead.is_wanted and self._submit is not None and self._direct_streams():
            self._ahead.start(self._direct_streams, self._submit)

    def _direct_streams(self) -> list[DirectStream]:
        # A copy of the deque, since the trainer's thread may change it meanwhile.
        streams = [stream for fetching in self._fetching.copy() for stream in fetching.streams]
        return [stream for stream in streams if isinstance(stream, DirectStream) and not stream.has_ended]

    def drop_after(self, position: int, otherwise: int, *, cut: bool = False) -> None:
        """Drop the batches that end after `position`, and with `cut` also those that the mixture's end cut short.

        The next request starts after the last batch that is left, or at `otherwise` if none is left.
        """
        while self._fetching and (self._fetching[-1].fetch.end > position or (cut and self._fetching[-1].fetch.cut)):
            dropped = self._fetching.pop()
            dropped.cancel()
            self.count -= dropped.left * dropped.weight
        self.next_request_at = self._fetching[-1].fetch.end if self._fetching else otherwise

    def leave_to_parent(self, position: int) -> None:
        """In a forked process: start without batches in flight; the next request starts at `position`."""
        leave_to_parent((tuple(self._fetching), self._taken, self._lane))
        self._fetching.clear()
        self._taken = None
        self._lane, self._ahead = Lane(), ReadAhead()
        self.count, self.next_request_at = 0, position

    def cancel(self) -> None:
        """Cancel all fetches; a call that waits for a batch raises Unavailable."""
        for fetching in self._fetching.copy():  # a copy, since another thread may add to the deque
            fetching.cancel()
        taken, self._taken = self._taken, None
        if taken is not None:
            taken.cancel()  # it may wait for its end
        self._lane.close()
