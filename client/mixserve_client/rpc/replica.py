"""One of the servers of a client, and what its replies have shown."""

import math
import random
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from mixserve_client.errors import Unavailable
from mixserve_client.metrics.requests import way_of
from mixserve_client.schema.server import Load
from mixserve_client.transport.base import Replies, Transport
from mixserve_client.wire.sender import with_trace

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan

# What a request to an idle replica costs at least in the comparison: then outstanding requests count among equals.
_LEAST_COST_S = 0.001
# How fast a slow reply is forgotten, so that a replica that was slow is tried again: by a factor e in so many seconds.
_FORGET_S = 10.0
# What a replica has told, or has shown on average, is too old after so long.
_TOLD_S, _SHOWN_S = 30.0, 120.0
_OLD_S = 60.0  # a server that cannot tell may be replaced by a newer one


class Asked(NamedTuple):
    """A request, as it can be sent once more: `replies` and `reply_bytes` are 0 for a single call."""

    method: str
    data: bytes
    replies: int = 0
    reply_bytes: int = 0

    def send(self, transport: Transport, timeout_s: float) -> None:
        """Send it, and take the first reply. Raises what the call or stream raises."""
        if not self.replies:
            transport.call(self.method, self.data, timeout_s)
            return
        replies = transport.stream(self.method, self.data, timeout_s, self.replies, self.reply_bytes)
        replies.wait_until(time.monotonic() + timeout_s)
        try:
            if next(iter(replies), None) is None:
                raise Unavailable("the server ended a stream without a reply")
        finally:
            replies.cancel()


class Attempt:
    """One request to one replica; its stream if it is one. What is `sent` names the `span`, if there is one."""

    __slots__ = ("__weakref__", "asked", "began", "replica", "replies", "sent", "span")

    def __init__(self, replica: "Replica", asked: Asked, span: "RequestSpan | None" = None):
        self.replica = replica
        self.asked = asked
        self.span = span
        self.sent = asked
        if span is not None:  # not what is asked: a replica that is left out gets it again, when the span has ended
            self.sent = asked._replace(data=with_trace(asked.method, asked.data, span.traceparent))
        self.began = time.monotonic()
        self.replies: Replies | None = None

    def open(self, replies: Replies) -> None:
        """Its stream has been opened."""
        self.replies = replies
        self.replica.attempts.add(self)

    def note_sent(self, *, beside: bool = False) -> None:
        """Tell the span that the request is sent, or sent `beside` another attempt, which is late."""
        if self.span is not None:
            (self.span.hedges if beside else self.span.tries)(self._way)

    def note_answered(self) -> None:
        """Tell the span that this one has answered, and not the one beside it."""
        if self.span is not None:
            self.span.answered(self._way)

    @property
    def _way(self) -> str:
        name = self.replica.transport.name
        if self.asked.replies:
            return name
        return next((way for way in name.split(", ") if way.startswith("grpc ")), name)  # all single calls go this way


class Wrong(NamedTuple):
    """A mixture that a replica does not have, and when to ask it again."""

    ask_at: float
    times: int


class Replica:
    """One server, and what its replies have shown. `Replicas` changes it."""

    def __init__(self, transport: Transport):
        self.transport = transport
        self.address: str = getattr(transport, "target", transport.name)  # as the client was given it
        self.call_way = way_of(transport.name, is_call=True)
        self.is_here = self.call_way == "in-process"  # a call runs in its caller's thread
        # Decides among equals, and which ones are asked if there are many. Clients begin with different ones, or all
        # would begin with the first.
        self.place = random.random()
        self.zone: str | None = None  # None: not asked for, or not known yet
        self.is_asked_for_zone = False
        self.said = ""  # the last error
        # Weak: a stream that is dropped before its first reply has no end that could be noticed.
        self.attempts: weakref.WeakSet[Attempt] = weakref.WeakSet()
        self.calls = 0  # under way
        self.busy_until = 0.0
        self.has_answered = False
        self.out_since = 0.0  # 0: it is in
        self.probe_at = 0.0
        self.probe = Asked("", b"")  # what it failed to answer
        self.probes = 0
        self.is_probed = False
        self.wrong: dict[str, Wrong] = {}  # by fingerprint
        self._wait_s, self._wait_at = 0.0, 0.0
        self._mean_s, self._mean_at = 0.0, -math.inf
        self.tells: bool | None = None  # whether it tells how many readers it has; None: not known yet
        self.load: Load | None = None
        self._told_at = -math.inf

    @property
    def is_in(self) -> bool:
        """Whether it may get requests while others may."""
        return not self.out_since

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self.attempts and not self.calls

    def wait_s(self, now: float) -> float:
        """About how long a reply lets its reader wait: the longest waits count, and are forgotten in time."""
        return self._wait_s * _faded(now - self._wait_at)

    def mean_s(self, now: float) -> float:
        """How long replies have let readers wait, on average over the last ones; 0 if that was long ago."""
        return self._mean_s if now - self._mean_at < _SHOWN_S else 0.0

    def is_known(self, now: float) -> bool:
        """Whether it has told lately, or shown, how long its replies take."""
        return self._told_s(now) > 0 or now - self._mean_at < _SHOWN_S

    def _told_s(self, now: float) -> float:
        return self.load.reply_s if self.load is not None and now - self._told_at < _TOLD_S else 0.0

    def expected_s(self, now: float) -> float:
        """How long a reply is likely to take, as far as is known."""
        return max(self._told_s(now), self.mean_s(now))

    def remembered_s(self, now: float) -> float:
        """As `expected_s`, but what it has shown is forgotten in time."""
        return max(self._told_s(now), self.mean_s(now) * _faded(now - self._mean_at))

    def may_tell(self, now: float) -> bool:
        """Whether it is worth asking for its load."""
        return self.tells is not False or now - self._told_at >= _OLD_S

    def note_load(self, load: Load | None, now: float) -> None:
        """It has told what it has to do; None: it cannot."""
        self.tells, self.load, self._told_at = load is not None, load, now

    def cost(self, now: float) -> tuple[float, float]:
        """What the next request would wait, to compare replicas."""
        wait_s = max(self.wait_s(now), self.expected_s(now)) + _LEAST_COST_S
        return wait_s * (len(self.attempts) + self.calls + 1), self.place

    def note_wait(self, waited_s: float, now: float, *, has_rows: bool = True) -> None:
        """A reply has come after its reader waited so long, or for False one without rows, which says less."""
        if has_rows:
            # Without the first, which had to wait for a connection.
            is_first = now - self._mean_at >= _SHOWN_S
            self._mean_s = 0.0 if is_first else self._mean_s * 0.8 + waited_s * 0.2
            self._mean_at = now
        before_s = self.wait_s(now)
        # At once up, and slowly down.
        self._wait_s, self._wait_at = max(waited_s, before_s * 0.8 + waited_s * 0.2), now

    def may_be_in(self, zone: str) -> bool:
        """Whether it is in this zone, as far as it is known."""
        return self.zone is None or self.zone == zone

    def is_right(self, fingerprint: str, now: float) -> bool:
        """Whether it may get requests for this mixture: it is in, and has not just said that it has another one."""
        wrong = self.wrong.get(fingerprint)
        return self.is_in and (wrong is None or wrong.ask_at <= now)


def _faded(age_s: float) -> float:
    """What is left of a wait of so long ago."""
    return math.exp(-age_s / _FORGET_S)
