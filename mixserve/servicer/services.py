"""All services of a server, as one pair of functions."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mixserve import tracing
from mixserve.access.identity import current_caller
from mixserve.error_boundary import error_boundary
from mixserve.limits import ServerLimits
from mixserve.node import MixDataSourcesNode
from mixserve.servicer.mixture_stats import mixture_stats
from mixserve.servicer.mixtures import Mixtures
from mixserve.servicer.replies import Slots
from mixserve.servicer.reply_memory import Message, ReplyMemory
from mixserve.servicer.servicer import MixServicer
from mixserve.servicer.session_servicer import SessionServicer
from mixserve.servicer.session_work import SessionWork
from mixserve.servicer.thread_share import ThreadShare
from mixserve.servicer.visible import visible
from mixserve.sessions import JOURNAL_DAYS, TTL_S, Sessions, StateFolder
from mixserve_client.schema.stats import Metric, by_name, counter, gauge
from mixserve_client.schema.text import show
from mixserve_client.wire import methods
from mixserve_client.wire.checksum import ReplyTo, open_request, seal_reply
from mixserve_client.wire.request import check_small, decode_empty_request
from mixserve_client.wire.stats import encode_stats


class Services:
    """The pure service and the stateful one, over the same `mixtures`, which are names. Thread-safe."""

    def __init__(
        self,
        nodes: Mapping[str, MixDataSourcesNode],
        *,
        placement: str | None = None,
        slots: Slots | None = None,
        memory: ReplyMemory | None = None,
        workers: Sequence[str] = (),
        zone: str = "",
        state_dir: Path | str | None = None,
        session_ttl_s: float = TTL_S,
        journal_days: float = JOURNAL_DAYS,
        limits: ServerLimits | None = None,
    ):
        """`placement` overrides every node's own. `slots` is the memory that clients share with this process.
        `memory` is that of the replies of streams, if these need not be bytes objects.
        `workers` has the addresses of all processes that answer together, if there are several. `zone` is where the
        server is.
        `state_dir` is the folder of sessions and checkpoints; without one, sessions live in memory.

        Raises ValueError for bad arguments, and OSError if the state folder cannot be used.
        """
        tracing.look()
        limits = ServerLimits() if limits is None else limits
        mixtures = Mixtures(nodes, placement)
        if not isinstance(state_dir, str | os.PathLike | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"state_dir must be a folder, or None for none, got {show(state_dir)}")
        folder = None if state_dir is None else StateFolder(Path(state_dir))
        hosted = {mixture.name: mixture.node for mixture in mixtures}
        self.mixtures = mixtures.names
        self._all = mixtures
        self.mix = MixServicer(mixtures, slots=slots, memory=memory, workers=workers, zone=zone, limits=limits)
        try:
            sessions = Sessions(hosted, folder, ttl_s=session_ttl_s, journal_days=journal_days, limits=limits)
        except BaseException:
            if folder is not None:
                folder.close()  # or its lock would keep out a second try in this process
            raise
        self.state = SessionServicer(mixtures, sessions)
        self._of_sessions = frozenset(self.state.methods)
        # What GetStats tells; a server has more to tell.
        self.collect: Callable[[], Iterable[Metric]] = self.stats

    def warm_up(self) -> None:
        """As `MixServicer.warm_up`."""
        self.mix.warm_up()

    def stats(self) -> Iterator[Metric]:
        """The metrics of mixtures and sessions; after `warm_up`."""
        yield from mixture_stats(self._all)
        yield from self.mix.stats()
        yield gauge(
            "mixserve_sessions",
            "Sessions in memory, held by a client or free.",
            self.state.counts(),
            ("mixture", "state"),
        )
        yield counter(
            "mixserve_checkpoints_total",
            "Checkpoints of sessions that were saved, restored and deleted.",
            dict(self.state.checkpoints),
            ("mixture", "operation"),
        )

    @property
    def pure_methods(self) -> tuple[str, ...]:
        """The paths of the methods for `handle` that need no session."""
        return *self.mix.methods, methods.GET_STATS

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of all mixtures, by name; after `warm_up`, without a wait."""
        return {mixture.name: mixture.description.fingerprint for mixture in self._all}

    @property
    def reads_sources(self) -> dict[str, bool]:
        """Whether records of each mixture, by name, are read by code of its sources, rather than copied."""
        return {mixture.name: not mixture.only_copies for mixture in self._all}

    def handle(
        self, method: str, request: bytes, share: ThreadShare | None = None, sessions: SessionWork | None = None
    ) -> bytes:
        """The reply to `request`, with a checksum if the request has one. `share` and errors are as in
        `MixServicer.handle`, and `sessions` is as in `SessionServicer.handle`.
        """
        if tracing.spans is not None:
            with tracing.spans.call(method):
                return self._handle(method, request, share, sessions)
        return self._handle(method, request, share, sessions)

    def _handle(self, method: str, request: bytes, share: ThreadShare | None, sessions: SessionWork | None) -> bytes:
        request, checksum = open_request(request)
        if method == methods.GET_STATS:
            reply = self._get_stats(request)
        elif method in self._of_sessions:
            reply = self.state.handle(method, request, sessions)
        else:
            reply = self.mix.handle(method, request, share)
        return reply if checksum is None else seal_reply(reply, ReplyTo(checksum, 0))

    def _get_stats(self, request: bytes) -> bytes:
        with error_boundary(methods.GET_STATS):
            check_small(methods.GET_STATS, request)
            decode_empty_request("GetStatsRequest", request)
            return encode_stats(visible(by_name(self.collect()).values(), current_caller().identity))

    def stream(
        self, method: str, request: bytes, memory: ReplyMemory | None = None, share: ThreadShare | None = None
    ) -> Generator[Message]:
        """As `MixServicer.stream`, with checksums if the request has one."""
        request, checksum = open_request(request)
        replies = self.mix.stream(method, request, memory, checksum, share)
        yield from replies if tracing.spans is None else tracing.spans.call(method).around(replies)

    def copies_rows(self, method: str, request: bytes) -> bool:
        """As `MixServicer.copies_rows`."""
        return self.mix.copies_rows(method, request)

    def close(self) -> None:
        """Release the state folder, so that another server can use it."""
        self.state.close()
