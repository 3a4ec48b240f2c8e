"""Samples of several servers and processes -> one value for each combination of some labels."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from mixserve_client.schema.stats import Metric, Sample, Stats

Labels = tuple[str, ...]


def group(
    stats: Iterable[Stats],
    name: str,
    labels: Sequence[str] = (),
    combine: Callable[[Iterable[float]], float] = math.fsum,
) -> dict[Labels, float]:
    """The values of the metric `name` by the values of these labels; `combine` makes one value of several.

    Metrics that lack one of the labels are left out.
    """
    found = dict[Labels, list[float]]()
    for metric, sample in _samples(stats, name, labels):
        found.setdefault(_pick(metric, sample, labels), []).append(sample.value)
    return {which: combine(values) for which, values in found.items()}


def group_counts(
    stats: Iterable[Stats], name: str, labels: Sequence[str]
) -> dict[Labels, tuple[Sequence[float], Sequence[int]]]:
    """Bounds and counts of the histogram `name` by the values of these labels. Histograms with other bounds than the
    first one are left out."""
    found = dict[Labels, tuple[Sequence[float], Sequence[int]]]()
    for metric, sample in _samples(stats, name, labels):
        which = _pick(metric, sample, labels)
        bounds, counts = found.get(which, (metric.bounds, (0,) * (len(metric.bounds) + 1)))
        if bounds == metric.bounds and len(sample.counts) == len(counts):
            found[which] = bounds, tuple(map(sum, zip(counts, sample.counts, strict=True)))
    return found


def mean_by_weight(stats: Iterable[Stats], name: str, weights: str, labels: Sequence[str]) -> dict[Labels, float]:
    """The mean of the metric `name` by the values of these labels, over processes, each with the sum of the metric
    `weights` there, or 1 if it has none."""
    sums = dict[Labels, tuple[float, float]]()
    for one in stats:
        if name not in one:
            continue
        metric = one[name]
        weight_of = group([one], weights, metric.labels)
        for sample in metric.samples if set(labels) <= set(metric.labels) else ():
            which, weight = _pick(metric, sample, labels), weight_of.get(sample.labels) or 1.0
            total, over = sums.get(which, (0.0, 0.0))
            sums[which] = total + weight * sample.value, over + weight
    return {which: total / over for which, (total, over) in sums.items()}


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """The value below which `part` (0..1) of the observations lie, as Prometheus' `histogram_quantile` finds it:
    linearly between the bounds of its bucket, of which the first begins at 0.

    Infinity if it lies above the last bound, None without observations.
    """
    reached = list(accumulate(counts))
    if not reached or not reached[-1]:
        return None
    rank = part * reached[-1]
    # The first bucket with an observation, even for a part of 0.
    place = max(bisect_left(reached, rank), bisect_left(reached, 1))
    if place == len(bounds):
        return math.inf
    low, before = (bounds[place - 1], reached[place - 1]) if place else (0.0, 0)
    return low + (bounds[place] - low) * max(0.0, rank - before) / counts[place]


def _samples(stats: Iterable[Stats], name: str, labels: Sequence[str]) -> Iterable[tuple[Metric, Sample]]:
    for one in stats:
        metric = one.get(name)
        if metric is not None and set(labels) <= set(metric.labels):
            for sample in metric.samples:
                yield metric, sample


def _pick(metric: Metric, sample: Sample, labels: Sequence[str]) -> Labels:
    return tuple(sample.labels[metric.labels.index(label)] for label in labels)
