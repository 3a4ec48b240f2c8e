"""Grain's iterator over the records of a mixture, at any index: forward record by record, elsewhere from a state."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grain

from mixserve.state import check_same_shape

_KEPT_EVERY, _KEPT = 1024, 16


class _Place(NamedTuple):
    """Grain's state before a record; None is the beginning."""

    record: int
    state: Any


class RecordStream:
    """Single records, in the order of one epoch.

    Grain's states are kept every 1,024 records, the last sixteen of them, so that places nearby are found again
    quickly: after an error, by a clone, and where somebody sets an index.
    """

    def __init__(self, make_dataset: Callable[[], grain.IterDataset], beside: "RecordStream | None" = None):
        """`beside` is a stream of the same records, whose places are known from the start."""
        self._make_dataset = make_dataset
        self._iterator: grain.DatasetIterator | None = None
        self._index = 0
        self._kept = deque([_Place(0, None)] if beside is None else beside._places(), _KEPT)

    def read(self, index: int) -> Any:
        """The record at `index`. Raises StopIteration where Grain's mix ends before or there."""
        iterator = self._at(index)
        try:
            record = next(iterator)
        except StopIteration:
            raise
        except BaseException:
            self._iterator = None  # after any error Grain's mix is at its end; the next read starts from a kept state
            raise
        self._index += 1
        if self._index % _KEPT_EVERY == 0:
            self._kept.append(_Place(self._index, iterator.get_state()))
        return record

    def state(self, index: int) -> str:
        """Grain's state before the record at `index`, as JSON. Raises ValueError where Grain's mix ends before."""
        try:
            return json.dumps(self._at(index).get_state())
        except StopIteration:
            raise ValueError(f"index must be at most {self._index}, where the epoch ends, got {index}") from None

    def restored(self, index: int, state: str) -> "RecordStream":
        """A stream at `index`, where `state` was taken. Raises ValueError for a state of another place or dataset."""
        try:
            loaded = json.loads(state)
            check_same_shape(iter(self._make_dataset()).get_state(), loaded)
            stream = RecordStream(self._make_dataset)
            stream._kept.append(_Place(index, loaded))
            stream._at(index)
        except Exception as error:  # whatever Grain raises for a state of another dataset
            raise ValueError(f"{state!r:.200} is no state of Grain's iterator over these records: {error}") from error
        if loaded["index"] - loaded["stop"] != index:  # a mix that came to its end has counted one too many
            raise ValueError(f"{state!r:.200} is not the state of Grain's iterator before the record {index}")
        return stream

    def _at(self, index: int) -> grain.DatasetIterator:
        iterator = self._iterator
        if iterator is None or self._index != index:
            before = [place for place in self._kept if place.record <= index]
            iterator = self._restart(max(before, default=_Place(0, None), key=lambda place: place.record))
            while self._index < index:
                next(iterator)
                self._index += 1
        return iterator

    def _restart(self, place: _Place) -> grain.DatasetIterator:
        iterator = iter(self._make_dataset())
        if place.state is not None:
            iterator.set_state(place.state)
        self._iterator, self._index = iterator, place.record
        return iterator

    def _places(self) -> list[_Place]:
        here = [] if self._iterator is None else [_Place(self._index, self._iterator.get_state())]
        return [*self._kept, *here]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_make_dataset": self._make_dataset,
            "_iterator": None,
            "_index": 0,
            "_kept": deque(self._places(), _KEPT),
        }
