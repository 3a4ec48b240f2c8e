"""A bound on the bytes of requests over gRPC that have come in part."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

from mixserve.serving.first_request import FirstRequests
from mixserve_client.limited_log import LimitedLog
from mixserve_client.wire.session import REQUEST_BYTES_LIMIT

_logger = logging.getLogger("mixserve")

_PATIENCE_S = 1.0
_LEAST, _MOST = 8, 64


class SilentCalls:
    """Ends calls if too many have waited for their requests for a second, in all threads together."""

    # gRPC does not tell how much of a request has come: so each of these may hold the largest one that it takes.

    def __init__(self, memory_limit: int | None, firsts: Callable[[], Iterable[FirstRequests]]):
        """Their requests may take about an eighth of `memory_limit` bytes, and a gigabyte at most."""
        most = _MOST if memory_limit is None else memory_limit // 8 // REQUEST_BYTES_LIMIT
        self.most = max(_LEAST, min(_MOST, most))
        self.ended = LimitedLog(_logger, "silent_calls")
        self._firsts = firsts

    def end_most(self) -> None:
        """End those that are too many, of the connections that have the most; call it once a second."""
        before = time.monotonic() - _PATIENCE_S
        # Each names its peer once: that of a connection that ends may be another one the next time.
        silent = [
            (first, context, context.peer()) for first in self._firsts() for context in first.silent_since(before)
        ]
        of_one = Counter(peer for _, _, peer in silent)
        for _ in range(len(silent) - self.most):
            peer, _ = of_one.most_common(1)[0]
            at = next(i for i, (_, _, name) in enumerate(silent) if name == peer)
            first, context, _ = silent.pop(at)
            of_one[peer] -= 1
            if first.end(context):
                self.ended.warn(
                    "%d calls have waited for their requests for %g s, which may have come in part: ended one of %s, "
                    "which has the most",
                    len(silent) + 1,
                    _PATIENCE_S,
                    peer,
                )
