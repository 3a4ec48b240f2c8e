"""A leaf of a mixture, read whole -> the records that cannot be decoded, to be listed and left out."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mixserve.failed_read import FailedRead, describe_cause
from mixserve.mixture.leaf_reader import Batch, Bounds, LeafReader, bounds, widen
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.taking import take_records
from mixserve.sources import is_array_backed
from mixserve.sources.open_file import OpenFile, files_of
from mixserve.sources.undecodable import UnreadRecord, is_undecodable

_READ_BYTES = 8 << 20
_SHOWN = 3


class Scanned(NamedTuple):
    """The records that cannot be decoded, by id, which rise, with what is wrong; and the smallest and the largest ids
    of the others, by field."""

    bad: dict[int, str]
    ids: Bounds


def scan_leaf(mixture: Mixture, number: int, most: int, tell: Callable[[int], None]) -> Scanned:
    """Read all records of a leaf without keys; `tell` is called with numbers of records that were read.

    Raises ValueError if a record cannot be read for another reason than its data, or if more than `most` records cannot
    be decoded; SourceChanged if a file has changed meanwhile.
    """
    return _Scan(mixture, number, most).run(tell)


class _Scan:
    def __init__(self, mixture: Mixture, number: int, most: int):
        self._name, self._leaf = mixture.leaf_names[number], mixture.leaves[number]
        self._reader = LeafReader(mixture, number)
        self._most = most
        self._bad: dict[int, str] = {}
        self._ids: Bounds = {}
        self._readable = set[int]()

    def run(self, tell: Callable[[int], None]) -> Scanned:
        if is_array_backed(self._leaf):  # rows are copied: there is nothing to decode
            for count, ids in self._reader.read_all():
                widen(self._ids, ids)
                tell(count)
        else:
            for first, stop in self._reader.steps():
                for batch in self._read(first, stop):
                    widen(self._ids, bounds(batch, self._reader.id_fields))
                tell(stop - first)
        # Records of a file that was written to may be anything. It is noticed at the end, whenever it happened.
        self._check_unchanged()
        return Scanned(self._bad, self._ids)

    def _read(self, first: int, stop: int) -> Iterator[Batch]:
        """The records [first, stop) that can be decoded, in batches: halves, as long as one of their records cannot."""
        try:
            batch = self._take(first, stop)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a source may be a user's code, and raise anything
            if not is_undecodable(error):
                raise self._failed(first, stop, error) from error
            batch = None
        if batch is not None:
            yield batch
        elif stop - first == 1:
            yield from self._read_again(first)
        else:
            middle = (first + stop) // 2
            yield from self._read(first, middle)
            yield from self._read(middle, stop)

    def _read_again(self, record_id: int) -> Iterator[Batch]:
        """The record, if it can be decoded after all; else it is listed."""
        try:
            yield self._take(record_id, record_id + 1)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not is_undecodable(error):
                raise self._failed(record_id, record_id + 1, error) from error
            if isinstance(error, UnreadRecord) and error.file is not None:
                self._check_readable(error.file)
            self._bad[record_id] = describe_cause(error)
            if len(self._bad) > self._most:
                raise ValueError(self._too_many(record_id)) from error

    def _take(self, first: int, stop: int) -> Batch:
        plan, buffers = self._reader.plan(np.arange(first, stop))
        return take_records(self._leaf, plan, buffers)

    def _failed(self, first: int, stop: int, error: BaseException) -> ValueError:
        """What to raise for an error of the records [first, stop) that is not about their data. Raises SourceChanged if
        that is why."""
        self._check_unchanged()
        for record_id in range(first, stop) if stop - first > 1 else ():
            try:
                self._take(record_id, record_id + 1)
            except KeyboardInterrupt:
                raise
            except BaseException as alone:
                if not is_undecodable(alone):
                    return ValueError(str(FailedRead.of(self._name, [record_id], 0, alone)))
        return ValueError(str(FailedRead.of(self._name, range(first, stop), 0, error)))

    def _too_many(self, record_id: int) -> str:
        shown = "; ".join(f"record {bad}: {why}" for bad, why in list(self._bad.items())[:_SHOWN])
        return (
            f"{len(self._bad):,} of the first {record_id + 1:,} records of the source {self._name!r:.100} cannot be "
            f"decoded, and on_error: skip leaves out at most {self._most:,} of {len(self._leaf):,}: the data are "
            f"damaged, or are not what the configuration says. {shown}"
        )

    def _check_unchanged(self) -> None:
        """Raises SourceChanged if a file has changed since it was opened."""
        for file in files_of(self._leaf):
            file.check_unchanged()

    def _check_readable(self, file: OpenFile) -> None:
        """Raises OSError unless the system can read the whole file."""
        if id(file) not in self._readable:
            for at in range(0, file.size, _READ_BYTES):
                file.read(at, min(_READ_BYTES, file.size - at))
            self._readable.add(id(file))
