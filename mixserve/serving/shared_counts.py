"""The readers of several processes that answer at one address: each tells the others how many it has."""

import mmap
import os
from pathlib import Path
from struct import Struct

from mixserve.metrics.present import PresentReaders

_COUNT = Struct("<q")


class SharedCounts:
    """A number for each of `count` processes, in a file that they map; this process is the one at `number`.

    One that has ended keeps its last number until its successor writes.
    """

    def __init__(self, path: Path, number: int, count: int):
        """Makes the file if it does not exist. Raises OSError."""
        self._at = number * _COUNT.size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, count * _COUNT.size)
            self._numbers = mmap.mmap(descriptor, count * _COUNT.size)
        finally:
            os.close(descriptor)
        self.tell(0)

    def tell(self, number: int) -> None:
        """Write the number of this process."""
        _COUNT.pack_into(self._numbers, self._at, number)

    def of_others(self) -> int:
        """The sum of the numbers of the other processes."""
        whole = sum(number for (number,) in _COUNT.iter_unpack(self._numbers[:]))
        (own,) = _COUNT.unpack_from(self._numbers, self._at)
        return whole - own


def share_readers(present: PresentReaders, path: Path, number: int, count: int) -> None:
    """Let `present` count those of all processes, as `SharedCounts` does. Raises OSError."""
    counts = SharedCounts(path, number, count)
    present.of_others = counts.of_others
    present.tell_others = lambda: counts.tell(present.count())
