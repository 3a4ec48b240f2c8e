"""Successive statistics of one server -> what grew between them."""

from dataclasses import dataclass, replace
from functools import cached_property

from mixserve_client.schema.stats import Metric, MetricKind, Sample, Stats

Labels = tuple[str, ...]

_MOST_SAMPLES = 200_000
_START_TIME, _WORKER = "mixserve_start_time_seconds", "worker"


@dataclass(frozen=True)
class Reading:
    """Statistics of one server, and what its counters and histograms `grew` by in the `seconds` since the last reading.

    Of the first one, `seconds` is 0, and nothing grew.
    """

    stats: Stats
    grew: Stats
    seconds: float

    @cached_property
    def rates(self) -> Stats:
        """By how much counters grew per second; empty at the first reading."""
        if not self.seconds:
            return {}
        return {
            name: replace(metric, samples=tuple(replace(one, value=one.value / self.seconds) for one in metric.samples))
            for name, metric in self.grew.items()
        }


class Growth:
    """Follows one server. Its counters begin at 0 when it, or one of its workers, starts again: they never shrink."""

    def __init__(self) -> None:
        # By process, and for all samples that it ever had: a worker that did not answer once has not begun at 0.
        self._last = dict[Labels, dict[tuple[str, Labels], Sample]]()
        self._starts = dict[Labels, float]()
        self._at: float | None = None

    def read(self, stats: Stats, at: float) -> Reading:
        """Statistics that came at the time `at`, in seconds, later than those before."""
        is_first, seconds = self._at is None, 0.0 if self._at is None else at - self._at
        self._at = at
        self._forget_restarted(stats)
        if sum(map(len, self._last.values())) > _MOST_SAMPLES:  # names of clients come and go for weeks
            self._last = {}
            is_first = True
        grew = {
            name: self._metric(metric, is_first) for name, metric in stats.items() if metric.kind != MetricKind.GAUGE
        }
        return Reading(stats, grew, seconds)

    def _forget_restarted(self, stats: Stats) -> None:
        for sample in stats[_START_TIME].samples if _START_TIME in stats else ():
            process, start = sample.labels, sample.value
            if self._starts.get(process, start) != start:
                self._last[process] = {}
            self._starts[process] = start

    def _metric(self, metric: Metric, is_first: bool) -> Metric:
        at = metric.labels.index(_WORKER) if _WORKER in metric.labels else None
        samples = list[Sample]()
        for now in metric.samples:
            name = metric.name, now.labels
            known = self._last.setdefault(() if at is None else (now.labels[at],), {})
            last = now if is_first else known.get(name)
            known[name] = now
            if last is None or _has_shrunk(last, now):
                last = Sample(now.labels, 0.0, (0,) * len(now.counts))
            counts = tuple(a - b for a, b in zip(now.counts, last.counts, strict=True))
            samples.append(Sample(now.labels, now.value - last.value, counts))
        return replace(metric, samples=tuple(samples))


def _has_shrunk(last: Sample, now: Sample) -> bool:
    if len(last.counts) != len(now.counts):  # another version of the server
        return True
    return now.value < last.value or any(a < b for a, b in zip(now.counts, last.counts, strict=True))
