"""Asks servers for their statistics."""

from collections.abc import Iterator
from dataclasses import replace

from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.schema.stats import Metric, Sample, Stats, by_name
from mixserve_client.wire import methods
from mixserve_client.wire.stats import decode_stats, encode_stats_request

_LABEL = "server"


def server_stats(caller: RetryingCaller, deadline: float | None) -> dict[str, Metric]:
    """The metrics of all replicas, each with the name of its server as a label. Raises what `ask_each` raises."""
    found = caller.ask_each(methods.GET_STATS, encode_stats_request(), decode_stats, deadline)
    return by_name(metric for address, stats in found.items() for metric in _labelled(stats, address))


def _labelled(stats: Stats, name: str) -> Iterator[Metric]:
    for metric in stats.values():
        samples = tuple(Sample((*one.labels, name), one.value, one.counts) for one in metric.samples)
        yield replace(metric, labels=(*metric.labels, _LABEL), samples=samples)
