"""A stream's wait for its next reply: too long, and its attempt ends; late, and another replica is asked as well."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.rpc.replica import Attempt
from mixserve_client.rpc.replicas import Replicas
from mixserve_client.transport.base import Replies, Reply

_LOG_AFTER_S, _LOG_EVERY_S = 5.0, 300.0
# A replica that was so late is left out until it answers again.
LOST_S = 0.3


def always() -> bool:
    """A caller waits."""
    return True


class Rival(NamedTuple):
    """A stream of another replica for the same rows, and its first reply."""

    attempt: Attempt
    replies: Iterator[Reply]
    first: Reply

    def discard(self) -> None:
        """It came too late."""
        if self.attempt.replies is not None:
            self.attempt.replies.cancel()


# Opens a stream for the rows that are missing, at another replica than that of the attempt, whose reader has waited for
# so many seconds; None if there is none.
OpenRival = Callable[[Attempt, float], Attempt | None]


class StreamWait:
    """One after another, the waits of one reader. It calls `begin` and `end`; `Watch` calls `look`."""

    def __init__(
        self,
        replicas: Replicas,
        attempt: Attempt,
        open_rival: OpenRival | None = None,
        is_awaited: Callable[[], bool] = always,
    ):
        """Without `open_rival`, no other replica is asked. `is_awaited` is that of `RetryingCaller.stream`."""
        self.attempt = attempt
        self.late: Unavailable | None = None  # why the attempt was ended
        self._replicas = replicas
        self._open_rival = open_rival
        self._is_awaited = is_awaited
        self._since = 0.0  # 0: nobody waits
        self._limit_s: float | None = None
        self._log_after_s = _LOG_AFTER_S
        self._number = 0
        self._hedged = -1  # the number of the wait for which a rival was asked
        self._rival: Rival | None = None
        self._handing_over = threading.RLock()

    def begin(self, limit_s: float | None, since: float | None = None) -> None:
        """The reader waits for a reply since `since` (None: now), at most `limit_s` seconds (None: no limit)."""
        self._limit_s, self._since = limit_s, time.monotonic() if since is None else since
        if limit_s is not None:
            self._replicas.watch.need(limit_s)
        if self._replicas.hedging is not None:
            self._replicas.watch.need(2 * self._replicas.hedging.after_s)

    def end(self) -> tuple[float, Rival | None]:
        """The reader has a reply, or an error. Returns how long it waited, and who has answered in the meantime."""
        waited_s, self._since = time.monotonic() - self._since, 0.0
        self._log_after_s = _LOG_AFTER_S
        if self._replicas.hedging is None:
            return waited_s, None
        with self._handing_over:
            self._number += 1
            rival, self._rival = self._rival, None
        return waited_s, rival

    def follow(self, rival: Rival) -> Replies:
        """Wait for the replies of `rival` from now on, which are returned."""
        self.attempt, self.late = rival.attempt, None
        rival.attempt.note_answered()
        assert rival.attempt.replies is not None
        return rival.attempt.replies

    def look(self, now: float) -> None:
        """Do what is due."""
        since, limit_s, number, hedging = self._since, self._limit_s, self._number, self._replicas.hedging
        waited_s = now - since
        if not since or waited_s <= 0:
            return
        name = self.attempt.replica.transport.name
        if hedging is not None and self._hedged != number and waited_s >= hedging.after_s and self._is_awaited():
            # Not for what is read ahead: it may come in time, and the few requests that may be sent twice are for those
            # that a trainer waits for.
            self._hedge(number, since, waited_s)
        if limit_s is not None and waited_s >= limit_s and self._since == since:
            self.late = Unavailable(f"{name}: no reply came for {waited_s:.1f} s")
            self._abandon()
        elif waited_s >= self._log_after_s:
            said = self.attempt.replica.said
            self._replicas.logs.warn(
                "waiting for a reply",
                "still waiting for a reply of %s, for %.0f s now%s",
                name,
                waited_s,
                f"; it said last: {said}" * bool(said),
            )
            self._log_after_s = waited_s + min(waited_s, _LOG_EVERY_S)

    def _hedge(self, number: int, since: float, waited_s: float) -> None:
        threads, hedging, open_rival = self._replicas.threads, self._replicas.hedging, self._open_rival
        assert threads is not None
        assert hedging is not None
        if open_rival is None or not hedging.may_take(waited_s):
            return
        if self._replicas.choose({self.attempt.replica}) is None:
            return
        self._hedged = number
        with suppress(Unavailable):  # the client is closed
            threads.start(lambda: self._race(open_rival, number, since, waited_s))

    def _race(self, open_rival: OpenRival, number: int, since: float, late_s: float) -> None:
        """Ask another replica; if it answers first, its stream takes the place of this one."""
        rival = None
        try:
            rival = open_rival(self.attempt, late_s)
            if rival is None or rival.replies is None:
                return
            replies = iter(rival.replies)
            first = self._first(rival, replies)
            with self._handing_over:
                if first is not None and self._number == number:
                    self._rival = Rival(rival, replies, first)
                    rival = None
        except MixserveError as error:
            if rival is not None:
                self._replicas.note_failure(rival, error)
        finally:
            if rival is not None and rival.replies is not None:
                rival.replies.cancel()
        if self._rival is not None:
            waited_s = time.monotonic() - since
            if waited_s >= LOST_S:
                self.late = Unavailable(
                    f"{self.attempt.replica.transport.name}: no reply came for {waited_s:.1f} s, and another one "
                    "answered"
                )
            self._abandon()

    def _first(self, rival: Attempt, replies: Iterator[Reply]) -> Reply | None:
        wait = StreamWait(self._replicas, rival)
        wait.begin(self._limit_s)
        self._replicas.watch.add(wait)
        try:
            return next(replies, None)
        finally:
            self._replicas.watch.remove(wait)

    def _abandon(self) -> None:
        replies = self.attempt.replies
        if replies is not None:
            replies.abandon()
