"""Statistics of replicas -> what the policy sees."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from mixserve.autoscaling.seen import Seen
from mixserve.readings.grouping import group, mean_by_weight
from mixserve.readings.growth import Growth, Reading
from mixserve_client.client import MixClient
from mixserve_client.schema.stats import Metric, Sample, Stats

_SERVER = "server"


class Observer:
    """Follows all replicas, by their addresses."""

    def __init__(self) -> None:
        self._growth = dict[str, Growth]()

    def see(self, at_s: float, stats: Mapping[str, Stats]) -> Seen:
        """What the `stats` of the replicas that answered at the time `at_s` mean. Rates need two answers of one."""
        self._growth = {address: self._growth.get(address) or Growth() for address in stats}
        readings = [self._growth[address].read(one, at_s) for address, one in stats.items()]
        readers = dict[tuple[str, ...], float]()
        for one in stats.values():
            for which, count in group([one], "mixserve_readers", ("mixture", "client")).items():
                # A reader asks several replicas, each of which counts it.
                readers[which] = max(count, readers.get(which, 0))
        waits = mean_by_weight(stats.values(), "mixserve_wait_share", "mixserve_readers", ())
        known = [one for one in readings if one.seconds > 0]
        if not known:
            return Seen(int(sum(readers.values())), waits.get(()))
        busy = sum(_per_second(one, "mixserve_batch_seconds") for one in known) / len(known)
        load = sum(_per_second(one, "mixserve_source_bytes_total") for one in known)
        return Seen(int(sum(readers.values())), waits.get(()), busy, load * len(readings) / len(known))


def observe_by(client: MixClient, timeout_s: float = 5.0) -> Callable[[], tuple[int, Seen]]:
    """Asks all replicas of `client`: how many answer, and what is seen of them. Raises what `server_stats` raises."""
    observer = Observer()

    def observe() -> tuple[int, Seen]:
        found = by_server(client.server_stats(timeout_s=timeout_s))
        return len(found), observer.see(time.monotonic(), found)

    return observe


def by_server(stats: Stats) -> dict[str, Stats]:
    """Statistics of all servers, as `MixClient.server_stats` returns them -> those of each, without its label."""
    found = dict[str, dict[str, Metric]]()
    for metric in stats.values():
        at = metric.labels.index(_SERVER)
        samples = dict[str, list[Sample]]()
        for one in metric.samples:
            labels = one.labels[:at] + one.labels[at + 1 :]
            samples.setdefault(one.labels[at], []).append(replace(one, labels=labels))
        for server, of_server in samples.items():
            labels = metric.labels[:at] + metric.labels[at + 1 :]
            found.setdefault(server, {})[metric.name] = replace(metric, labels=labels, samples=tuple(of_server))
    return dict(found)


def _per_second(reading: Reading, name: str) -> float:
    return sum(group([reading.rates], name).values())
