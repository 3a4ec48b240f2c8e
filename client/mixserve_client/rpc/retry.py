"""Retries idempotent calls across replicas until one answers."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from mixserve_client import tracing
from mixserve_client.errors import DeadlineExceeded, MixserveError, UnknownSchedule
from mixserve_client.metrics.client_metrics import ReplicaCounts
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.rpc.ask_each import ask_each
from mixserve_client.rpc.asking import Asking, NextRequest
from mixserve_client.rpc.call_race import CallRace
from mixserve_client.rpc.deadlines import CLOCK_S
from mixserve_client.rpc.publisher import SchedulePublisher
from mixserve_client.rpc.replica import Asked, Attempt
from mixserve_client.rpc.replicas import ATTEMPT_S, Replicas
from mixserve_client.rpc.retrying_replies import RetryingReplies
from mixserve_client.rpc.stream_wait import always
from mixserve_client.rpc.tries import UNLIMITED_S, Deadline, Tries
from mixserve_client.transport.base import Reply, Transport
from mixserve_client.wire.sender import with_trace

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan

T = TypeVar("T")
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
        if tracing.spans is None:
            return self._ask(method, request, decode, deadline, asking, None)
        with tracing.spans.request(method, asking.mixture) as span:
            return self._ask(method, request, decode, deadline, asking, span)

    def _ask(
        self,
        method: str,
        request: bytes,
        decode: Callable[[bytes], T],
        deadline: float | None,
        asking: Asking,
        span: "RequestSpan | None",
    ) -> T:
        error, alone, asked = None, self._replicas.alone, request
        if alone is not None and (span is None or not span.is_recorded):  # what is recorded has its tries
            # A small call takes hardly longer than to prepare for its failure, which is rare.
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is None or 0 < remaining_s < UNLIMITED_S:
                self._replicas.figures.note_request(method, alone.call_way)
                try:
                    # In process the server is in the same thread, and so within the same spans.
                    if span is not None and not alone.is_here:
                        request = with_trace(method, request, span.traceparent)
                    found = decode(alone.transport.call(method, request, remaining_s))
                except MixserveError as raised:
                    error = raised
                else:
                    if alone.out_since or not alone.has_answered:
                        self._replicas.note_reply(alone, 0.0)
                    return found
        try:
            return self._ask_on(Asked(method, asked), decode, deadline, asking, span, error)
        finally:
            del error  # a reference cycle, as in `Tries.failed`

    def _ask_on(
        self,
        asked: Asked,
        decode: Callable[[bytes], T],
        deadline: float | None,
        asking: Asking,
        span: "RequestSpan | None",
        failed: MixserveError | None,
    ) -> T:
        """As `ask`, after the first try has `failed` if there was one."""
        replicas = self._replicas
        tries = Tries(replicas, Deadline(deadline), asking)
        publisher = SchedulePublisher(replicas, asking.definitions)
        while True:
            attempt = Attempt(tries.choose(), asked, span)
            try:
                if failed is not None:
                    try:
                        raise failed
                    finally:
                        failed = None
                publisher.publish(attempt.replica, tries)
                return self._try(attempt, decode, tries, asking)
            except UnknownSchedule as error:
                publisher.note_unknown(error)
            except DeadlineExceeded as error:
                if deadline is not None and time.monotonic() >= deadline - CLOCK_S:
                    raise
                tries.failed(attempt, error)
            except MixserveError as error:
                tries.failed(attempt, error)

    def _try(self, attempt: Attempt, decode: Callable[[bytes], T], tries: Tries, asking: Asking) -> T:
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
                replica, reply = self._race.call(attempt, timeout_s, asking.fingerprint)
        found = decode(reply)
        waited_s, has_rows = time.monotonic() - began, asking.reader is not None
        replicas.note_reply(replica, waited_s, asking.fingerprint, has_rows=has_rows)
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
        is_awaited: Callable[[], bool] = always,
    ) -> RetryingReplies[T]:
        """The decoded replies to one request after another: `next_request()` makes one for the missing rest, or None.

        `most_wait_s` is how long the reader waits for a reply at most. `is_awaited` says whether somebody waits for
        what the reader reads, who would notice that it is late.
        """
        return RetryingReplies(self._replicas, method, next_request, decode, deadline, asking, most_wait_s, is_awaited)

    def close(self) -> None:
        """End the calls in flight, also calls that wait for a server."""
        self._replicas.close()
