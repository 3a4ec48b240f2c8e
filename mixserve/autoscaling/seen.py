"""What the policy sees of the replicas and their readers at one moment, and its means over a time."""

from dataclasses import dataclass

_LARGEST = 1e18  # of figures to reckon with


@dataclass(frozen=True, slots=True)
class Seen:
    """Figures of all replicas together; None for what is not known.

    `readers` is how many iterators have requested something within the last minute; `wait_share` is which part of
    their time, in 0..1, their trainers wait for batches, the mean over readers. `busy` is how many replies a replica
    makes at a time, the mean over replicas and the time since they were seen before. `load` is what they deliver in
    that time, in bytes per second.
    """

    readers: int
    wait_share: float | None = None
    busy: float | None = None
    load: float | None = None

    def problem(self) -> str | None:
        """What is wrong with the figures, None if nothing is."""
        if not 0 <= self.readers <= _LARGEST:
            return f"the number of readers is {self.readers}"
        if self.wait_share is not None and not 0 <= self.wait_share <= 1:
            return f"the share that trainers wait is {self.wait_share}, and not in 0..1"
        for name, value in (("busy", self.busy), ("load", self.load)):
            if value is not None and not 0 <= value <= _LARGEST:
                return f"the figure {name} is {value}"
        return None


class Spell:
    """The means of what was seen since one moment."""

    def __init__(self, since_s: float):
        self.since_s = since_s
        self._sums = dict[str, tuple[float, int]]()

    def add(self, seen: Seen) -> None:
        """Count what was seen."""
        for name in ("readers", "wait_share", "busy", "load"):
            value: float | None = getattr(seen, name)
            if value is not None:
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + value, count + 1

    def lasts(self, now_s: float) -> float:
        """For how long, in seconds."""
        return now_s - self.since_s

    @property
    def readers(self) -> float:
        """How many readers there were."""
        return self._mean("readers") or 0.0

    @property
    def wait_share(self) -> float:
        """Which part of their time trainers waited."""
        return self._mean("wait_share") or 0.0

    @property
    def busy(self) -> float | None:
        """How many replies a replica made at a time."""
        return self._mean("busy")

    @property
    def load(self) -> float | None:
        """What was delivered, in bytes per second."""
        return self._mean("load")

    def _mean(self, name: str) -> float | None:
        if name not in self._sums:
            return None
        total, count = self._sums[name]
        return total / count
