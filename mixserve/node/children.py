"""The objects that a node gets as sources -> sources of a mixture, and Grain's data set of their single records."""

import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from mixserve.error_boundary import is_callers_own, user_code
from mixserve.failed_read import FailedRead, Read, note_read
from mixserve.mixture.file_guard import FileGuard
from mixserve.sources import AnySource, FollowsReference, ReferenceSource, Source, read_record
from mixserve.sources.array_like import how_to_wrap
from mixserve.sources.open_file import files_of
from mixserve_client.schema.text import show

# Grain counts in multiples of the least share, and these must be finite floats.
_LEAST_SHARE = 1e-300


def as_source(source: Any) -> AnySource:
    """`source`, or an adapter if it follows the reference's protocol. Raises TypeError for anything else."""
    # A class has the methods of its objects, so the protocols alone would accept it.
    if not isinstance(source, type):
        if isinstance(source, Source):
            return source
        if isinstance(source, FollowsReference):
            return ReferenceSource(source)
    raise TypeError(
        "a source needs __len__, element_spec() and take(record_ids) or get_batch_at(start, size, key), "
        f"got {show(source)}{how_to_wrap(source)}"
    )


class _Reading(threading.local):
    """What a thread reads: the path of the mixture whose data set it makes, and the last record that it asked for."""

    path = ""
    last: tuple[str, int | None] | None = None  # what a Read has, which takes longer to make


_READING = _Reading()


def last_read() -> Read | None:
    """Where the last single record that this thread asked for is from; None if another thread has read it."""
    return None if _READING.last is None else Read(*_READING.last)


def forget_last_read() -> None:
    """`last_read` is None until this thread asks for the next record."""
    _READING.last = None


def mixed_records(sources: Sequence[Any], shares: Sequence[float], names: Sequence[str]) -> grain.IterDataset:
    """The records of all sources that have a share, one by one, interleaved by Grain; `names` are for errors.

    Raises ValueError if a share is positive, but below 1e-300.
    """
    # Grain refuses weights of 0.
    drawn = [(source, share, name) for source, share, name in zip(sources, shares, names, strict=True) if share > 0]
    least = min(share for _, share, _ in drawn)
    if least < _LEAST_SHARE:
        raise ValueError(f"to iterate, every weight must be 0 or at least {_LEAST_SHARE} of their sum, got {least}")
    path = _READING.path
    return grain.IterDataset.mix(
        [_records(source, path + name) for source, _, name in drawn], [share for _, share, _ in drawn]
    )


def _records(source: Any, name: str) -> grain.IterDataset:
    if hasattr(source, "to_grain_iter_dataset"):
        before, _READING.path = _READING.path, f"{name}/"  # of a nested mixture's sources
        try:
            with user_code("to_grain_iter_dataset of {!r:.200}", source):
                return _Named(source.to_grain_iter_dataset(), name)
        finally:
            _READING.path = before
    # Without threads: Grain's default starts 16 per source.
    return grain.MapDataset.source(_Records(source, name)).to_iter_dataset(grain.ReadOptions(0, 0))


class _Named(grain.IterDataset):
    """The data set of a source that makes its own: errors say which source it was. Its state is that of `parent`."""

    def __init__(self, parent: grain.IterDataset, name: str):
        super().__init__(parent)
        self._own, self._name = parent, name

    def __iter__(self) -> grain.DatasetIterator:
        return _NamedIterator(iter(self._own), self._name)


class _NamedIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, name: str):
        super().__init__(parent)
        self._own, self._name = parent, name

    def __next__(self) -> Any:
        _READING.last = None
        try:
            return next(self._own)
        except StopIteration:
            raise
        except BaseException as error:
            # Not by its notes: a source may raise the same object again, and they are those of an earlier read then.
            if not is_callers_own(error) and _READING.last is None:
                note_read(error, str(FailedRead.of(self._name, [], 0, error)), Read(self._name, None))
            raise
        finally:
            if _READING.last is None:
                _READING.last = self._name, None

    def get_state(self) -> Any:
        return self._own.get_state()

    def set_state(self, state: Any) -> None:
        self._own.set_state(state)


_ONLY = np.zeros(1, np.int64)  # the number of the source, in a guard of its own


class _Records:
    """A source as a random access data source of Grain."""

    def __init__(self, source: Any, name: str):
        self._source = source
        self._name = name
        self._guard = FileGuard({0: files_of(source)}, [name])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        self._guard.check(_ONLY)
        try:
            return read_record(self._source, index)
        except BaseException as error:
            if not is_callers_own(error):
                self._guard.look()  # what failed may be a file that was cut
                self._guard.check(_ONLY)
                note_read(error, str(FailedRead.of(self._name, [index], 0, error)), Read(self._name, index))
            raise
        finally:
            _READING.last = self._name, index

    def __repr__(self) -> str:
        return repr(self._source)
