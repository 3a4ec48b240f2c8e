"""Requests that wait on bulk channels, whole or in part: bounded, or many channels could fill the memory together."""

import logging
import threading
from typing import Protocol

from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

MOST_BYTES = 128 << 20  # in all; 60 of the largest requests
FEW_BYTES = 4096  # of a connection that does not count: as much memory as it takes itself


class Channel(Protocol):
    """A bulk channel."""

    peer: str

    def shutdown(self) -> None:
        """End it."""
        ...


class WaitingRequests:
    """Counts the bytes of each channel that has more than a few. Thread-safe."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.ended = LimitedLog(_logger, "waiting_request_bytes")
        self._most_bytes = most_bytes
        self._bytes = 0
        self._by_channel = dict[Channel, int]()
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """How many bytes there are."""
        return self._bytes

    def note(self, channel: Channel, count: int) -> None:
        """So many bytes wait on a channel now. Ends the channel with the most if there are too many in all."""
        victim: Channel | None = None
        with self._lock:
            self._bytes += count - self._by_channel.pop(channel, 0)
            if count:
                self._by_channel[channel] = count
            if self._bytes > self._most_bytes and count:
                victim = max(self._by_channel, key=self._by_channel.__getitem__)
                self._bytes -= self._by_channel.pop(victim)
        if victim is not None:
            victim.shutdown()
            self.ended.warn(
                "more than %d bytes of requests wait on bulk channels: ended that of %s, which has the most. A client "
                "asks again by itself",
                self._most_bytes,
                victim.peer,
            )
