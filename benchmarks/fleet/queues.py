"""Queues of known service times, first come, first served: when a task that comes now will have been served.

A task's end is known when it comes, so that a simulation needs one event for it, and none for its start.
"""

import heapq


class Servers:
    """`count` servers with one queue. All times are in seconds of the simulation; `now` must not go back."""

    def __init__(self, count: int):
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count = count
        self.busy_s = 0.0
        self._free_at = [0.0] * count  # a heap

    def serve(self, now: float, service_s: float, beside: "Servers | None" = None) -> float:
        """When a task of `service_s` ends that comes now, and holds a server of `beside` as well for as long."""
        start = max(now, self._free_at[0])
        if beside is not None:
            start = max(start, beside._free_at[0])
            beside._take(start + service_s, service_s)
        self._take(start + service_s, service_s)
        return start + service_s

    def _take(self, end: float, service_s: float) -> None:
        heapq.heapreplace(self._free_at, end)
        self.busy_s += service_s

    def utilization(self, seconds: float) -> float:
        """Which part of their time the servers have been busy."""
        return self.busy_s / (self.count * seconds) if seconds else 0.0
