"""Metrics -> what Prometheus reads, by its own library."""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mixserve_client.schema.stats import Metric, MetricKind, by_name

Collect = Callable[[], Iterable[Metric]]


def registry_of(collect: Collect) -> CollectorRegistry:
    """A registry of what `collect` returns when Prometheus asks, and of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class _Collector(Collector):
    def __init__(self, collect: Collect):
        self._collect = collect

    def collect(self) -> Iterator[Family]:
        return map(_family, by_name(self._collect()).values())


def _family(metric: Metric) -> Family:
    if metric.kind == MetricKind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(str, metric.bounds), "+Inf"]
        for sample in metric.samples:
            buckets = list(zip(bounds, map(float, accumulate(sample.counts)), strict=True))
            histogram.add_metric(sample.labels, buckets, sample.value)
        return histogram
    # Their class for counters adds "_total" to the name.
    kind = CounterMetricFamily if metric.kind == MetricKind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for sample in metric.samples:
        family.add_metric(sample.labels, sample.value)
    return family
