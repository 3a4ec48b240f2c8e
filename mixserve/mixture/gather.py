"""A plan and the sources -> arrays in host memory; every row is written once, to its final place."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import Bool, Int

from mixserve import tracing
from mixserve.failed_read import FailedRead, naming_source
from mixserve.mixture.file_guard import FileGuard
from mixserve.mixture.plan import Plan
from mixserve.mixture.read_ahead import ReadAhead
from mixserve.mixture.rows import Rows
from mixserve.mixture.taking import Buffers, Part, Taking, read_records
from mixserve.sources import AnySource, ArrayBacked, is_array_backed
from mixserve.sources.hops import current_hops, passing_on
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
        # What records are checked against: a read must not hold the memory of a reply that is no longer wanted.
        self._empty = {field.name: np.empty((0, *field.shape), field.dtype) for field in fields}
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

    @property
    def only_copies(self) -> bool:
        """Whether all records are rows of arrays, which are copied and not read by code of a source."""
        return self._all_backed

    def begin(self, plan: Plan, reader: "SourceReader | None" = None) -> Callable[[Buffers], None]:
        """Begin to fetch the records of `plan`; returns a function that writes them into buffers, as `into` does.

        `reader` reads the sources that are not array-backed (None: the thread that calls the function).
        """
        self.prefetch(plan)
        if self._all_backed:
            return partial(self.into, plan)
        # Made now: sources that can be asked without a wait have until then to answer.
        read = SourceRead(self, plan)
        return partial(self.into, plan, read=read.parts if reader is None else reader.read(read))

    def into(
        self,
        plan: Plan,
        buffers: Buffers,
        *,
        without: Collection[int] = (),
        read: Callable[[], Iterable[Part]] | None = None,
    ) -> None:
        """Write the records of `plan` into `buffers`: per field an array of shape (size, *field.shape).

        Leaves the slots of the sources in `without` as they are; none of these may be array-backed. `read` returns the
        parts of the sources that are not array-backed, by default those of a `SourceRead` in this thread.

        Raises FailedRead if a source raises an error, or returns other leaves, shapes or dtypes than the buffers';
        SourceChanged if a file has changed since it was opened.
        """
        self._guard.check(plan.source_ids)
        try:
            self._copy(plan, buffers)
        except Exception:
            self._look_again(plan)
            raise
        if self._all_backed:
            return
        for slots, records in SourceRead(self, plan, without).parts() if read is None else read():
            for name, buffer in buffers.items():
                buffer[slots] = records[name]

    def ask(self, source_id: int, plan: Plan, slots: Int[np.ndarray, " size"]) -> Taking | None:
        """Ask a source for its records at these slots, if it can be asked without a wait; None otherwise."""
        begin_take: Any = getattr(self._sources[source_id], "begin_take", None)
        if callable(begin_take):
            with suppress(Exception):  # reading the records says what is wrong
                return cast(Taking, begin_take(plan.record_ids[slots]))
        return None

    def read_source(
        self, source_id: int, plan: Plan, slots: Int[np.ndarray, " size"], taking: Taking | None = None
    ) -> Part:
        """The records of `plan` at these slots, which are all of one source; `taking` is what `ask` returned. Raises
        what `into` does."""
        here = plan.at(slots)
        self._guard.check(here.source_ids)
        try:
            if tracing.spans is None:
                return slots, self._read(source_id, here, slots, taking)
            with tracing.spans.source(self._names[source_id], len(slots)) as span:
                records = self._read(source_id, here, slots, taking)
                span.note_bytes(sum(array.nbytes for array in records.values()))
                return slots, records
        except Exception:
            self._look_again(here)
            raise

    def to_read(self, plan: Plan, without: Collection[int]) -> list[tuple[int, Int[np.ndarray, " size"]]]:
        """The sources of `plan` that are not array-backed, and their slots."""
        others = plan.source_ids[~self._array_backed[plan.source_ids]]
        found = [source_id for source_id in map(int, np.unique(others)) if source_id not in without]
        return [(source_id, np.flatnonzero(plan.source_ids == source_id)) for source_id in found]

    def unread(self, source_id: int, plan: Plan, slots: Int[np.ndarray, " size"], error: Exception) -> FailedRead:
        """What `error`, in place of the records at these slots, is for the reader of `plan`."""
        return FailedRead.of(self._names[source_id], plan.record_ids[slots].tolist(), int(slots[0]), error)

    def _read(
        self, source_id: int, plan: Plan, slots: Int[np.ndarray, " size"], taking: Taking | None
    ) -> Mapping[str, np.ndarray]:
        return read_records(self._names[source_id], self._sources[source_id], plan, slots, self._empty, taking)

    def _look_again(self, plan: Plan) -> None:
        """Raises SourceChanged if a file has changed: what failed may be one that was cut."""
        self._guard.look()
        self._guard.check(plan.source_ids)

    def _copy(self, plan: Plan, buffers: Buffers) -> None:
        """Write the records of the array-backed sources."""
        if self._all_backed:
            self._copy_rows(plan, buffers, None)
            return
        backed = self._array_backed[plan.source_ids]
        if backed.any():
            self._copy_rows(plan.at(np.flatnonzero(backed)), buffers, backed)

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


class SourceRead:
    """A read of the records of `plan` that sources read by code of their own: in any thread, one thread at a time.

    The constructor asks sources for their records that can be asked without a wait.
    """

    def __init__(self, gather: HostGather, plan: Plan, without: Collection[int] = ()):
        self._gather, self._plan = gather, plan
        self._to_read = gather.to_read(plan, without)
        self._hops = current_hops()
        self._taking = [gather.ask(source_id, plan, slots) for source_id, slots in self._to_read]
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is something to read."""
        return bool(self._to_read)

    def parts(self) -> Iterator[Part]:
        """The records of one source after another. Raises what `HostGather.into` does."""
        for at, (source_id, slots) in enumerate(self._to_read):
            self._at = at
            taking, self._taking[at] = self._taking[at], None  # which is for once
            with passing_on(self._hops):  # not around the yield: this may be another thread than the constructor's
                part = self._gather.read_source(source_id, self._plan, slots, taking)
            yield part
            del part  # this frame must not keep its memory while the next source is read

    def unread(self, error: Exception) -> FailedRead:
        """What `error`, in place of the records of the source that is read now, is for the reader of the plan."""
        source_id, slots = self._to_read[self._at]
        return self._gather.unread(source_id, self._plan, slots, error)


class SourceReader(Protocol):
    """Reads in threads of its own, for as long as it wants."""

    def read(self, read: SourceRead) -> Callable[[], Iterable[Part]]:
        """A function that returns the parts of `read`. It begins the read, unless an earlier call's is in progress."""
        ...


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
