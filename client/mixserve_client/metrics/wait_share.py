"""Which part of its time a trainer waits for batches: arithmetic on times, of which none is taken here."""

import math
import threading

# Time counts less by a factor e for each so many seconds of age. So it is as old on average as in a window of 30 s.
_FADES_S = 15.0
# A share that changes this slowly need not be computed for each request.
_EVERY_S = 0.1


class WaitShare:
    """Sums up the waits of a trainer, and says which share of its last 30 s or so it has waited.

    Start-up is no hunger: the time until the first batch, and until the first one after `restart`, counts apart.

    One thread sets `since` when the trainer comes for a batch, and then calls `leave` or `give_up`; any thread may ask
    `at`. All times are of one clock, in seconds.
    """

    __slots__ = (
        "_at",
        "_counted_s",
        "_is_starting",
        "_lasted",
        "_lock",
        "_waited",
        "left_at",
        "since",
        "started_s",
        "waited_s",
    )

    def __init__(self) -> None:
        self.waited_s = 0.0  # in all, without start-ups
        self.started_s = 0.0  # in start-ups
        self.left_at = 0.0  # when the trainer got its last batch
        self.since: float | None = None  # when the trainer came for the batch that it waits for, if it does
        self._is_starting = True
        # Seconds that faded, of waits and of all time up to `_at`, when `_counted_s` of the waits were counted.
        self._waited = self._lasted = 0.0
        self._at = self._counted_s = 0.0
        self._lock = threading.RLock()  # reentrant: a signal handler may read on in a thread that holds it

    def leave(self, came: float, now: float) -> None:
        """The trainer that came at `came` goes on with its batch."""
        if self._is_starting:
            self.started_s += now - came
            self._at, self._counted_s = now, self.waited_s
            self._is_starting = False
        else:
            self.waited_s += now - came
        self.since = None
        self.left_at = now

    def give_up(self, came: float, now: float) -> None:
        """The trainer that came at `came` goes on without a batch: there was an error, or the end."""
        if self._is_starting:
            self.started_s += now - came
        else:
            self.waited_s += now - came
        self.since = None

    def restart(self, now: float) -> None:
        """The trainer goes elsewhere in its data: what it waits until the next batch is start-up."""
        with self._lock:
            if not self._is_starting:
                self._advance(now)
                self._is_starting = True

    def at(self, now: float) -> float | None:
        """The share of waits, in 0..1; None while nothing is known."""
        with self._lock:
            if not self._is_starting and now - self._at >= _EVERY_S:
                self._advance(now)
            return self._waited / self._lasted if self._lasted else None

    def _advance(self, now: float) -> None:
        """Count the time since `_at`. Where in it the waits lie does not matter, or the share would depend on whether
        the trainer asks after its waits or before them."""
        since, lasted_s = self.since, now - self._at
        if lasted_s <= 0:
            return
        waited_s = self.waited_s + (0.0 if since is None else max(0.0, now - since))
        # Another thread may end a wait between these reads, and two callers may wait at once.
        part = min(max((waited_s - self._counted_s) / lasted_s, 0.0), 1.0)
        faded = math.exp(-lasted_s / _FADES_S)
        gained = -math.expm1(-lasted_s / _FADES_S)
        self._waited = self._waited * faded + part * gained
        self._lasted = self._lasted * faded + gained
        self._at, self._counted_s = now, waited_s
