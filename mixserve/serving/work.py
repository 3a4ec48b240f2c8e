"""The threads that a server has for its mixtures, shared out among them, and those that read their sources."""

from collections.abc import Mapping, Sequence

from mixserve.limits import ServerLimits
from mixserve.servicer.jobs import Jobs
from mixserve.servicer.reading_threads import ReadingThreads
from mixserve.servicer.session_work import ALL, WORDS, SharedOut
from mixserve.servicer.thread_share import ThreadShare
from mixserve.serving import bulk_threads, streams
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.wire import methods

# What finds its mixture's share in use waits in a thread for its turn; a thread that waits takes 0.1 MB or less.
_ROOM = 128
_MOST_LEFT = 16  # threads for other mixtures
# Calls of sessions wait for disks, and openings for slow sources.
_SESSION_CALLS, _OPENINGS, _LISTS = 16, 4, 2


class MixtureWork:
    """What each mixture may do at a time: single calls, streams over gRPC and over bulk channels, calls of sessions."""

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
            name: ReadingThreads(name, pool.start, most, limits.read_timeout_s) for name, pool in self._pools.items()
        }
        # Calls of a lone mixture wait for a thread without one: none is needed to tell them from those of others. Nor
        # do streams that only copy, since they take turns and do not hang.
        more = 0 if len(names) == 1 else _ROOM + min(len(names) - 1, _MOST_LEFT)
        more_streams = more if self._readers else 0
        self.calls = ThreadShare(limit + more, limit, names, self._readers, room=_ROOM)
        self.streams = ThreadShare(streams.THREADS + more_streams, few[0], names, self._readers, room=_ROOM)
        self.bulk = ThreadShare(bulk_threads.THREADS + more_streams, few[1], names, self._readers, room=_ROOM)

        self.sessions = self._share_sessions(names, limit, more, limits.read_timeout_s)

    @property
    def shares(self) -> dict[str, ThreadShare]:
        """How the threads are shared out, by the way in which replies go."""
        of_sessions = self.sessions.shares
        return {
            "call": self.calls,
            "stream": self.streams,
            "bulk": self.bulk,
            "session": of_sessions[methods.CALL_SESSION],
            "opening": of_sessions[methods.OPEN_SESSION],
        }

    def is_stuck(self, mixture: str) -> bool:
        """Whether the sources of a mixture do not answer (`Jobs.is_stuck`)."""
        readers = self._readers.get(mixture)
        return (readers is not None and readers.is_stuck()) or self.sessions.jobs[mixture].is_stuck()

    def close(self) -> None:
        """End the threads that read and those of sessions, after what they do."""
        for pool in (*self._pools.values(), *self._session_pools):
            pool.close()

    def _share_sessions(self, names: Sequence[str], limit: int, more: int, timeout_s: float) -> SharedOut:
        few = {
            methods.CALL_SESSION: min(limit, _SESSION_CALLS),
            methods.OPEN_SESSION: min(limit, _OPENINGS),
            methods.LIST_SESSIONS: min(limit, _LISTS),
        }
        kinds = dict.fromkeys(few, tuple(names)) | {methods.LIST_SESSIONS: (*names, ALL)}
        shares = {
            method: ThreadShare(one + more, one, kinds[method], self._readers, room=_ROOM)
            for method, one in few.items()
        }
        most = few[methods.CALL_SESSION] + few[methods.OPEN_SESSION]
        pools = [DaemonThreadPool(most, on_exit=_nothing, name="mixserve-session-call") for _ in names]
        self._session_pools = pools
        jobs = {name: Jobs(name, pool.start, most, timeout_s, WORDS) for name, pool in zip(names, pools, strict=True)}
        return SharedOut(shares, jobs)


def _nothing() -> None:
    pass
