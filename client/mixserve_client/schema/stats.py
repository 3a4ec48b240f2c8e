"""Statistics of a server or a client: metrics as Prometheus names them, with the values at one moment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum


class MetricKind(Enum):
    """What the values of a metric are."""

    COUNTER = "counter"  # only grows, from 0 at the start of the process
    GAUGE = "gauge"
    HISTOGRAM = "histogram"  # how many observations lie in each bucket, and their sum


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric, for one combination of its labels' values.

    Of a histogram, `value` is the sum of the observations, and `counts` says how many lie in each bucket: up to the
    first bound, between two bounds, and above the last one.
    """

    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of a histogram's observations."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by its name, which ends with its unit, and `_total` if it is a counter.

    `labels` are the names of the labels whose values the samples have, in the same order. `bounds` are the upper bounds
    of a histogram's buckets, ascending, without infinity.
    """

    name: str
    help: str
    kind: MetricKind
    labels: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    bounds: tuple[float, ...] = ()

    def value(self, **labels: str) -> float:
        """The sum of the values of the samples that have these labels; 0 if there are none."""
        return sum(sample.value for sample in self.select(**labels))

    def select(self, **labels: str) -> list[Sample]:
        """The samples that have these labels."""
        wanted = [(self.labels.index(name), value) for name, value in labels.items()]
        return [sample for sample in self.samples if all(sample.labels[at] == value for at, value in wanted)]


Stats = Mapping[str, Metric]
"""Metrics by name."""


def counter(name: str, text: str, values: Mapping[tuple[str, ...], float], labels: Sequence[str] = ()) -> Metric:
    """A counter with a sample for each combination of label values."""
    return Metric(name, text, MetricKind.COUNTER, tuple(labels), _samples(values))


def gauge(name: str, text: str, values: Mapping[tuple[str, ...], float], labels: Sequence[str] = ()) -> Metric:
    """A gauge with a sample for each combination of label values."""
    return Metric(name, text, MetricKind.GAUGE, tuple(labels), _samples(values))


def by_name(metrics: Iterable[Metric]) -> dict[str, Metric]:
    """The metrics by name; samples of metrics of one name come together."""
    found = dict[str, Metric]()
    for one in metrics:
        known = found.get(one.name)
        found[one.name] = one if known is None else replace(one, samples=known.samples + one.samples)
    return found


def _samples(values: Mapping[tuple[str, ...], float]) -> tuple[Sample, ...]:
    return tuple(Sample(labels, float(value)) for labels, value in values.items())
