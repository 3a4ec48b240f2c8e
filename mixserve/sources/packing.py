"""Lengths of documents -> which of them share a record, so that little is left to pad."""

import numpy as np
from jaxtyping import Int


def pack_best_fit(
    lengths: Int[np.ndarray, " pieces"], room: int
) -> tuple[Int[np.ndarray, " pieces"], Int[np.ndarray, " records"]]:
    """The pieces, ordered by record, and the number of pieces of each record. `lengths` are in 1..`room`.

    Best fit decreasing (Johnson 1973): from the longest piece to the shortest, each goes to the record that it fills
    best. A pure function of its arguments: of equal pieces the first goes first, of equally full records the one that
    got so full first. Inside a record, pieces keep their order. Takes 4 to 8 bytes for each piece.
    """
    lengths = np.asarray(lengths)
    dtype = np.uint16 if room < 1 << 16 else np.int64  # NumPy sorts 16 bits by radix
    order = np.argsort((room - lengths).astype(dtype), kind="stable")
    ends = np.cumsum(np.bincount(lengths, minlength=room + 1)[::-1])[::-1]  # of the pieces of at least each length
    record_of = np.empty(len(lengths), np.int32)
    records = _OpenRecords(room)
    for length in np.flatnonzero(np.bincount(lengths, minlength=room + 1))[::-1].tolist():
        at, end = int(ends[length + 1]) if length < room else 0, int(ends[length])
        while at < end:
            # All records that are equally full take as many of the equal pieces as fit, as they would one by one.
            chosen, each = records.take(length, end - at)
            placed = np.repeat(chosen, each)[: end - at]
            record_of[order[at : at + len(placed)]] = placed
            records.put_back(chosen, len(placed), length)
            at += len(placed)
    by_record = np.argsort(record_of, kind="stable")
    return by_record, np.bincount(record_of, minlength=records.count)


class _OpenRecords:
    """Records with room left, by the room that they have left."""

    def __init__(self, room: int):
        self.count = 0
        self._room = room
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(room + 1)]
        self._left = 0  # the room that those of the last `take` had
        self._rooms = 0  # bit i is set if there are records with room i left

    def take(self, length: int, pieces: int) -> tuple[np.ndarray, int]:
        """Records, and how many of the `pieces` of this `length` go into each; the last may get fewer."""
        fitting = self._rooms >> length
        if not fitting:
            self._left, each = self._room, self._room // length
            new = np.arange(self.count, self.count - (-pieces // each), dtype=np.int32)
            self.count += len(new)
            return new, each
        left = self._left = length + (fitting & -fitting).bit_length() - 1
        each = left // length
        found = self._waiting[left]
        records = np.concatenate(found) if len(found) > 1 else found[0]
        wanted = -(-pieces // each)
        self._waiting[left] = [records[wanted:]] if len(records) > wanted else []
        if len(records) <= wanted:
            self._rooms ^= 1 << left
        return records[:wanted], each

    def put_back(self, records: np.ndarray, placed: int, length: int) -> None:
        """Return the records of the last `take`, into which so many pieces of this `length` went."""
        each = self._left // length
        full = placed // each
        self._add(records[:full], self._left - each * length)
        self._add(records[full:], self._left - (placed - full * each) * length)

    def _add(self, records: np.ndarray, left: int) -> None:
        if len(records) and left:
            self._waiting[left].append(records)
            self._rooms |= 1 << left
