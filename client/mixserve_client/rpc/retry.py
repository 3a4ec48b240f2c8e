"""Retries idempotent calls across replicas until one answers."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from mixserve_client.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MixserveError,
    Overloaded,
    Unavailable,
    UnknownSchedule,
)
from mixserve_client.schema.checks import check_seconds
from mixserve_client.transport.base import Interrupted, Lane, ReadMode, Replies, Reply, Transport
from mixserve_client.wire import methods

_logger = logging.getLogger("mixserve_client")
_LOG_AFTER_S, _LOG_EVERY_S = 5.0, 60.0
_UNLIMITED_S = 1e8  # gRPC's clocks overflow beyond this
# Servers may forget a schedule at any time, but one that forgets it this often between two replies cannot keep it.
_PUBLISH_LIMIT = 8
_PUBLISH_TIMEOUT_S = 10.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0


class Request(NamedTuple):
    """A request for a stream of up to `replies` replies of up to `reply_bytes` bytes."""

    data: bytes
    replies: int
    reply_bytes: int


NextRequest = Callable[[], Request | None]
# The requests that send a schedule to a server: all of it for True, its last entry for False.
Definitions = Callable[[bool], Iterable[bytes]]


class RetryingCaller:
    """Sends requests to the first of `transports` that answers; gives up when none has for `patience_s` seconds."""

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        self._replicas = _Replicas(transports, patience_s)

    @property
    def transport(self) -> Transport:
        """The transport in use; when its server fails, the next one takes its place."""
        return self._replicas.transport

    @property
    def replicas(self) -> int:
        """The number of servers."""
        return len(self._replicas.transports)

    def call(
        self, method: str, request: bytes, deadline: float | None = None, definitions: Definitions | None = None
    ) -> bytes:
        """The reply to `request`; `deadline` is a time of `time.monotonic()`.

        If a server does not know the request's schedule, the caller sends `definitions` to it and retries.

        Raises Unavailable or Overloaded after `patience_s`, DeadlineExceeded at the deadline, and every other error of
        a server at once.
        """
        backoff = _Backoff(self._replicas, _Deadline(deadline))
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
        """The replies to one request after another: `next_request()` makes one for the missing rest, or None."""
        return RetryingReplies(self._replicas, method, next_request, deadline, definitions)

    def close(self) -> None:
        """End the calls in flight, also calls that wait for a server."""
        self._replicas.close()


class RetryingReplies:
    """The replies of `RetryingCaller.stream`. One thread at a time iterates over them, once; any may cancel them.

    `deadline` is when waiting for a reply must end, as a time of `time.monotonic()`; it may change between replies.
    """

    def __init__(
        self,
        replicas: "_Replicas",
        method: str,
        next_request: NextRequest,
        deadline: float | None,
        definitions: Definitions | None,
    ):
        self.deadline = deadline
        self._replicas = replicas
        self._method = method
        self._next_request = next_request
        self._definitions = definitions
        self._cancelled = False
        self._replies: Replies | None = None
        self._first: Request | None = None  # made to know the mode, and sent by `begin`
        self._begun: tuple[Transport, Replies] | None = None

    @property
    def read_mode(self) -> ReadMode:
        """How the replies would come if the first request was sent now."""
        request = self._first = self._next_request()
        if request is None:
            return ReadMode.BACKGROUND
        return self._replicas.transport.read_mode(self._method, request.data)

    def begin(self, lane: Lane) -> None:
        """Send the first request, before the iteration begins. Without this, the iteration sends it.

        The streams of a lane must be read one after another, in the order in which they began.
        """
        request, transport = self._first or self._next_request(), self._replicas.transport
        self._first = None
        if request is None or self._cancelled:
            return
        try:
            timeout_s = _Backoff(self._replicas, self).remaining_s()
            self._replies = transport.stream(self._method, *request[:1], timeout_s, *request[1:], lane)
            self._begun = transport, self._replies
        except MixserveError:
            return  # the iteration sends the request again, and knows what to do about its error
        if self._cancelled:  # by another thread, just before `_replies` was set
            self._replies.cancel()

    def __iter__(self) -> Iterator[Reply]:
        """Raises what `RetryingCaller.call` raises."""
        backoff = _Backoff(self._replicas, self)
        publisher = _SchedulePublisher(self._definitions)
        while not self._cancelled:
            begun, self._begun = self._begun, None
            request = None if begun is not None else self._next_request()  # `begin` has sent the first one
            transport, until = self._replicas.transport, self.deadline
            try:
                if begun is not None:
                    transport, opened = begun
                elif request is None:
                    return
                else:
                    publisher.publish(transport, backoff)
                    data, replies, reply_bytes = request
                    opened = transport.stream(self._method, data, backoff.remaining_s(), replies, reply_bytes)
                self._replies = opened
                # `cancel` in another thread may have looked at `_replies` just before it was set.
                if self._cancelled:
                    opened.cancel()
                answered = False
                opened.wait_until(until)
                for reply in opened:
                    answered = True
                    backoff.reset()
                    publisher.note_reply()
                    came = [reply]
                    del reply
                    yield came.pop()  # this frame must not keep its memory while it waits to go on
                    opened.wait_until(self.deadline)
                # A server may end a stream early, but one that always ends it at once must not keep this loop busy.
                if not answered:
                    raise Unavailable("the server ended a stream without a reply")
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except Interrupted:
                continue  # a fork of this process, or the end of one of the server's, so there is nothing to wait for
            except (Unavailable, Overloaded) as error:
                if self._next_request() is not None:  # otherwise only the end was missing
                    backoff.wait_after(transport, error)
            except DeadlineExceeded as error:
                # gRPC knows only the deadline at which the stream began.
                now = time.monotonic()
                if until is None or (self.deadline is not None and self.deadline <= max(until, now)):
                    try:
                        raise error
                    finally:
                        del error  # breaks a reference cycle, as in `_Backoff.wait_after`

    def cancel(self) -> None:
        """End the stream in flight and request no other."""
        self._cancelled = True
        self._replicas.wake()
        if self._replies is not None:
            self._replies.cancel()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled


class _SchedulePublisher:
    """Sends a schedule to servers that do not know it."""

    def __init__(self, definitions: Definitions | None):
        self._definitions = definitions
        self._is_wanted = False
        self._unknown = 0  # how often a server did not know the schedule since the last reply

    def note_unknown(self, error: UnknownSchedule) -> None:
        """Make the next `publish` send the schedule. Raises `error` if there is none, or servers keep forgetting it."""
        self._unknown += 1
        if self._definitions is None or self._unknown > _PUBLISH_LIMIT:
            try:
                raise error
            finally:
                del error  # breaks a reference cycle, as in `_Backoff.wait_after`
        self._is_wanted = True

    def publish(self, transport: Transport, backoff: "_Backoff") -> None:
        """Send the schedule if the server did not know it. Raises what a call raises."""
        if self._is_wanted and self._definitions is not None:
            # At first only the last entry: most servers know the schedule before it. If not, all of it.
            for definition in self._definitions(self._unknown > 1):
                self._send(transport, definition, backoff.remaining_s())
        self._is_wanted = False

    def note_reply(self) -> None:
        self._unknown = 0

    def _send(self, transport: Transport, definition: bytes, remaining_s: float | None) -> None:
        try:
            # `RetryingReplies.cancel` does not reach this call, so it must be short.
            timeout_s = min(remaining_s or _PUBLISH_TIMEOUT_S, _PUBLISH_TIMEOUT_S)
            transport.call(methods.DEFINE_SCHEDULE, definition, timeout_s)
        except DeadlineExceeded as error:
            # Our own limit, not the caller's deadline, which `wait_after` checks: another replica may be quicker.
            raise Unavailable(f"the server did not accept the schedule in time: {error}") from error


class _Replicas:
    """The servers, and which of them is in use."""

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        if not transports:
            raise InvalidRequest("at least one server address is needed, got none")
        self.transports = tuple(transports)
        self.patience_s = check_seconds("patience_s", patience_s)
        self.closed = False
        self._current = 0
        # With its RLock: the garbage collector may cancel a reader in a thread that holds it.
        self._changed = threading.Condition()

    @property
    def transport(self) -> Transport:
        return self.transports[self._current]

    def switch_from(self, transport: Transport) -> None:
        # From the transport that failed, not from the current one: threads that fail together would skip replicas.
        self._current = (self.transports.index(transport) + 1) % len(self.transports)

    def close(self) -> None:
        self.closed = True
        self.wake()
        for transport in self.transports:
            transport.close()

    def wait(self, delay_s: float, is_over: Callable[[], bool]) -> None:
        """Wait for `delay_s` seconds, or until the replicas are closed or `is_over()`."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or is_over(), delay_s)

    def wake(self) -> None:
        """Make waiting threads check again whether to go on."""
        with self._changed:
            self._changed.notify_all()


class _Waiting(Protocol):
    """What waits: until when, and whether it still does."""

    @property
    def deadline(self) -> float | None: ...

    @property
    def is_cancelled(self) -> bool: ...


class _Deadline(NamedTuple):
    """A call, which cannot be cancelled."""

    deadline: float | None
    is_cancelled: bool = False


class _Backoff:
    """Measures how long no server has answered, and waits between attempts."""

    def __init__(self, replicas: _Replicas, waiting: "_Waiting"):
        self._replicas = replicas
        self._waiting = waiting
        self.reset()

    def reset(self) -> None:
        self._first_failure, self._failures, self._log_at_s = 0.0, 0, _LOG_AFTER_S

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None for no limit. Raises DeadlineExceeded."""
        deadline = self._waiting.deadline
        if deadline is None:
            return None
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("timeout_s ran out before the request could be sent; allow more time")
        return None if remaining_s > _UNLIMITED_S else remaining_s

    def wait_after(self, transport: Transport, error: Unavailable | Overloaded) -> None:
        """Switch to the next replica; once all have failed, wait first, at least as long as an overloaded server says.

        Raises `error` if the call is cancelled or a retry cannot help, Unavailable or Overloaded after `patience_s`,
        and DeadlineExceeded if the wait would reach the deadline.
        """
        after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
        now = time.monotonic()
        # Patience is counted from the first failure after a reply: a stream that has run for hours has all of it.
        self._first_failure = self._first_failure or now
        self._failures += 1
        silent_s = now - self._first_failure
        # An infinite `after_s` is a limit of gRPC or of a proxy, which a retry would meet again.
        if self._replicas.closed or self._waiting.is_cancelled or after_s == math.inf:
            try:
                raise error
            finally:
                # Its traceback leads to this frame, and this frame to it: such a cycle would keep what the frames of
                # all callers hold, also batches in shared memory, until Python's cycle collector runs.
                del error
        if isinstance(error, Unavailable) and silent_s >= self._replicas.patience_s:
            raise Unavailable(f"no server answered for {silent_s:.1f} s (patience_s); last error: {error}") from error
        if silent_s >= self._log_at_s:
            _logger.warning(
                "still waiting for a server, for %.0f s now, up to %.0f s (patience_s): %s",
                silent_s,
                self._replicas.patience_s,
                error,
            )
            self._log_at_s = silent_s + _LOG_EVERY_S
        self._replicas.switch_from(transport)
        # No delay before every replica has failed once: one of the others may answer at once.
        rounds, in_round = divmod(self._failures, len(self._replicas.transports))
        # The exponent has a limit: after 1,024 rounds, half an hour, 2 ** rounds no longer fits a float.
        backoff_s = min(_FIRST_DELAY_S * 2 ** min(rounds - 1, 10), _LONGEST_DELAY_S)
        delay_s = max(backoff_s, after_s) if in_round == 0 else 0.0
        if isinstance(error, Overloaded) and silent_s + delay_s >= self._replicas.patience_s:
            raise Overloaded(f"{error}; patience_s = {self._replicas.patience_s:g} ran out", after_s) from error
        deadline = self._waiting.deadline
        if deadline is not None and now + delay_s >= deadline:
            raise DeadlineExceeded(f"timeout_s ran out while no server answered; last error: {error}") from error
        self._replicas.wait(delay_s, lambda: self._waiting.is_cancelled)
