"""Retries idempotent calls across replicas until one answers."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from mixserve_client import tracing
from mixserve_client.errors import DeadlineExceeded, MixserveError, Unavailable, UnknownSchedule
from mixserve_client.metrics.client_metrics import ReplicaCounts
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.rpc.ask_each import ask_each
from mixserve_client.rpc.asking import Asking, NextRequest, Request
from mixserve_client.rpc.call_race import CallRace
from mixserve_client.rpc.publisher import SchedulePublisher
from mixserve_client.rpc.replica import Asked, Attempt, Replica
from mixserve_client.rpc.replicas import ATTEMPT_S, Replicas
from mixserve_client.rpc.request_trace import RequestTrace
from mixserve_client.rpc.stream_wait import StreamWait
from mixserve_client.rpc.tries import UNLIMITED_S, Deadline, Tries
from mixserve_client.transport.base import Interrupted, Lane, ReadMode, Replies, Reply, Transport
from mixserve_client.wire.sender import with_trace

T = TypeVar("T")
# gRPC measures a timeout by another clock than ours.
_CLOCK_S = 0.05
_PLAIN = Asking()


class RetryingCaller:
    """Sends requests to the replica of `transports` that is likely to answer first, and to others if it does not.

    Gives up when none has answered for `patience_s` seconds. An attempt has `attempt_s` seconds for each reply if there
    are other replicas, and at most half of what is left of the request's deadline. With `hedge`, another replica is
    asked as well when a reply is late. With a `zone`, replicas of others are asked while none of it answers.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        patience_s: float,
        attempt_s: float = ATTEMPT_S,
        *,
        hedge: bool = False,
        zone: str = "",
        figures: RequestFigures | None = None,
    ):
        self._replicas = replicas = Replicas(transports, patience_s, attempt_s, hedge=hedge, zone=zone, figures=figures)
        self._race = None
        if replicas.hedging is not None and replicas.threads is not None:
            self._race = CallRace(replicas, replicas.hedging, replicas.threads)

    @property
    def transport(self) -> Transport:
        """The transport that was used last."""
        return self._replicas.last.transport

    @property
    def replicas(self) -> int:
        """The number of servers."""
        return len(self._replicas.all)

    @property
    def replica_counts(self) -> ReplicaCounts:
        """For the client's statistics."""
        return self._replicas.counts

    def call(self, method: str, request: bytes, deadline: float | None = None, asking: Asking = _PLAIN) -> bytes:
        """The reply to `request`; `deadline` is a time of `time.monotonic()`.

        If a server does not know the request's schedule, the caller sends the definitions to it and retries.

        Raises Unavailable or Overloaded after `patience_s`, DeadlineExceeded at the deadline, the faults of servers
        when each has been asked, and every other error of a server at once.
        """
        return self.ask(method, request, bytes, deadline, asking)

    def ask(
        self,
        method: str,
        request: bytes,
        decode: Callable[[bytes], T],
        deadline: float | None = None,
        asking: Asking = _PLAIN,
    ) -> T:
        """As `call`, and decodes the reply. If `decode` raises, the replica has failed as if it had raised this."""
        error = None
        if tracing.spans is not None and asking.span is None:
            with tracing.spans.asking(method, asking.mixture) as span:
                return self.ask(method, request, decode, deadline, asking._replace(span=span))
        alone, span = self._replicas.alone, asking.span
        if alone is not None and (span is None or not span.is_recorded):  # what is recorded has its tries
            # A small call takes hardly longer than to prepare for its failure, which is rare.
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is None or 0 < remaining_s < UNLIMITED_S:
                self._replicas.figures.note_request(method, alone.call_way)
                try:
                    data = request if span is None else with_trace(method, request, span.traceparent)
                    found = decode(alone.transport.call(method, data, remaining_s))
                except MixserveError as raised:
                    error = raised
                else:
                    if alone.out_since or not alone.has_answered:
                        self._replicas.note_reply(alone, 0.0)
                    return found
        try:
            return self._ask(method, request, decode, deadline, asking, error)
        finally:
            del error  # a reference cycle, as in `Tries.failed`

    def _ask(
        self,
        method: str,
        request: bytes,
        decode: Callable[[bytes], T],
        deadline: float | None,
        asking: Asking,
        failed: MixserveError | None,
    ) -> T:
        """As `ask`, after the first try has `failed` if there was one."""
        replicas, asked = self._replicas, Asked(method, request)
        tries = Tries(replicas, Deadline(deadline), asking.fingerprint, in_order=asking.in_order)
        publisher = SchedulePublisher(replicas, asking.definitions)
        while True:
            attempt = Attempt(tries.choose(), asked, asking.span)
            try:
                if failed is not None:
                    try:
                        raise failed
                    finally:
                        failed = None
                publisher.publish(attempt.replica, tries)
                return self._try(attempt, decode, tries, asking.fingerprint)
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except DeadlineExceeded as error:
                if deadline is not None and time.monotonic() >= deadline - _CLOCK_S:
                    raise
                tries.failed(attempt, error)
            except MixserveError as error:
                tries.failed(attempt, error)

    def _try(self, attempt: Attempt, decode: Callable[[bytes], T], tries: Tries, fingerprint: str) -> T:
        replicas, replica = self._replicas, attempt.replica
        remaining_s, limit_s = tries.remaining_s(), tries.limit_s()
        timeout_s = limit_s if remaining_s is None or (limit_s is not None and limit_s < remaining_s) else remaining_s
        attempt.note_sent()
        if replicas.alone is not None:
            found = decode(replicas.call(replica, attempt.sent, timeout_s))
            replicas.note_reply(replica, 0.0)
            return found
        began = time.monotonic()
        with replicas.calling(attempt):
            if self._race is None:
                reply = replicas.call(replica, attempt.sent, timeout_s)
            else:
                replica, reply = self._race.call(attempt, timeout_s, fingerprint)
        found = decode(reply)
        replicas.note_reply(replica, time.monotonic() - began, fingerprint)
        return found

    def ask_each(
        self, method: str, request: bytes, decode: Callable[[bytes], T], deadline: float | None
    ) -> dict[str, T]:
        """As `ask` of a single server; of several replicas as the function `ask_each`, by their addresses."""
        replicas = self._replicas
        if (alone := replicas.alone) is not None:
            return {alone.address: self.ask(method, request, decode, deadline)}
        return ask_each(replicas, Asked(method, request), decode, deadline)

    def stream(
        self,
        method: str,
        next_request: NextRequest,
        decode: Callable[[Reply], T],
        deadline: float | None = None,
        asking: Asking = _PLAIN,
        most_wait_s: float | None = None,
    ) -> "RetryingReplies[T]":
        """The decoded replies to one request after another: `next_request()` makes one for the missing rest, or None.

        `most_wait_s` is how long the reader waits for a reply at most.
        """
        return RetryingReplies(self._replicas, method, next_request, decode, deadline, asking, most_wait_s)

    def close(self) -> None:
        """End the calls in flight, also calls that wait for a server."""
        self._replicas.close()


class RetryingReplies(Generic[T]):
    """The replies of `RetryingCaller.stream`. One thread at a time iterates over them, once; any may cancel them.

    `deadline` is when waiting for a reply must end, as a time of `time.monotonic()`; it may change between replies.
    `trace` has the span of the requests; None without tracing.
    """

    def __init__(
        self,
        replicas: Replicas,
        method: str,
        next_request: NextRequest,
        decode: Callable[[Reply], T],
        deadline: float | None,
        asking: Asking,
        most_wait_s: float | None,
    ):
        self.deadline = deadline
        self._replicas = replicas
        self._method = method
        self._next_request = next_request
        self._decode = decode
        self._asking = asking
        self._most_wait_s = most_wait_s
        self._cancelled = False
        self._replies: Replies | None = None
        self._chosen: Replica | None = None  # to know the mode, and for `begin`
        self._first: Request | None = None
        self._begun: Attempt | None = None
        self._lost_s = 0.0  # how long `begin` tried in vain
        self.trace = None if tracing.spans is None else RequestTrace(tracing.spans, method, asking.mixture)

    @property
    def read_mode(self) -> ReadMode:
        """How the replies would come if the first request was sent now."""
        request = self._first = self._next_request()
        replica = self._chosen = self._replicas.choose(fingerprint=self._asking.fingerprint)
        if request is None or replica is None:
            return ReadMode.BACKGROUND
        return replica.transport.read_mode(self._method, request.data)

    def begin(self, lane: Lane | None = None) -> None:
        """Send the first request, before the iteration begins. Without this, the iteration sends it.

        The streams of a lane must be read one after another, in the order in which they began.
        """
        request, replica = self._first or self._next_request(), self._chosen
        self._first = self._chosen = None
        replica = replica or self._replicas.choose(fingerprint=self._asking.fingerprint)
        if request is None or replica is None or self._cancelled:
            return
        attempt = self._attempt(replica, request)
        try:
            self._open(attempt, Tries(self._replicas, self).remaining_s(), lane)
        except MixserveError:
            self._lost_s = time.monotonic() - attempt.began
            return  # the iteration sends the request again, and knows what to do about its error
        self._begun = attempt

    def __iter__(self) -> Iterator[T]:
        """Raises what `RetryingCaller.call` raises."""
        found = self._iterate()
        return found if self.trace is None else self.trace.around(found, lambda: self._next_request() is None)

    def _iterate(self) -> Iterator[T]:
        replicas, asking = self._replicas, self._asking
        tries = Tries(replicas, self, asking.fingerprint, in_order=asking.in_order)
        publisher = SchedulePublisher(replicas, asking.definitions)
        while not self._cancelled:
            attempt, self._begun = self._begun, None  # `begin` has sent the first request
            until, wait = self.deadline, None
            is_awaited = attempt is None
            try:
                if attempt is None:
                    request = self._next_request()
                    if request is None:
                        return
                    attempt = self._attempt(tries.choose(), request)
                    publisher.publish(attempt.replica, tries)
                    self._open(attempt, tries.remaining_s())
                wait = StreamWait(replicas, attempt, self._open_rival)
                # The time that opening took is part of the first wait, if the reader waited for that too.
                answered, since = False, attempt.began - self._lost_s if is_awaited else None
                self._lost_s = 0.0
                for found in self._read(wait, tries, since):
                    answered = True
                    tries.reset()
                    publisher.note_reply()
                    came = [found]
                    del found
                    yield came.pop()  # this frame must not keep its memory while it waits to go on
                # A server may end a stream early, but one that always ends it at once must not keep this loop busy.
                if not answered:
                    raise Unavailable("the server ended a stream without a reply")
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except Interrupted as error:
                # A fork of this process, or the end of one of the server's, so there is nothing to wait for. Without a
                # cause nothing has failed: the stream has to be read in another way.
                if error.__cause__ is not None:
                    replicas.figures.note_retry(error.__cause__)
            except MixserveError as error:
                self._note(error, attempt if wait is None else wait.attempt, wait, until, tries)

    def _note(
        self, error: MixserveError, attempt: Attempt | None, wait: StreamWait | None, until: float | None, tries: Tries
    ) -> None:
        """An attempt has failed, or none could be made. Returns when the next one may begin; raises otherwise.

        `until` was the deadline when it began.
        """
        try:
            if attempt is None:
                raise error
            if isinstance(error, DeadlineExceeded):
                soon = time.monotonic() + _CLOCK_S
                if self.deadline is not None and self.deadline <= soon:
                    raise error
                if until is not None and until <= soon:
                    return  # gRPC knows only the deadline at which the stream began
            if wait is not None and wait.late is not None:
                error = wait.late
            if self._replies is not None:
                self._replies.cancel()  # that of a server whose replies are wrong may never end
            if self._next_request() is not None:
                tries.failed(attempt, error)
            elif not isinstance(error, Unavailable):  # otherwise only the end was missing
                raise error
        finally:
            del error, wait  # a reference cycle, as in `Tries.failed`

    def _read(self, wait: StreamWait, tries: Tries, since: float | None) -> Iterator[T]:
        """The replies of one stream, and of one that takes its place. Its reader waits since `since` (None: now)."""
        replicas, fingerprint = self._replicas, self._asking.fingerprint
        opened = wait.attempt.replies
        assert opened is not None
        replies = iter(opened)
        replicas.watch.add(wait)
        try:
            while True:
                opened.wait_until(self.deadline)
                wait.begin(tries.limit_s(self._most_wait_s), since)
                since = None
                came = list[Any]()
                try:
                    came.append(next(replies))
                except StopIteration:
                    return
                except MixserveError:
                    waited_s, rival = wait.end()
                    if rival is None:
                        raise
                    if wait.late is not None:
                        replicas.note_failure(wait.attempt, wait.late, fingerprint)
                    opened = wait.follow(rival)
                    self._use(opened)
                    replies = rival.replies
                    came.append(rival.first)
                else:
                    waited_s, rival = wait.end()
                    if rival is not None:
                        rival.discard()
                del rival
                came.append(self._decode(came.pop()))
                replica = wait.attempt.replica
                replicas.note_reply(replica, waited_s, fingerprint)
                yield came.pop()
                if replicas.has_better(replica, waited_s, fingerprint):
                    opened.cancel()  # the rest comes sooner from another one
                    return
        finally:
            replicas.watch.remove(wait)

    def _attempt(self, replica: Replica, request: Request) -> Attempt:
        return Attempt(replica, Asked(self._method, *request), None if self.trace is None else self.trace.span())

    def _open(self, attempt: Attempt, timeout_s: float | None, lane: Lane | None = None) -> None:
        self._use(self._replicas.open(attempt, timeout_s, lane))

    def _use(self, replies: Replies) -> None:
        self._replies = replies
        if self._cancelled:  # by another thread, which may have looked at `_replies` just before
            replies.cancel()

    def _open_rival(self, late: Attempt, waited_s: float) -> Attempt | None:
        """A stream for what is missing after such a wait, of another replica, or None. In a thread of its own."""
        request, fingerprint = self._next_request(), self._asking.fingerprint
        replica = self._replicas.choose({late.replica}, fingerprint)
        hedging = self._replicas.hedging
        if request is None or replica is None or replica is late.replica:
            return None
        if hedging is None or not hedging.take(waited_s):
            return None
        rival = self._attempt(replica, request)
        self._replicas.open(rival, Tries(self._replicas, self).remaining_s(), is_hedge=True)
        return rival

    def cancel(self) -> None:
        """End the stream in flight and request no other."""
        self._cancelled = True
        self._replicas.wake()
        if self._replies is not None:
            self._replies.cancel()
        if self.trace is not None:
            self.trace.end()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled
