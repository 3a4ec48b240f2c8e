"""A plan and the sources -> arrays in host memory; every row is written once, to its final place."""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import numpy as np
from jaxtyping import Bool, Int

from mixserve.failed_read import naming_source
from mixserve.mixture.file_guard import FileGuard
from mixserve.mixture.plan import Plan
from mixserve.mixture.read_ahead import ReadAhead
from mixserve.mixture.rows import Rows
from mixserve.mixture.taking import Buffers, read_records
from mixserve.sources import AnySource, ArrayBacked, is_array_backed
from mixserve.sources.open_file import files_of
from mixserve_client.schema.fields import Field


class HostGather:
    """Fetches the records of plans from `sources`, whose elements have these `fields`.

    Rows of array-backed sources are copied straight from the sources' own arrays, which are neither copied nor joined
    beforehand. Other sources are read once per batch, with `take`.
    """

    def __init__(self, sources: Sequence[AnySource], fields: tuple[Field, ...], names: Sequence[str] | None = None):
        """`names` are those of the sources in errors; by default their numbers."""
        self._sources = tuple(sources)
        self._names = tuple(map(str, range(len(sources)))) if names is None else tuple(names)
        self._array_backed = np.array([is_array_backed(source) for source in sources])
        self._all_backed = bool(self._array_backed.all())
        blocks = [
            _check_blocks(name, cast(ArrayBacked, source), fields) if is_array_backed(source) else ()
            for name, source in zip(self._names, sources, strict=True)
        ]
        self._first_blocks = np.cumsum([0, *(len(source_blocks) for source_blocks in blocks)])[:-1]
        self._one_block_each = all(len(source_blocks) == 1 for source_blocks in blocks)
        all_blocks = [block for source_blocks in blocks for block in source_blocks]
        # The number of each block's first row, counted through all array-backed sources.
        self._block_starts = np.cumsum([0, *(len(next(iter(block.values()))) for block in all_blocks)])
        self._source_starts = self._block_starts[self._first_blocks]
        self._rows = {field.name: _by_dtype([b[field.name] for b in all_blocks]) for field in fields if all_blocks}
        self._read_ahead = ReadAhead(all_blocks, sources)
        self._guard = FileGuard({i: files_of(source) for i, source in enumerate(sources)}, self._names)

    def is_cold(self) -> bool:
        """Whether records are being read from disks now: then reading several batches at a time is faster."""
        return self._read_ahead.is_cold()

    def prefetch(self, plan: Plan) -> None:
        """Ask the system to read the records of `plan` soon, if they are not in memory."""
        if not self._read_ahead.is_cold():
            return
        self._read_ahead.prefetch(plan.source_ids, plan.record_ids)
        backed = None if self._all_backed else self._array_backed[plan.source_ids]
        if backed is None or backed.any():
            self._read_ahead.announce(*self._locate(plan if backed is None else plan.at(np.flatnonzero(backed))))

    def into(self, plan: Plan, buffers: Buffers, *, without: Collection[int] = ()) -> None:
        """Write the records of `plan` into `buffers`: per field an array of shape (size, *field.shape).

        Leaves the slots of the sources in `without` as they are; none of these may be array-backed.
        Raises FailedRead if a source raises an error, or returns other leaves, shapes or dtypes than the buffers';
        SourceChanged if a file has changed since it was opened.
        """
        self._guard.check(plan.source_ids)
        try:
            self._write(plan, buffers, without)
        except Exception:
            self._guard.look()  # what failed may be a file that was cut
            self._guard.check(plan.source_ids)
            raise

    def _write(self, plan: Plan, buffers: Buffers, without: Collection[int]) -> None:
        if self._all_backed:
            self._copy_rows(plan, buffers, None)
            return
        backed = self._array_backed[plan.source_ids]
        if backed.any():
            self._copy_rows(plan.at(np.flatnonzero(backed)), buffers, backed)
        for source_id in map(int, np.unique(plan.source_ids[~backed])):
            if source_id in without:
                continue
            here = np.flatnonzero(plan.source_ids == source_id)
            records = read_records(self._names[source_id], self._sources[source_id], plan.at(here), here, buffers)
            for name, buffer in buffers.items():
                buffer[here] = records[name]

    def _copy_rows(self, plan: Plan, buffers: Buffers, slots: Bool[np.ndarray, " size"] | None) -> None:
        """Fill the `slots` of the buffers, or all if None, from a plan of array-backed sources only."""
        block_ids, rows = self._locate(plan)
        for name, buffer in buffers.items():
            tables, table_ids, places = self._rows[name]
            for table_id, table in enumerate(tables):
                if len(tables) == 1 and slots is None:
                    table.copy_into(buffer, block_ids, rows)
                    continue
                # Through an array of its own: a boolean index would give a copy of `buffer`, which nothing sees filled.
                here = table_ids[block_ids] == table_id
                part = np.empty((int(here.sum()), *buffer.shape[1:]), buffer.dtype)
                table.copy_into(part, places[block_ids[here]], rows[here])
                buffer[here if slots is None else np.flatnonzero(slots)[here]] = part

    def _locate(self, plan: Plan) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"]]:
        """For every planned record, its block and its row in that block."""
        if self._one_block_each:
            return plan.source_ids, plan.record_ids
        numbers = self._source_starts[plan.source_ids] + plan.record_ids
        block_ids = np.searchsorted(self._block_starts, numbers, side="right") - 1
        return block_ids, numbers - self._block_starts[block_ids]


def _check_blocks(name: str, source: ArrayBacked, fields: tuple[Field, ...]) -> Sequence[Mapping[str, np.ndarray]]:
    """The blocks of `source`. Raises ValueError if they do not hold what the source and `fields` declare."""
    with naming_source(name, "the blocks()"):
        blocks = list(source.blocks())
    lacking = [field.name for field in fields for block in blocks if field.name not in block]
    if lacking:
        raise ValueError(f"the blocks of the source {name!r} must have the leaf {lacking[0]!r}")
    # Checked in full: `Rows` reads by memory address, and a wrong length or stride would read past the array.
    rows = sum(len(block[fields[0].name]) for block in blocks)
    if rows != len(source):
        raise ValueError(
            f"the blocks of the source {name!r} must hold len(source) = {len(source)} rows in all, got {rows}"
        )
    for block in blocks:
        for field in fields:
            array = block[field.name]
            fits = len(array) == len(block[fields[0].name]) and array.shape[1:] == field.shape
            if not fits or not (len(array) == 0 or array[0].flags.c_contiguous):
                raise ValueError(
                    f"a block of the source {name!r} must hold C-contiguous rows of the shape {field.shape} in the "
                    f"leaf {field.name!r}, as many as in its other leaves, got the shape {array.shape} and strides "
                    f"{array.strides}"
                )
    return blocks


def _by_dtype(
    blocks: Sequence[np.ndarray],
) -> tuple[list[Rows], Int[np.ndarray, " blocks"], Int[np.ndarray, " blocks"]]:
    """One table of rows per stored dtype; and per block, its table's number and its place in that table."""
    dtypes = list(dict.fromkeys(block.dtype for block in blocks))
    table_ids = np.array([dtypes.index(block.dtype) for block in blocks])
    places = np.zeros(len(blocks), np.int64)
    for table_id in range(len(dtypes)):
        here = table_ids == table_id
        places[here] = np.arange(here.sum())
    tables = [Rows([b for b, t in zip(blocks, table_ids, strict=True) if t == i]) for i in range(len(dtypes))]
    return tables, table_ids, places
