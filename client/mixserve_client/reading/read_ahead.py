"""Requests and reads batches before a trainer takes them, in another thread while the trainer computes."""

import threading
from collections.abc import Callable
from contextlib import suppress

from mixserve_client.errors import Unavailable
from mixserve_client.reading.direct import DirectStream

# A trainer that comes back sooner reads at least as fast by itself: to wake a thread, and to wait for it, costs more.
# After a longer step its processor's caches have lost the code that reads a batch, which takes many times as long then.
_AWAY_S = 0.0003

Submit = Callable[[Callable[[], None]], None]


class ReadAhead:
    """Decides whether another thread should read ahead, and runs it. For one thread, the trainer's."""

    def __init__(self) -> None:
        self.left_at = 0.0  # when the trainer got its last batch, a time of `time.monotonic()`
        self._was_away = self._is_away = True
        # Reentrant: the garbage collector may refill an iterator's window in a thread that holds it.
        self._lock = threading.RLock()
        self._is_running = False
        self._again = False

    @property
    def is_wanted(self) -> bool:
        """Whether the trainer computes between its batches."""
        return self._is_away and self._was_away  # twice in a row: once may be the system's scheduler

    def come(self, now: float) -> None:
        """The trainer comes for a batch; `now` is a time of `time.monotonic()`."""
        self._was_away, self._is_away = self._is_away, now - self.left_at >= _AWAY_S

    def start(self, list_streams: Callable[[], list[DirectStream]], submit: Submit) -> None:
        """Have a thread request and read the streams, in their order; one that runs already looks at them again."""
        with self._lock:
            self._again = True
            if self._is_running:
                return
            self._is_running = True
        try:
            submit(lambda: self._run(list_streams))
        except BaseException as error:
            self._is_running = False
            if not isinstance(error, Unavailable):  # the client is closed: the next batch will say so
                raise

    def _run(self, list_streams: Callable[[], list[DirectStream]]) -> None:
        while True:
            with self._lock:
                if not self._again:
                    self._is_running = False
                    return
                self._again = False
            with suppress(Exception):  # the trainer's thread meets the same error, and raises it
                streams = list_streams()
                for stream in streams:
                    stream.begin()
                for stream in streams:
                    if not stream.read_ahead():
                        break
                del streams
