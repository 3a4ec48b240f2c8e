"""The replies of one request after another, until all have come: if a stream is lost, it goes on at another replica."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from mixserve_client import tracing
from mixserve_client.errors import DeadlineExceeded, MixserveError, Unavailable, UnknownSchedule
from mixserve_client.rpc.asking import Asking, NextRequest, Request
from mixserve_client.rpc.deadlines import CLOCK_S
from mixserve_client.rpc.publisher import SchedulePublisher
from mixserve_client.rpc.replica import Asked, Attempt, Replica
from mixserve_client.rpc.replicas import Replicas
from mixserve_client.rpc.request_trace import RequestTrace
from mixserve_client.rpc.stream_wait import StreamWait
from mixserve_client.rpc.tries import Tries
from mixserve_client.transport.base import Interrupted, Lane, ReadMode, Replies, Reply

T = TypeVar("T")


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
        is_awaited: Callable[[], bool],
    ):
        self.deadline = deadline
        self._replicas = replicas
        self._method = method
        self._next_request = next_request
        self._decode = decode
        self._asking = asking
        self._most_wait_s = most_wait_s
        self._is_awaited = is_awaited
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
        replica = self._chosen = self._choose()
        if request is None or replica is None:
            return ReadMode.BACKGROUND
        return replica.transport.read_mode(self._method, request.data)

    def begin(self, lane: Lane | None = None) -> None:
        """Send the first request, before the iteration begins. Without this, the iteration sends it.

        The streams of a lane must be read one after another, in the order in which they began.
        """
        request, replica = self._first or self._next_request(), self._chosen
        self._first = self._chosen = None
        replica = replica or self._choose()
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
        tries = Tries(replicas, self, asking)
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
                wait = StreamWait(replicas, attempt, self._open_rival, self._is_awaited)
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
                soon = time.monotonic() + CLOCK_S
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

    def _choose(self) -> Replica | None:
        return self._replicas.choose(fingerprint=self._asking.fingerprint, reader=self._asking.reader)

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
