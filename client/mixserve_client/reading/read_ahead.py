"""Reads batches that a trainer has not taken yet, in another thread while the trainer computes."""

import time
from collections.abc import Callable, Iterable

from mixserve_client.errors import Unavailable
from mixserve_client.reading.direct import DirectStream

# A trainer that comes back sooner reads at least as fast by itself: to wake a thread, and to wait for it, costs more.
_AWAY_S = 0.0003


class ReadAhead:
    """For one thread at a time, which says when it comes for a batch and when it leaves with it."""

    def __init__(self) -> None:
        self._left_at = 0.0
        self._was_away = self._is_away = True
        self._is_running = False

    def come(self) -> None:
        """The trainer wants a batch."""
        # Twice in a row: once may be the system's scheduler.
        self._was_away, self._is_away = self._is_away, time.monotonic() - self._left_at >= _AWAY_S

    def leave(self, streams: Iterable[DirectStream], submit: Callable[[Callable[[], None]], None]) -> None:
        """The trainer has it. If it keeps being away for long, `submit` a task that reads `streams`, in their order."""
        self._left_at = time.monotonic()
        if not (self._is_away and self._was_away) or self._is_running:
            return
        waiting = [stream for stream in streams if not (stream.comes_by_itself or stream.has_ended)]
        if waiting:
            self._is_running = True
            try:
                submit(lambda: self._read(waiting))
            except BaseException as error:
                self._is_running = False
                if not isinstance(error, Unavailable):  # the client is closed: the next batch will say so
                    raise

    def _read(self, streams: list[DirectStream]) -> None:
        try:
            for stream in streams:
                if not stream.read_ahead():
                    return
        finally:
            self._is_running = False
