"""A source of a mixture -> what `mixserve check` says of it: size, speed, ids, and what may be wrong with them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import numpy as np

from mixserve.failed_read import FailedRead
from mixserve.mixture.id_patterns import find_pattern
from mixserve.mixture.leaves import Plan
from mixserve.mixture.mixture import Mixture
from mixserve.sources import is_array_backed, is_keyed
from mixserve.sources.column_source import LongRecords
from mixserve.sources.open_file import OpenFile, file_of
from mixserve_client.schema.fields import Field

_BATCH = 256
_MOST_BATCHES = 64
_BYTES_AT_ONCE = 16 << 20
_LARGEST_ID = 1 << 24  # vocabularies have a million ids at most
_ADDED = ("_segment_ids", "_positions")  # the fields of `segments` and `pack`

Tell = Callable[[int], None]


@dataclass
class Examined:
    """What is known of a source. `rate` is in records per second; `ids` has smallest and largest by field."""

    nbytes: int | None = None
    rate: float | None = None
    too_long: LongRecords | None = None
    ids: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    vocab_size: int | None = None
    warnings: list[str] = field(default_factory=list[str])

    @classmethod
    def joined(cls, parts: Sequence["Examined"]) -> "Examined":
        """What is known of a nested mixture, of whose sources these are known."""
        if len(parts) == 1:
            return parts[0]
        sizes = [part.nbytes for part in parts]
        long = [part.too_long for part in parts if part.too_long is not None]
        together = cls(nbytes=sum(size or 0 for size in sizes) if None not in sizes else None)
        together.too_long = LongRecords.sum(long) if long else None
        for part in parts:
            together.widen(part.ids)
            together.warnings += part.warnings
        return together

    def widen(self, ids: Mapping[str, tuple[int, int]]) -> None:
        """Take smaller and larger ids into account."""
        for name, (low, high) in ids.items():
            known = self.ids.get(name, (low, high))
            self.ids[name] = min(low, known[0]), max(high, known[1])


def examine_leaf(mixture: Mixture, number: int, *, seconds: float, full: bool, tell: Tell) -> Examined:
    """What is known of a leaf when its first and last record and a sample have been read, for about `seconds`.

    No sample if that is 0. With `full`, all records are read; `tell` is called with the number of those that were.
    Raises ValueError, which names the record, if one cannot be read.
    """
    leaf: Any = mixture.leaves[number]
    found = Examined(_source_bytes(leaf), vocab_size=getattr(leaf, "vocab_size", None))
    if count_long := getattr(leaf, "too_long", None):
        found.too_long = _check_long(count_long())
    mixture.check_leaf(number)
    reader = _Reader(mixture, number)
    sample: dict[str, np.ndarray] = {}
    if full and len(leaf):  # before the sample: the first bad record is to be named, not any
        reader.read_all(found, tell)
    if seconds and len(leaf) and not is_keyed(leaf):
        found.rate, sample = reader.read_sample(seconds, found)
    _look_at_ids(leaf, found, sample, full=full)
    if told := getattr(leaf, "warnings", None):
        found.warnings += told()
    return found


class _Reader:
    """Reads records of one leaf as the server does for a batch."""

    def __init__(self, mixture: Mixture, number: int):
        self._mixture, self._number = mixture, number
        self._length = len(mixture.leaves[number])
        self._id_fields = id_fields(mixture.fields)
        row_bytes = sum(field.nbytes for field in mixture.fields)
        self._most = max(1, _BYTES_AT_ONCE // max(1, row_bytes))

    def read_sample(self, seconds: float, found: Examined) -> tuple[float, dict[str, np.ndarray]]:
        """Records per second in batches at random, and the ids of one batch."""
        until, rng = time.perf_counter() + seconds, np.random.default_rng(0)
        sample: dict[str, np.ndarray] = {}
        spent, count, least = 0.0, 0, 0
        # Small ones first: a record may take seconds. Only the largest ones count, since a batch has a cost of its own.
        for size in chain((1, 4, 16, 64), repeat(_BATCH, _MOST_BATCHES)):
            size = min(size, self._most)
            ids = rng.integers(0, self._length, size)
            begin = time.perf_counter()
            batch = self._read(ids)
            now = time.perf_counter()
            if size > least:
                spent, count, least = 0.0, 0, size
                sample = {name: batch[name] for name in self._id_fields}
            spent, count = spent + now - begin, count + size
            found.widen(_bounds(batch, self._id_fields))
            if now + 2 * (now - begin) > until:
                break
        return count / max(spent, 1e-9), sample

    def read_all(self, found: Examined, tell: Tell) -> None:
        step = min(self._most, 4 * _BATCH)
        for first in range(0, self._length, step):
            ids = np.arange(first, min(first + step, self._length))
            found.widen(_bounds(self._read(ids), self._id_fields))
            tell(len(ids))

    def _read(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        size = len(record_ids)
        buffers = {field.name: np.empty((size, *field.shape), field.dtype) for field in self._mixture.fields}
        numbers = np.full(size, self._number, np.int32)
        plan = Plan(numbers, record_ids.astype(np.int64), np.zeros((size, 2), np.uint32))
        try:
            self._mixture.host_gather.into(plan, buffers)
        except FailedRead as error:
            raise ValueError(str(error)) from error
        return buffers


def id_fields(fields: Sequence[Field]) -> list[str]:
    """The fields that may have ids: rows of integers; if there are none, single integers."""
    names = {field.name for field in fields}
    added = {name + end for name in names for end in _ADDED}
    integers = [field for field in fields if field.dtype.kind in "iu" and len(field.shape) < 2]
    rows = [field.name for field in integers if field.shape and field.name not in added]
    return rows or [field.name for field in integers if field.name not in added]


def _bounds(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    found = {name: batch[name] for name in names if batch[name].size}
    return {name: (int(ids.min()), int(ids.max())) for name, ids in found.items()}


def _check_long(found: Mapping[str, LongRecords]) -> LongRecords | None:
    """How many records are too long. Raises ValueError if they must not be cut."""
    for name, long in found.items():
        if long.records and not long.is_cut:
            raise ValueError(
                f"fields.{name}: {long.records:,} records have more values than its length: give a larger length, or "
                "long: cut"
            )
    return LongRecords.sum(list(found.values())) if found else None


def _look_at_ids(leaf: Any, found: Examined, sample: Mapping[str, np.ndarray], *, full: bool) -> None:
    """Ask the source for its largest id too, and look for ids of another dtype."""
    stored: np.dtype | None = None
    if largest := getattr(leaf, "largest_id", None):
        stored = leaf.stored_dtype
        highest: int | None = largest(full=full and found.vocab_size is not None)
        if highest is not None:
            found.widen(dict.fromkeys(list(found.ids)[:1], (highest, highest)))
    for name, ids in sample.items():
        said = find_pattern(ids, stored)
        if said is None and stored is not None and stored.itemsize > 2 and found.ids[name][1] >= _LARGEST_ID:
            said = f"ids up to {found.ids[name][1]:,} are those of no vocabulary: is the dtype uint16?"
        if said is not None:
            found.warnings.append(f"{name}: {said}")


def _source_bytes(source: Any) -> int | None:
    """The size of the source's files, else of its arrays; None if it has neither."""
    named: Callable[[], Sequence[OpenFile]] | None = getattr(source, "files", None)
    if named is not None and (files := named()):
        return sum(file.size for file in files)
    if not is_array_backed(source):
        return None
    sizes: dict[int, int] = {}
    for array in (array for block in source.blocks() for array in block.values()):
        owner = file_of(array)
        low, high = np.lib.array_utils.byte_bounds(array)
        sizes[id(owner[0]) if owner else int(low)] = owner[0].size if owner else int(high - low)
    return sum(sizes.values())
