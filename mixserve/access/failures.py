"""How often each host failed to say who it is, and how long its next failure should wait for its answer."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from mixserve.access.peers import split_peer

_logger = logging.getLogger("mixserve")

_WINDOW_S = 60.0
_FREE = 5  # failures within a window that are answered at once
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 2.0
_MOST_HOSTS = 4096

Clock = Callable[[], float]


@dataclass(slots=True)
class _Host:
    began: float
    told: float
    failures: int = 0
    untold: int = 0


class Failures:
    """Thread-safe. Remembers up to 4,096 hosts, those that failed last."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def add(self, peer: str) -> float:
        """Count a failure of a gRPC peer. Returns the seconds that its answer should wait."""
        host, now = host_of(peer), self._clock()
        with self._lock:
            known = self._hosts.pop(host, None) or _Host(now, now - _WINDOW_S)
            if now - known.began >= _WINDOW_S:
                known.began, known.failures = now, 0
            known.failures += 1
            known.untold += 1
            self._hosts[host] = known
            while len(self._hosts) > _MOST_HOSTS:
                self._hosts.popitem(last=False)
            over = known.failures - _FREE
            told = _take_untold(known, now)
        _tell(host, told)
        return 0.0 if over <= 0 else min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(over - 1, 10))

    def report(self) -> None:
        """Log the failures of hosts of which no line was logged for a minute, and forget hosts without any.

        For a thread that looks every few seconds: `add` alone would not tell how many came last.
        """
        now = self._clock()
        told: list[tuple[str, int]] = []
        with self._lock:
            for host, known in list(self._hosts.items()):
                if known.untold:
                    told.append((host, _take_untold(known, now)))
                elif now - max(known.began, known.told) >= _WINDOW_S:
                    del self._hosts[host]
        for host, count in told:
            _tell(host, count)


def _take_untold(known: _Host, now: float) -> int:
    """The failures to log now: none if a line was logged less than a minute ago."""
    if now - known.told < _WINDOW_S:
        return 0
    count, known.told, known.untold = known.untold, now, 0
    return count


def _tell(host: str, count: int) -> None:
    if count:
        calls = "1 call" if count == 1 else f"{count:,} calls"
        _logger.warning("refused %s without a valid token from %s", calls, host)


def host_of(peer: str) -> str:
    """The host of a gRPC peer such as `ipv4:10.0.0.1:50000`: without its port, and of IPv6 the network (/64)."""
    kind, host = split_peer(peer)
    if kind not in ("ipv4", "ipv6"):
        return kind or "unknown"
    if kind == "ipv4":
        return host
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    # Whoever has one address of a /64 has them all.
    return str(
        address.ipv4_mapped or (address if address.is_loopback else IPv6Network((int(address), 64), strict=False))
    )
