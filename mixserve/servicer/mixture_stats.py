"""The figures of mixtures -> metrics."""

from collections.abc import Iterable, Iterator
from statistics import fmean

import numpy as np

from mixserve.metrics.replies import MixtureFigures
from mixserve.servicer.hosted import HostedMixture
from mixserve_client.schema.histogram import SECONDS
from mixserve_client.schema.stats import Metric, MetricKind, counter, gauge

_MIXTURE, _SOURCE, _CLIENT = ("mixture",), ("mixture", "source"), ("mixture", "client")


def mixture_stats(mixtures: Iterable[HostedMixture]) -> Iterator[Metric]:
    """The metrics of all `mixtures`, which must have been warmed up."""
    all_figures = {mixture.name: mixture.figures for mixture in mixtures}
    for figures in all_figures.values():
        figures.add_up()
    yield counter(
        "mixserve_replies_total",
        "Replies with rows. A large batch has several, and one may hold many small batches.",
        {(name,): figures.count for name, figures in all_figures.items()},
        _MIXTURE,
    )
    yield from _source_stats(mixtures, all_figures)
    planned = {mixture.name: mixture.node.mixture.blocks.cache_hits for mixture in mixtures}
    yield counter(
        "mixserve_plan_cache_hits_total",
        "Blocks of thousands of positions that were planned already when a reader came to them.",
        {(name,): hits for name, (hits, _) in planned.items()},
        _MIXTURE,
    )
    yield counter(
        "mixserve_plan_cache_misses_total",
        "Blocks of positions that were planned for a reader.",
        {(name,): misses for name, (_, misses) in planned.items()},
        _MIXTURE,
    )
    yield Metric(
        "mixserve_batch_seconds",
        "Time to make a reply: to plan, gather and encode its rows.",
        MetricKind.HISTOGRAM,
        _MIXTURE,
        tuple(figures.made.sample((name,)) for name, figures in all_figures.items()),
        SECONDS,
    )
    yield Metric(
        "mixserve_stage_seconds",
        "Time of the steps of a reply: plan (choose records), gather (read or copy them), encode (frame the arrays), "
        "and of streams send (until their reader takes the next reply).",
        MetricKind.HISTOGRAM,
        ("mixture", "stage"),
        tuple(
            stage.sample((name, which))
            for name, figures in all_figures.items()
            for which, stage in figures.stages.items()
        ),
        SECONDS,
    )
    yield from _reader_stats(all_figures)


def _source_stats(mixtures: Iterable[HostedMixture], all_figures: dict[str, MixtureFigures]) -> Iterator[Metric]:
    yield counter(
        "mixserve_records_total",
        "Records in replies, by the source that they came from.",
        _by_source(all_figures, {name: figures.records for name, figures in all_figures.items()}),
        _SOURCE,
    )
    yield counter(
        "mixserve_source_bytes_total",
        "Bytes of array data in replies, by the source that they came from.",
        _by_source(all_figures, {name: figures.bytes for name, figures in all_figures.items()}),
        _SOURCE,
    )
    yield counter(
        "mixserve_requested_records_total",
        "Records that the weights ask for at the positions that were read. The share of a source among these is the "
        "requested one, and among mixserve_records_total the realised one. Records that are taken by their ids count "
        "in both.",
        _by_source(all_figures, {name: figures.requested.records for name, figures in all_figures.items()}),
        _SOURCE,
    )
    lengths = {
        mixture.name: np.array([len(leaf) for leaf in mixture.node.mixture.leaves], np.float64) for mixture in mixtures
    }
    yield gauge("mixserve_source_records", "Records that a source has.", _by_source(all_figures, lengths), _SOURCE)
    yield counter(
        "mixserve_passes_total",
        "Records in replies by the length of their source: how often all readers together have read it.",
        _by_source(
            all_figures,
            {
                name: np.divide(
                    figures.records, lengths[name], where=lengths[name] > 0, out=np.zeros(len(lengths[name]))
                )
                for name, figures in all_figures.items()
            },
        ),
        _SOURCE,
    )


def _reader_stats(all_figures: dict[str, MixtureFigures]) -> Iterator[Metric]:
    readers, shares, shares_of_clients = (
        dict[tuple[str, str], int](),
        dict[str, list[float]](),
        dict[tuple[str, str], list[float]](),
    )
    for name, figures in all_figures.items():
        for reader in figures.readers.active():
            readers[name, reader.client] = readers.get((name, reader.client), 0) + 1
            if reader.wait_share is not None:
                shares.setdefault(name, []).append(reader.wait_share)
                shares_of_clients.setdefault((name, reader.client), []).append(reader.wait_share)
    yield gauge(
        "mixserve_readers",
        "Iterators, and clients without one, that have requested something within the last minute.",
        readers,
        _CLIENT,
    )
    yield counter(
        "mixserve_client_records_total",
        "Records in replies, by the client that they went to.",
        {
            (name, client): count
            for name, figures in all_figures.items()
            for client, count in figures.readers.records().items()
        },
        _CLIENT,
    )
    yield gauge(
        "mixserve_client_wait_share",
        "Which part of their time the trainers of a client wait for batches, in 0..1; the mean of its active readers.",
        {name: fmean(values) for name, values in shares_of_clients.items()},
        _CLIENT,
    )
    yield gauge(
        "mixserve_wait_share",
        "Which part of their time trainers wait for batches, in 0..1; the mean of all active readers.",
        {(name,): fmean(values) for name, values in shares.items()},
        _MIXTURE,
    )
    yield gauge(
        "mixserve_readers_apart_positions",
        "Positions between the first and the last active reader of the same stream (key and schedule), at most.",
        {(name,): figures.readers.apart() for name, figures in all_figures.items()},
        _MIXTURE,
    )


def _by_source(all_figures: dict[str, MixtureFigures], values: "dict[str, np.ndarray]") -> dict[tuple[str, ...], float]:
    return {
        (name, leaf): float(value)
        for name, figures in all_figures.items()
        for leaf, value in zip(figures.leaves, values[name], strict=True)
        if not np.isnan(value)
    }
