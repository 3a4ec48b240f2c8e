"""How a mixture draws: with replacement or in passes, under which weights, and where it ends."""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index

from mixserve.mixture.schedule import Entry, Schedule
from mixserve_client.errors import OutOfRange

CATEGORICAL, EPOCH = "categorical", "epoch"
MODES = (CATEGORICAL, EPOCH)
NEVER, FIRST, ALL = "never", "first_exhausted", "all_exhausted"
STOPS = (NEVER, FIRST, ALL)
BLOCK_SIZE = 2048
_LARGEST_BLOCK = 1 << 16


@dataclass(frozen=True)
class Sampling:
    """`mode` is `categorical` or `epoch`; `block_size` (positions) and `stop` matter in epoch mode only.

    Raises ValueError for values that are not allowed, alone or together.
    """

    schedule: Schedule
    mode: str = CATEGORICAL
    block_size: int = BLOCK_SIZE
    stop: str = NEVER

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"sampling must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.stop not in STOPS:
            raise ValueError(f"stop must be one of {', '.join(STOPS)}, got {self.stop!r}")
        if self.mode != EPOCH and self.stop != NEVER:
            raise ValueError(
                f"stop={self.stop!r} needs sampling='epoch': with replacement no source is ever exhausted; "
                "set sampling='epoch', or leave stop at 'never'"
            )
        # True and False are integers for `index`; -1 makes them fail the check of the range.
        try:
            object.__setattr__(self, "block_size", -1 if isinstance(self.block_size, bool) else index(self.block_size))
        except TypeError:
            raise ValueError(f"block_size must be an integer, got {self.block_size!r}") from None
        if not 1 <= self.block_size <= _LARGEST_BLOCK:
            raise ValueError(f"block_size must be an integer in 1..{_LARGEST_BLOCK}, got {self.block_size!r}")
        self.check_borders(self.schedule.entries)

    def check_borders(self, entries: Iterable[Entry]) -> None:
        """Raises ValueError if the weights would change within a block: in epoch mode, counts are per block."""
        for start, _ in entries if self.mode == EPOCH else ():
            if start % self.block_size:
                raise ValueError(
                    f"in epoch mode weights must change at multiples of block_size = {self.block_size}, got {start}"
                )


def round_up(start: int, block_size: int) -> int:
    """The first block boundary at or after `start`."""
    return -(-start // block_size) * block_size


def check_end(end: int | None, start: int, size: int) -> None:
    """Raises OutOfRange unless all positions in [start, start + size) are before `end`, if there is one."""
    if end is not None and start + size > end:
        what = "begins at or after it" if start >= end else "straddles it: ask for a short batch, or stop before"
        raise OutOfRange(f"the mixture ends at position {end}; the batch of {size} at {start} {what}")
