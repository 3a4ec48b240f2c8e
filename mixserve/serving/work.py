"""The threads that a server has for its mixtures, shared out among them, and those that read their sources."""

from collections.abc import Mapping

from mixserve.limits import ServerLimits
from mixserve.servicer.readers import Readers
from mixserve.servicer.thread_share import ThreadShare
from mixserve.serving import bulk_threads, streams
from mixserve_client.rpc.threads import DaemonThreadPool

# What finds its mixture's share in use waits in a thread for its turn; a thread that waits takes 0.1 MB or less.
_ROOM = 128
_MOST_LEFT = 16  # threads for other mixtures


class MixtureWork:
    """What each mixture may do at a time: single calls, streams over gRPC, and streams over bulk channels."""

    def __init__(self, mixtures: Mapping[str, bool], limits: ServerLimits):
        """`mixtures` says of each whether its sources are read by code of their own, rather than copied."""
        limit, names = limits.calls_per_mixture, tuple(mixtures)
        few = min(limit, streams.THREADS), min(limit, bulk_threads.THREADS)
        most = limit + sum(few)
        self._pools = {
            name: DaemonThreadPool(most, on_exit=_nothing, name="mixserve-read")
            for name, reads in mixtures.items()
            if reads
        }
        self._readers = {
            name: Readers(name, pool.start, most, limits.read_timeout_s) for name, pool in self._pools.items()
        }
        # Calls of a lone mixture wait for a thread without one: none is needed to tell them from those of others. Nor
        # do streams that only copy, since they take turns and do not hang.
        more = 0 if len(names) == 1 else _ROOM + min(len(names) - 1, _MOST_LEFT)
        more_streams = more if self._readers else 0
        self.calls = ThreadShare(limit + more, limit, names, self._readers, room=_ROOM)
        self.streams = ThreadShare(streams.THREADS + more_streams, few[0], names, self._readers, room=_ROOM)
        self.bulk = ThreadShare(bulk_threads.THREADS + more_streams, few[1], names, self._readers, room=_ROOM)

    def is_stuck(self, mixture: str) -> bool:
        """Whether the sources of a mixture do not answer (`Readers.is_stuck`)."""
        readers = self._readers.get(mixture)
        return readers is not None and readers.is_stuck()

    def close(self) -> None:
        """End the threads that read, after their reads."""
        for pool in self._pools.values():
            pool.close()


def _nothing() -> None:
    pass
