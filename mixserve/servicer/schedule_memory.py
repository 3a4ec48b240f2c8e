"""The bytes of schedules, of which those that grew from one another share most."""

from dataclasses import dataclass

from mixserve.mixture.mixture import Mixture
from mixserve.mixture.sampling import EPOCH
from mixserve.mixture.schedule import Schedule

# Measured. An entry has its start and shares, and in epoch mode counts and debts of each source.
_ENTRY_BYTES, _WEIGHT_BYTES = 256, 32
_COUNTS_BYTES, _COUNT_BYTES = 1024, 64
# A schedule has a planner, and in epoch mode that caches counts of each source at the blocks that were planned last.
_PLANNER_BYTES, _EPOCH_PLANNER_BYTES, _PLANNED_SOURCE_BYTES = 4096, 24 << 10, 640
_BLOCK_BYTES = 16  # the place of a block in the lists of entries and counts


def entry_bytes(mixture: Mixture) -> int:
    """About how many bytes an entry of a schedule takes."""
    sources = len(mixture.lengths)
    counts = _COUNTS_BYTES + _COUNT_BYTES * sources if mixture.sampling.mode == EPOCH else 0
    return _ENTRY_BYTES + _WEIGHT_BYTES * sources + counts


def _planner_bytes(mixture: Mixture) -> int:
    if mixture.sampling.mode != EPOCH:
        return _PLANNER_BYTES
    return _EPOCH_PLANNER_BYTES + _PLANNED_SOURCE_BYTES * len(mixture.lengths)


@dataclass(slots=True)
class _Block:
    schedules: int = 0
    bytes: int = 0


class ScheduleMemory:
    """Counts the blocks of entries that schedules share once. Not thread-safe.

    Adding and removing look at each block of 1,024 entries, and at no entry.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._blocks: dict[int, _Block] = {}  # by identity: a block lives as long as a schedule that has it

    def add(self, mixture: Mixture, schedule: Schedule) -> None:
        """Count `schedule`, which must live until it is removed."""
        each = entry_bytes(mixture)
        self.bytes += _planner_bytes(mixture)
        for name, items in schedule.entries.blocks():
            block = self._blocks.setdefault(name, _Block())
            more = max(0, items * each - block.bytes)  # the last block may have grown since
            block.schedules += 1
            block.bytes += more
            self.bytes += more + _BLOCK_BYTES

    def remove(self, mixture: Mixture, schedule: Schedule) -> None:
        """Count `schedule` no longer."""
        self.bytes -= _planner_bytes(mixture)
        for name, _ in schedule.entries.blocks():
            block = self._blocks[name]
            block.schedules -= 1
            self.bytes -= _BLOCK_BYTES
            if not block.schedules:
                self.bytes -= self._blocks.pop(name).bytes
