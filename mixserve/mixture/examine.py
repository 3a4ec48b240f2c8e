"""A source of a mixture -> what `mixserve check` says of it: size, speed, ids, and what may be wrong with them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixserve.failed_read import FailedRead
from mixserve.mixture.id_patterns import find_pattern
from mixserve.mixture.leaf_reader import Bounds, LeafReader, widen
from mixserve.mixture.mixture import Mixture
from mixserve.sources import AnySource, is_array_backed, is_keyed
from mixserve.sources.column_source import LongRecords
from mixserve.sources.open_file import OpenFile, file_of
from mixserve.sources.undecodable import is_undecodable
from mixserve.sources.without import SourceWithout

_LARGEST_ID = 1 << 24  # vocabularies have a million ids at most
_ADVICE = (
    "With on_error: skip, records of the source that cannot be decoded are left out, once mixserve check FILE --full "
    "has listed them"
)

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

    def widen(self, ids: Bounds) -> None:
        """Take smaller and larger ids into account."""
        widen(self.ids, ids)


def examine_leaf(
    mixture: Mixture, number: int, *, seconds: float, full: bool, tell: Tell, known: Bounds | None = None
) -> Examined:
    """What is known of a leaf when its first and last record and a sample have been read, for about `seconds`.

    No sample if that is 0. With `full`, all records are read, unless their smallest and largest ids are `known`; `tell`
    is called with the number of those that were. Raises ValueError, which names the record, if one cannot be read.
    """
    leaf: Any = mixture.leaves[number]
    found = Examined(_source_bytes(leaf), vocab_size=getattr(leaf, "vocab_size", None))
    if count_long := getattr(leaf, "too_long", None):
        found.too_long = _check_long(count_long())
    with _advising(leaf):
        mixture.check_leaf(number)
        reader = LeafReader(mixture, number)
        sample: dict[str, np.ndarray] = {}
        if known is not None:
            found.widen(known)
        elif full and len(leaf):  # before the sample: the first bad record is to be named, not any
            for count, ids in reader.read_all():
                found.widen(ids)
                tell(count)
        if seconds and len(leaf) and not is_keyed(leaf):
            found.rate, sample = reader.read_sample(seconds, found.widen)
    _look_at_ids(leaf, found, sample, full=full)
    if told := getattr(leaf, "warnings", None):
        found.warnings += told()
    return found


@contextmanager
def _advising(leaf: AnySource) -> Generator[None, None, None]:
    """Around reads of a leaf: the error of a record that could be left out says how."""
    try:
        yield
    except ValueError as error:
        cause = error.__cause__.__cause__ if isinstance(error.__cause__, FailedRead) else error.__cause__
        if cause is None or isinstance(leaf, SourceWithout) or not is_undecodable(cause):
            raise
        raise ValueError(f"{error}. {_ADVICE}") from error


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
