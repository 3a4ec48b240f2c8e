"""Columns in pieces -> a source of records, with one field per served column."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.column import Column, Rows
from mixserve.sources.fields import Served, leaf_name
from mixserve.sources.memory import Memory
from mixserve.sources.open_file import OpenFile, file_of
from mixserve.sources.source import ElementSpec, RecordIds, Records

# How many records say whether a batch seems to be in memory.
_ASKED = 4


class Shard(NamedTuple):
    """A file of the user's that records come from: the numbers of rows of its pieces, in order."""

    path: Path
    rows: Sequence[int]


class LongRecords(NamedTuple):
    """How many records, and how many of their values, do not fit into the length of a ragged field; the number of all
    values; and whether the others are cut off, or the records refused."""

    records: int
    values: int
    all_values: int
    is_cut: bool

    @classmethod
    def sum(cls, parts: Iterable["LongRecords"]) -> "LongRecords":
        """Those of several fields together."""
        records, values, of, cut = zip(*parts, strict=True)
        return cls(sum(records), sum(values), sum(of), all(cut))


class ColumnSource:
    """Records whose fields are the `served` columns, by the name of the stored one; pieces follow one another.

    Array-backed (`blocks` is not None) if all rows are fixed, evenly spaced, and never null.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        served: Sequence[Served],
        memory: Memory,
        shards: Sequence[Shard],
        *,
        name: str | None = None,
    ):
        """Raises ValueError if there are no records."""
        self.name = name
        self._columns, self._served, self._memory = dict(columns), list(served), memory
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(count for shard in shards for count in shard.rows)], dtype=np.int64)
        # The first record of each shard; a shard may have no pieces.
        self._shard_starts = np.cumsum([0, *(sum(shard.rows) for shard in shards)], dtype=np.int64)
        self._spec = {
            name: jax.ShapeDtypeStruct(shape, dtype) for field in served for name, (shape, dtype) in field.specs.items()
        }
        self._owners: list[tuple[OpenFile, int] | None] = [file_of(owner) for owner in memory.owners]
        if not len(self):
            raise ValueError(f"{self._paths[0]} holds no records")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def element_spec(self) -> ElementSpec:
        return dict(self._spec)

    def take(self, record_ids: RecordIds) -> Records:
        at = self._rows(record_ids)
        found: dict[str, np.ndarray] = {}
        for field in self._served:
            try:
                found |= self._columns[field.spec.source].take(field, at)
            except WrongRecord as error:
                raise type(error)(self._explain(error, field, at)) from error
        return found

    @property
    def blocks(self) -> Callable[[], Sequence[Mapping[str, np.ndarray]]] | None:
        """The method that `ArrayBacked` has, or None if rows are not evenly spaced."""
        is_backed = all(self._columns[field.spec.source].is_evenly_spaced for field in self._served)
        return self._blocks if is_backed else None

    @property
    def prefetch(self) -> Callable[[RecordIds], None] | None:
        """The method that asks the system to read records soon, or None if `blocks` tells where they are."""
        return None if self.blocks else self._prefetch

    def files(self) -> Sequence[OpenFile]:
        """The files that records are read from."""
        found = [owner[0] for owner in self._owners if owner is not None]
        return sorted(found, key=lambda file: str(file.path))

    def _prefetch(self, record_ids: RecordIds) -> None:
        """Ask the system to read these records soon, without waiting for them, unless they seem to be in memory."""
        at = self._rows(record_ids)
        for field in self._served:
            try:
                ranges = self._file_ranges(field, at)
            except WrongRecord:  # it is raised again when the records are read
                continue
            # Announcing all costs as much as reading them from memory, so ask for a few whether it is needed.
            if not all(file.is_cached(offset) for file, offset, _ in ranges[:: len(ranges) // _ASKED + 1]):
                for file, offset, size in ranges:
                    file.announce(offset, size)

    def _file_ranges(self, field: Served, at: Rows) -> list[tuple[OpenFile, int, int]]:
        """File, first byte and size of the values of each row that has some and lies in a file."""
        positions, sizes = self._columns[field.spec.source].positions(at)
        owners, offsets = self._memory.owner(positions)
        filled = [
            (self._owners[i], at, n)
            for i, at, n in zip(owners.tolist(), offsets.tolist(), sizes.tolist(), strict=True)
            if n
        ]
        return [(found[0], found[1] + at, n) for found, at, n in filled if found is not None]

    def locate(self, record_id: int) -> str:
        """The file, and the row in it."""
        if not 0 <= record_id < len(self):
            raise IndexError(f"record_id must be in 0..{len(self) - 1}, got {record_id}")
        number = int(np.searchsorted(self._shard_starts, record_id, side="right")) - 1
        return f"{self._paths[number]}, row {record_id - int(self._shard_starts[number]):,}"

    def too_long(self) -> dict[str, LongRecords]:
        """How many records are longer than the length of each ragged field, by its name; reads all offsets."""
        found: dict[str, LongRecords] = {}
        for field in self._served:
            if field.stored.is_ragged:
                column, room = self._columns[field.spec.source], field.shape[0]
                # A few pieces at a time: the lengths of all records may not fit into memory.
                parts = [column.lengths(slice(i, i + 100)) for i in range(0, len(self._starts) - 1, 100)]
                over = [part[part > room] for part in parts]
                found[field.spec.name] = LongRecords(
                    sum(map(len, over)),
                    sum(int((o - room).sum()) for o in over),
                    sum(int(part.sum()) for part in parts),
                    field.spec.long == "cut",
                )
        return found

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {spec.dtype.name}{list(spec.shape)}" for name, spec in self._spec.items())
        return f"{type(self).__name__}({{{fields}}}, length={len(self)})"

    def _blocks(self) -> Sequence[Mapping[str, np.ndarray]]:
        fields = {leaf_name(field.spec.name): self._columns[field.spec.source].blocks() for field in self._served}
        return [dict(zip(fields, arrays, strict=True)) for arrays in zip(*fields.values(), strict=True)]

    def _rows(self, record_ids: Iterable[int]) -> Rows:
        ids = np.asarray(record_ids, np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"record ids must be in 0..{len(self) - 1}, got {ids.min()} to {ids.max()}")
        pieces = np.searchsorted(self._starts, ids, side="right") - 1
        return Rows(pieces, ids - self._starts[pieces], ids)

    def _explain(self, error: WrongRecord, field: Served, at: Rows) -> str:
        """What the error says, with the file of the first record that fails alone."""
        for i, record_id in enumerate(at.record_ids.tolist()):
            try:
                self._columns[field.spec.source].take(field, Rows(*(part[i : i + 1] for part in at)))
            except WrongRecord as alone:
                return f"the field {field.spec.name!r:.100}: {alone}; {self.locate(record_id)}"
        return str(error)
