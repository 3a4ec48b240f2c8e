"""Calls that are repeated until a server answers: right for pure calls, and those that a server knows again."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from mixserve_client.errors import DeadlineExceeded, InvalidRequest, Overloaded, Unavailable, UnknownSchedule
from mixserve_client.schema.checks import check_seconds
from mixserve_client.transport.base import Interrupted, Replies, Reply, Transport
from mixserve_client.wire import methods

_logger = logging.getLogger("mixserve_client")
_LOG_AFTER_S = 5.0
_FOREVER_S = 1e8  # beyond this gRPC's clocks overflow
_MOST_PUBLISHED, _PUBLISH_S = 8, 10.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0


class Request(NamedTuple):
    """A request for a stream of up to `replies` replies of up to `reply_bytes` bytes."""

    data: bytes
    replies: int
    reply_bytes: int


NextRequest = Callable[[], Request | None]
# The requests that tell a server a schedule: all of it, or its last entry.
Definitions = Callable[[bool], Iterable[bytes]]


class RetryingCaller:
    """Sends requests to the first of `transports` that answers, for up to `patience_s` seconds of silence."""

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        self._replicas = _Replicas(transports, patience_s)

    @property
    def transport(self) -> Transport:
        """The transport that is in use; another one takes its place when its server falls silent."""
        return self._replicas.transport

    @property
    def replicas(self) -> int:
        """How many servers there are to choose from."""
        return len(self._replicas.transports)

    def call(
        self, method: str, request: bytes, deadline: float | None = None, definitions: Definitions | None = None
    ) -> bytes:
        """The reply to `request`; `deadline` is a time of `time.monotonic()`.

        A server that does not know the request's schedule is told `definitions`, and asked again.

        Raises Unavailable or Overloaded when patience runs out, DeadlineExceeded at the deadline, and at once whatever
        else a server answers.
        """
        backoff = _Backoff(self._replicas, deadline)
        publisher = _SchedulePublisher(definitions)
        while True:
            transport = self._replicas.transport
            try:
                publisher.publish(transport, backoff)
                return transport.call(method, request, backoff.remaining_s())
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except (Unavailable, Overloaded) as error:
                backoff.wait_after(transport, error)

    def stream(
        self,
        method: str,
        next_request: NextRequest,
        deadline: float | None = None,
        definitions: Definitions | None = None,
    ) -> "RetryingReplies":
        """The replies of as many streams as it takes until `next_request()`, which asks for what is left, is None."""
        return RetryingReplies(self._replicas, method, next_request, deadline, definitions)

    def close(self) -> None:
        """End the calls under way, those that wait for a server too."""
        self._replicas.close()


class RetryingReplies:
    """Made by `RetryingCaller.stream`; iterated once, by one thread, and cancelled by any."""

    def __init__(
        self,
        replicas: "_Replicas",
        method: str,
        next_request: NextRequest,
        deadline: float | None,
        definitions: Definitions | None,
    ):
        self._replicas = replicas
        self._method = method
        self._next_request = next_request
        self._deadline = deadline
        self._definitions = definitions
        self._cancelled = False
        self._replies: Replies | None = None

    def __iter__(self) -> Iterator[Reply]:
        """Raises what `RetryingCaller.call` raises."""
        backoff = _Backoff(self._replicas, self._deadline, lambda: self._cancelled)
        publisher = _SchedulePublisher(self._definitions)
        while not self._cancelled and (request := self._next_request()) is not None:
            transport = self._replicas.transport
            try:
                publisher.publish(transport, backoff)
                data, replies, reply_bytes = request
                self._replies = transport.stream(self._method, data, backoff.remaining_s(), replies, reply_bytes)
                if self._cancelled:
                    self._replies.cancel()
                answered = False
                for reply in self._replies:
                    answered = True
                    backoff.reset()
                    publisher.note_reply()
                    yield reply
                if not answered:
                    raise Unavailable("the server ended a stream without a reply")
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except Interrupted:
                continue
            except (Unavailable, Overloaded) as error:
                backoff.wait_after(transport, error)

    def cancel(self) -> None:
        """End the stream under way and ask for no other."""
        self._cancelled = True
        self._replicas.wake()
        if self._replies is not None:
            self._replies.cancel()


class _SchedulePublisher:
    """Tells schedules to servers that do not know them; each may forget them at any time, but not all the time."""

    def __init__(self, definitions: Definitions | None):
        self._definitions = definitions
        self._wanted = False
        self._times = 0

    def note_unknown(self, error: UnknownSchedule) -> None:
        """A server does not know the schedule. Raises `error` where that cannot be helped."""
        self._times += 1
        if self._definitions is None or self._times > _MOST_PUBLISHED:
            try:
                raise error
            finally:
                del error  # as in `_Backoff.wait_after`
        self._wanted = True

    def publish(self, transport: Transport, backoff: "_Backoff") -> None:
        """Tell the server what it asked for. Raises what a call raises."""
        if self._wanted and self._definitions is not None:
            for definition in self._definitions(self._times > 1):
                self._send(transport, definition, backoff.remaining_s())
        self._wanted = False

    def note_reply(self) -> None:
        self._times = 0

    def _send(self, transport: Transport, definition: bytes, remaining_s: float | None) -> None:
        try:
            # Nobody can cancel this call, so it does not take long.
            transport.call(methods.DEFINE_SCHEDULE, definition, min(remaining_s or _PUBLISH_S, _PUBLISH_S))
        except DeadlineExceeded as error:
            raise Unavailable(f"the server did not take a schedule: {error}") from error


class _Replicas:
    """The servers that may be asked, and the one that is."""

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        if not transports:
            raise InvalidRequest("at least one server address is needed, got none")
        self.transports = tuple(transports)
        self.patience_s = check_seconds("patience_s", patience_s)
        self.closed = False
        self._current = 0
        # Its lock is an RLock: readers may be collected, and cancelled, wherever this thread is.
        self._changed = threading.Condition()

    @property
    def transport(self) -> Transport:
        return self.transports[self._current]

    def turn_from(self, transport: Transport) -> None:
        self._current = (self.transports.index(transport) + 1) % len(self.transports)

    def close(self) -> None:
        self.closed = True
        self.wake()
        for transport in self.transports:
            transport.close()

    def wait(self, delay_s: float, is_over: Callable[[], bool]) -> None:
        """Wait so long, but only until these are closed, or what is waited for `is_over`."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or is_over(), delay_s)

    def wake(self) -> None:
        """Let those that wait look again."""
        with self._changed:
            self._changed.notify_all()


class _Backoff:
    """Counts how long no server has answered, and waits between attempts."""

    def __init__(self, replicas: _Replicas, deadline: float | None, is_cancelled: Callable[[], bool] = bool):
        self._replicas = replicas
        self._deadline = deadline
        self._is_cancelled = is_cancelled
        self.reset()

    def reset(self) -> None:
        self._first_loss, self._losses, self._logged = 0.0, 0, False

    def remaining_s(self) -> float | None:
        """What is left until the deadline. Raises DeadlineExceeded."""
        if self._deadline is None:
            return None
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("timeout_s ran out before the request could be sent; allow more time")
        return None if remaining_s > _FOREVER_S else remaining_s

    def wait_after(self, transport: Transport, error: Unavailable | Overloaded) -> None:
        """Turn to the next replica, after a while where all of them were tried, and not before an overloaded server
        wants to be asked.

        Raises `error` where nobody wants an answer any more, or it does not help to ask again; when patience is over
        Unavailable, or Overloaded; DeadlineExceeded.
        """
        after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
        now = time.monotonic()
        self._first_loss = self._first_loss or now
        self._losses += 1
        silent_s = now - self._first_loss
        if self._replicas.closed or self._is_cancelled() or after_s == math.inf:
            try:
                raise error
            finally:
                # Its traceback leads to this frame. A circle of both would keep what the callers' frames hold, batches
                # in shared memory too, until the collector of circles comes by.
                del error
        if isinstance(error, Unavailable) and silent_s >= self._replicas.patience_s:
            raise Unavailable(f"no server answered for {silent_s:.1f} s (patience_s); last: {error}") from error
        if silent_s >= _LOG_AFTER_S and not self._logged:
            _logger.warning("still waiting for a server, up to %.0f s: %s", self._replicas.patience_s, error)
            self._logged = True
        self._replicas.turn_from(transport)
        rounds, place = divmod(self._losses, len(self._replicas.transports))
        backoff_s = min(_FIRST_DELAY_S * 2 ** min(rounds - 1, 10), _LONGEST_DELAY_S)
        delay_s = max(backoff_s, after_s) if place == 0 else 0.0
        if isinstance(error, Overloaded) and silent_s + delay_s >= self._replicas.patience_s:
            raise Overloaded(f"{error}; patience_s = {self._replicas.patience_s:g} ran out", after_s) from error
        if self._deadline is not None and now + delay_s >= self._deadline:
            raise DeadlineExceeded(f"timeout_s ran out while no server answered; last: {error}") from error
        self._replicas.wait(delay_s, self._is_cancelled)
