"""The figures of a client -> metrics."""

import time
from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple

from mixserve_client.metrics.reading import ReadingFigures, Totals
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.schema.histogram import SECONDS
from mixserve_client.schema.stats import Metric, MetricKind, counter, gauge

# As servers do, which do not count a reader that has requested nothing for so long.
_ACTIVE_S = 60.0
_MIXTURE = ("mixture",)


class ReplicaCounts(NamedTuple):
    """How many replicas there are, how many get no requests at present, and what has happened with them."""

    all: int
    out: int
    failovers: int
    hedges: int


def client_metrics(
    name: str, reading: ReadingFigures, requests: RequestFigures, replicas: ReplicaCounts
) -> Iterator[Metric]:
    """The metrics of the client `name`."""
    yield gauge("mixserve_client_info", "1, with the name that the server shows.", {(name,): 1}, ("client",))
    yield from _reading_metrics(reading.totals())
    yield from _wait_metrics(reading)
    yield counter(
        "mixserve_client_requests_total",
        "Requests that were sent, also those that were sent once more.",
        requests.requests,
        ("method", "transport"),
    )
    yield counter(
        "mixserve_client_retries_total",
        "Requests that were sent once more, by the class of the error before.",
        {(error,): count for error, count in requests.retries.items()},
        ("error",),
    )
    yield counter(
        "mixserve_client_corrupt_replies_total",
        "Replies that were damaged on the way, or did not fit their requests.",
        {(): requests.corrupt_replies},
    )
    yield counter(
        "mixserve_client_connections_total",
        "Connections that were opened: of gRPC (which connects again by itself), bulk channels, shared memory.",
        {(transport,): count for transport, count in requests.connections.items()},
        ("transport",),
    )
    yield counter(
        "mixserve_client_failovers_total",
        "How often a replica was left out because it did not answer.",
        {(): replicas.failovers},
    )
    yield counter(
        "mixserve_client_hedges_total",
        "Requests that were sent to another replica as well, because a reply was late.",
        {(): replicas.hedges},
    )
    yield gauge(
        "mixserve_client_replicas",
        "Servers that the client was given, or that its names stand for.",
        {(): replicas.all},
    )
    yield gauge(
        "mixserve_client_replicas_out",
        "Those that get no requests at present: they do not answer, or have another mixture.",
        {(): replicas.out},
    )


def _reading_metrics(totals: dict[str, Totals]) -> Iterator[Metric]:
    yield counter(
        "mixserve_client_batches_total",
        "Batches that iterators and single calls have returned.",
        {(name,): one.batches for name, one in totals.items()},
        _MIXTURE,
    )
    yield counter(
        "mixserve_client_batch_records_total",
        "Records in these batches.",
        {(name,): one.records for name, one in totals.items()},
        _MIXTURE,
    )
    yield counter(
        "mixserve_client_batch_bytes_total",
        "Bytes of the arrays in these batches.",
        {(name,): one.bytes for name, one in totals.items()},
        _MIXTURE,
    )
    yield counter(
        "mixserve_client_wait_seconds_total",
        "Time in `next` of iterators, but for their start-ups.",
        {(name,): one.waited_s for name, one in totals.items()},
        _MIXTURE,
    )
    yield counter(
        "mixserve_client_start_seconds_total",
        "Time in `next` until the first batch of an iterator, and until the first one after each restore or reset.",
        {(name,): one.started_s for name, one in totals.items()},
        _MIXTURE,
    )
    yield Metric(
        "mixserve_client_next_seconds",
        "Time in each `next` of an iterator that returned a batch.",
        MetricKind.HISTOGRAM,
        _MIXTURE,
        tuple(one.seconds.sample((name,)) for name, one in totals.items()),
        SECONDS,
    )


def _wait_metrics(reading: ReadingFigures) -> Iterator[Metric]:
    active, shares, now = dict[tuple[str, ...], int](), dict[tuple[str, ...], list[float]](), time.monotonic()
    for mixture, waits in reading.waits():
        if waits.since is not None or now - waits.left_at < _ACTIVE_S:
            active[mixture,] = active.get((mixture,), 0) + 1
            if (share := waits.at(now)) is not None:
                shares.setdefault((mixture,), []).append(share)
    yield gauge(
        "mixserve_client_iterators", "Iterators that have returned a batch within the last minute.", active, _MIXTURE
    )
    yield gauge(
        "mixserve_client_iterator_wait_share",
        "Which part of the last 30 s or so a trainer has waited for batches, in 0..1; the mean of these iterators.",
        {mixture: fmean(values) for mixture, values in shares.items()},
        _MIXTURE,
    )
