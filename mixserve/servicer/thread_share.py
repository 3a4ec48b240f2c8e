"""Who may hold the threads of one pool: no mixture takes all of them, however many ask for it, or however it hangs."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mixserve.access.call import error_fields
from mixserve.mixture.gather import SourceReader
from mixserve.servicer.jobs import LOOK_EVERY_S, check_wanted, spread
from mixserve_client.errors import Overloaded
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

_LONGEST_WAIT_S = 5.0
_NO_PROGRESS_S = 1.0  # if no call of a mixture has ended for so long, others do not wait for the next one
_LEAST_RETRY_S, _MOST_RETRY_S = 0.05, 5.0
_SMOOTHING = 0.1

Clock = Callable[[], float]


class _Waiter:
    """A call that waits in its thread, until its gate opens."""

    __slots__ = ("gate", "has_turn")

    def __init__(self) -> None:
        self.has_turn = False
        self.gate = threading.Lock()
        self.gate.acquire()


class _Mixture:
    """What one mixture does in this pool."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = deque[_Waiter]()
        self.last_end = 0.0  # or when it began to do something
        self.mean_s = 0.0
        self.next_return = 0.0
        self.is_full = False
        self.refused = LimitedLog(_logger, "calls_per_mixture")

    @property
    def held(self) -> int:
        return self.running + len(self.waiting)

    def is_stuck(self, now: float) -> bool:
        """Whether no call has ended for a while, longer than calls take."""
        return now - self.last_end >= max(_NO_PROGRESS_S, 2 * self.mean_s)


class ThreadShare:
    """Counts what each mixture does in the threads of a pool. Thread-safe."""

    def __init__(
        self,
        threads: int,
        limit: int,
        mixtures: Sequence[str],
        readers: Mapping[str, SourceReader],
        *,
        room: int,
        clock: Clock = time.monotonic,
    ):
        """Of the `threads`, up to `limit` work for one of the `mixtures` at a time, while up to `room` more wait for
        that in their threads. One is left for each mixture that has none, if a third of all suffices.

        `readers` read for the mixtures whose sources need that.
        """
        self.threads, self._limit, self._room = threads, min(limit, threads), room
        self._readers = readers
        self._clock = clock
        self._lock = threading.Lock()
        self._mixtures = {name: _Mixture() for name in mixtures}
        self._free = threads
        self._without = len(self._mixtures)  # mixtures that hold no thread

    @property
    def refused(self) -> int:
        """How many calls were refused, so far."""
        return sum(mixture.refused.count for mixture in self._mixtures.values())

    def loads(self) -> dict[str, tuple[int, int]]:
        """How many calls work, and how many wait, for each mixture."""
        with self._lock:
            return {name: (mixture.running, len(mixture.waiting)) for name, mixture in self._mixtures.items()}

    def held(self, mixture: str) -> int:
        """How many threads work or wait for a mixture."""
        return self._mixtures[mixture].held

    def work(self, mixture: str) -> "Working":
        """A context in which the thread works for a mixture; it may wait on entering.

        Raises Overloaded if the mixture has its share, and Abandoned.
        """
        return Working(self, mixture)

    def reader(self, mixture: str) -> SourceReader | None:
        """What reads the sources of a mixture; None if the calling thread does."""
        return self._readers.get(mixture)

    def enter(self, name: str) -> float:
        """As entering `work`. Returns the time."""
        with self._lock:
            now, mixture = self._clock(), self._mixtures[name]
            if mixture.running < self._limit and not mixture.waiting and self._has_room(mixture):
                self._hold(mixture, now)
                mixture.running += 1
                return now
            waiter = refusal = None
            if mixture.is_stuck(now) or self._is_full(mixture) or not self._has_room(mixture):
                refusal = self._refuse(name, mixture, now)
            else:
                self._hold(mixture, now)
                waiter = _Waiter()
                mixture.waiting.append(waiter)
        if waiter is None:
            assert refusal is not None
            try:
                raise refusal.logged()
            finally:
                del refusal  # as in error_boundary: the error's traceback leads to this frame
        self._wait(name, mixture, waiter)
        return self._clock()

    def leave(self, name: str, since: float) -> None:
        """The work that began at the time `since` has ended."""
        with self._lock:
            now, mixture = self._clock(), self._mixtures[name]
            mixture.mean_s += _SMOOTHING * (now - since - mixture.mean_s)
            self._pass_on(mixture, now)

    def _wait(self, name: str, mixture: _Mixture, waiter: _Waiter) -> None:
        until = self._clock() + _LONGEST_WAIT_S
        try:
            while not waiter.gate.acquire(timeout=LOOK_EVERY_S):
                check_wanted()
                refusal = None
                with self._lock:
                    now = self._clock()
                    if not waiter.has_turn and (now >= until or mixture.is_stuck(now)):
                        refusal = self._refuse(name, mixture, now)
                if refusal is not None:
                    try:
                        raise refusal.logged()
                    finally:
                        del refusal
        except BaseException:
            with self._lock:
                if waiter.has_turn:
                    self._pass_on(mixture, self._clock())
                else:
                    mixture.waiting.remove(waiter)
                    self._let_go(mixture)
            raise

    def _has_room(self, mixture: _Mixture) -> bool:
        return not mixture.held or self._free > min(self._without, self.threads // 3)

    def _is_full(self, mixture: _Mixture) -> bool:
        """Whether no more calls may wait."""
        # Once full, until half of the room is free. Otherwise the caller whose call has just ended would always find
        # the place that it left, before those who were told to come back later.
        waiting = len(mixture.waiting)
        mixture.is_full = waiting >= self._room or (mixture.is_full and waiting > self._room // 2)
        return mixture.is_full

    def _hold(self, mixture: _Mixture, now: float) -> None:
        """Count a thread that is about to work or wait for the mixture."""
        if not mixture.held:
            self._without -= 1
            mixture.last_end = now
        self._free -= 1

    def _let_go(self, mixture: _Mixture) -> None:
        """Count a thread that has ended to do so."""
        self._free += 1
        if not mixture.held:
            self._without += 1

    def _pass_on(self, mixture: _Mixture, now: float) -> None:
        """One piece of work less: begin the next one that waits."""
        mixture.running -= 1
        mixture.last_end = now
        if mixture.waiting:
            waiter = mixture.waiting.popleft()
            waiter.has_turn = True
            mixture.running += 1
            waiter.gate.release()
        self._let_go(mixture)

    def _refuse(self, name: str, mixture: _Mixture, now: float) -> "_Refusal":
        """Tells clients to come back one after another, as fast as calls end at present."""
        each_s = max(mixture.mean_s, now - mixture.last_end) / self._limit
        mixture.next_return = min(max(mixture.next_return, now) + each_s, now + _MOST_RETRY_S)
        delay_s = spread(max(_LEAST_RETRY_S, mixture.next_return - now))
        words = f"{mixture.running} calls of the mixture {name!r} are under way, and {len(mixture.waiting)} wait"
        error = Overloaded(f"{words}; ask again, or another replica", delay_s)
        return _Refusal(error, mixture.refused, words, now - mixture.last_end)


class _Refusal(NamedTuple):
    """A refusal that is still to be logged, without the lock."""

    error: Overloaded
    log: LimitedLog
    words: str
    since_s: float  # the last end

    def logged(self) -> Overloaded:
        self.log.warn(
            "%s, of which the last one ended %.1f s ago: others are refused. server.limits.calls_per_mixture sets how "
            "many run at a time",
            self.words,
            self.since_s,
            extra=error_fields(self.error),
        )
        return self.error


class Working:
    """The context of `ThreadShare.work`."""

    # A class, because there is one of these around every call.
    __slots__ = ("_mixture", "_share", "_since")

    def __init__(self, share: ThreadShare, mixture: str):
        self._share, self._mixture = share, mixture
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = self._share.enter(self._mixture)

    def __exit__(self, *exception: object) -> None:
        self._share.leave(self._mixture, self._since)
