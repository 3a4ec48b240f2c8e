"""When a reply is so late that another replica is asked as well, and how often that may happen."""

import threading
from collections import deque

_SHARE = 0.05  # of requests
# Replies that are a little late may not use up what is needed when a replica is lost.
_AT_FIRST, _RESERVED, _MOST_SAVED = 2.0, 2.0, 8.0
_LATE = 0.95  # quantile of the waits
_KEPT, _EVERY = 128, 16
# Below it, threads that wait for a core make as many replies late as replicas do. Above it a trainer feels the wait.
_LEAST_S, LATEST_S = 0.02, 0.3


class Hedging:
    """Counts requests and waits. Thread-safe."""

    def __init__(self) -> None:
        self.sent = 0
        self._saved = _AT_FIRST
        self._waits = deque[float](maxlen=_KEPT)
        self._new = 0
        self._lock = threading.Lock()
        self.after_s = LATEST_S  # how long to wait for a reply before another replica is asked

    def note_request(self) -> None:
        """A request is sent: of twenty, one more may be."""
        with self._lock:
            self._saved = min(self._saved + _SHARE, _MOST_SAVED)

    def note_wait(self, waited_s: float) -> None:
        """A reply has come after so long."""
        with self._lock:
            self._waits.append(waited_s)
            self._new += 1
            if self._new < _EVERY:
                return
            self._new = 0
            late_s = sorted(self._waits)[int(len(self._waits) * _LATE)]
        self.after_s = min(max(late_s, _LEAST_S), LATEST_S)

    def may_take(self, waited_s: float) -> bool:
        """Whether `take` would be true now."""
        return self._saved >= 1.0 + (waited_s < LATEST_S) * _RESERVED

    def take(self, waited_s: float) -> bool:
        """Whether one more request may be sent after a wait of so long; counts it. Call it when all else is known."""
        with self._lock:
            if not self.may_take(waited_s):
                return False
            self._saved -= 1.0
            self.sent += 1
            return True
