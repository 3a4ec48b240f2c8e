"""The figures of a server -> metrics."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from mixserve.access.certificates import Certificates
from mixserve.faults import FAULTS
from mixserve.metrics.calls import CallFigures
from mixserve.servicer.thread_share import ThreadShare
from mixserve.serving.memory import own_bytes
from mixserve.serving.unread import UnreadReplies
from mixserve_client.limited_log import limit_hits
from mixserve_client.schema.histogram import SECONDS
from mixserve_client.schema.stats import Metric, MetricKind, counter, gauge

_METHOD, _MIXTURE = ("method",), ("mixture",)


class ServerStats:
    """Collects the metrics of one server. Thread-safe."""

    def __init__(
        self,
        services: Callable[[], Iterable[Metric]],
        calls: CallFigures,
        shares: Mapping[str, ThreadShare],
        unread: UnreadReplies,
        memory_limit: int | None,
        answering: Callable[[], Mapping[str, bool]],
        is_ready: Callable[[], bool],
        bulk_channels: Callable[[], int],
        certificates: Certificates | None = None,
    ):
        """`shares` are the threads by the way in which replies go. `answering` tells which mixtures get records."""
        self._started, self._version = time.time(), version("mixserve")  # which is read from a file
        self._certificates = certificates
        self._services = services
        self._calls = calls
        self._shares = dict(shares)
        self._unread = unread
        self._memory_limit = memory_limit
        self._answering = answering
        self._is_ready = is_ready
        self._bulk_channels = bulk_channels

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        is_ready = self._is_ready()
        yield gauge("mixserve_build_info", "The server's version.", {(self._version,): 1}, ("version",))
        yield gauge(
            "mixserve_start_time_seconds",
            "When the server was started, in seconds since 1970: its counters began at 0 then.",
            {(): self._started},
        )
        yield gauge("mixserve_serving", "1 while the server answers calls, 0 while it starts or stops.", {(): is_ready})
        yield gauge(
            "mixserve_mixture_serving",
            "1 while the mixture gets records from its sources, 0 while its reads hang.",
            {(name,): is_ready and answers for name, answers in self._answering().items()},
            _MIXTURE,
        )
        yield from self._call_stats()
        for which, share in self._shares.items():
            yield gauge(
                "mixserve_under_way",
                "Single calls, replies of streams, by how they are sent, and calls on sessions that are under way.",
                {(name, which): running for name, (running, _) in share.loads().items()},
                ("mixture", "way"),
            )
            yield gauge(
                "mixserve_waiting",
                "Those that wait for their turn, because their mixture has as many under way as it may.",
                {(name, which): waiting for name, (_, waiting) in share.loads().items()},
                ("mixture", "way"),
            )
        yield gauge(
            "mixserve_unread_reply_bytes", "Bytes of replies that readers have not taken.", {(): self._unread.bytes}
        )
        yield counter("mixserve_reply_bytes_total", "Bytes of all replies.", {(): self._unread.made_bytes})
        yield gauge("mixserve_bulk_channels", "Bulk channels that are open.", {(): self._bulk_channels()})
        yield counter(
            "mixserve_limit_hits_total",
            "How often a limit was hit, by its name: see server.limits.",
            {(name,): count for name, count in limit_hits().items()},
            ("limit",),
        )
        yield counter(
            "mixserve_faults_total",
            "Calls that ended with ServerFault, by the class of what a source or the server raised.",
            FAULTS.counts(),
            ("mixture", "source", "error"),
        )
        if (own := own_bytes()) is not None:
            yield gauge("mixserve_memory_bytes", "Memory that memory_limit limits.", {(): own})
        if self._memory_limit is not None:
            yield gauge(
                "mixserve_memory_limit_bytes", "memory_limit, or what was found for it.", {(): self._memory_limit}
            )
        if self._certificates is not None:
            yield gauge(
                "mixserve_certificate_expiry_timestamp_seconds",
                "When the server's certificate ends, in seconds since 1970: the one that new connections get.",
                {(): self._certificates.pair.expires},
            )
        if is_ready:  # before, the figures of mixtures would wait for their fingerprints
            yield from self._services()

    def _call_stats(self) -> Iterator[Metric]:
        calls = self._calls
        calls.add_up()
        yield counter("mixserve_calls_total", "Calls that ended.", calls.calls.copy(), ("method", "mixture"))
        yield counter(
            "mixserve_errors_total",
            "Calls that ended with an error, by its class.",
            calls.errors.copy(),
            ("method", "mixture", "error"),
        )
        yield Metric(
            "mixserve_call_seconds",
            "From the beginning of a call, or of a stream, to its end.",
            MetricKind.HISTOGRAM,
            _METHOD,
            tuple(histogram.sample((method,)) for method, histogram in calls.seconds.copy().items()),
            SECONDS,
        )
