"""Grain's iterator over the records of a mixture, at any index: forward record by record, elsewhere from a state."""

import json
from collections.abc import Callable
from typing import Any

import grain

from mixserve.state import check_same_shape

# Grain's state is kept this often, so that no place is further from one than this many records.
_KEPT_EVERY = 1024


class RecordStream:
    """Single records, in the order of one epoch."""

    def __init__(self, dataset: Callable[[], grain.IterDataset], beside: "RecordStream | None" = None):
        """`beside` is a stream of the same records, whose place is known from the start."""
        self._make_dataset = dataset
        self._iterator: grain.DatasetIterator | None = None
        self._index = 0
        self._kept: tuple[int, Any] = (0, None)  # an index, and Grain's state there: None is the beginning
        if beside is not None:
            self._kept = beside._kept if beside._iterator is None else (beside._index, beside._iterator.get_state())

    def read(self, index: int) -> Any:
        """The record at `index`. Raises StopIteration where Grain's mix ends there."""
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
            self._kept = (self._index, iterator.get_state())
        return record

    def state(self, index: int) -> str:
        """Grain's state before the record at `index`, as JSON."""
        return json.dumps(self._at(index).get_state())

    def restored(self, index: int, state: str) -> "RecordStream":
        """A stream at `index`, where `state` was taken. Raises ValueError for a state of another place or dataset."""
        try:
            loaded = json.loads(state)
            check_same_shape(iter(self._make_dataset()).get_state(), loaded)
            stream = RecordStream(self._make_dataset)
            stream._restart(index, loaded)
        except Exception as error:  # whatever Grain raises for a state of another dataset
            raise ValueError(f"{state!r:.200} is no state of Grain's iterator over these records: {error}") from error
        if loaded["index"] - loaded["stop"] != index:  # a mix that came to its end has counted one too many
            raise ValueError(f"{state!r:.200} is not the state of Grain's iterator before the record {index}")
        return stream

    def _at(self, index: int) -> grain.DatasetIterator:
        iterator = self._iterator
        if iterator is None or self._index != index:
            at, state = self._kept
            iterator = self._restart(*((at, state) if at <= index else (0, None)))
            while self._index < index:
                next(iterator)
                self._index += 1
        return iterator

    def _restart(self, index: int, state: Any) -> grain.DatasetIterator:
        self._iterator = iter(self._make_dataset())
        if state is not None:
            self._iterator.set_state(state)
        self._index, self._kept = index, (index, state)
        return self._iterator
