"""Grain's iterator over the records of a mixture, at any index: forward record by record, elsewhere from a state."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grain

from mixserve.error_boundary import user_code
from mixserve.module.state import check_same_shape

_CHECKPOINT_EVERY, _MOST_CHECKPOINTS = 1024, 16

MakeDataset = Callable[[], grain.IterDataset]


class EpochEnded(ValueError):
    """The epoch has no such index: it ends at `end`."""

    def __init__(self, index: int, end: int):
        super().__init__(f"index must be at most {end}, where the epoch ends, got {index}")
        self.end = end


class StreamCheckpoint(NamedTuple):
    """Grain's state before a record; None is the beginning."""

    record: int
    state: Any


_Place = StreamCheckpoint  # in nodes that earlier versions pickled


class RecordStream:
    """A place among single records, in the order of one epoch; every call is told of what.

    Holds the last sixteen checkpoints, one every 1,024 records, so that places nearby are found again quickly: after an
    error, by a clone, and when somebody sets an index.
    """

    def __init__(self, checkpoints: list[StreamCheckpoint] | None = None):
        self._iterator: grain.DatasetIterator | None = None
        self._index = 0
        self._checkpoints = deque(checkpoints or [], _MOST_CHECKPOINTS)

    def beside(self) -> "RecordStream":
        """Another stream of the same records, with the checkpoints of this one."""
        return RecordStream(self._all_checkpoints())

    def read(self, make_dataset: MakeDataset, index: int) -> Any:
        """The record at `index`. Raises StopIteration where Grain's mix ends before or there."""
        iterator = self._at(make_dataset, index)
        record = self._next(iterator)
        if self._index % _CHECKPOINT_EVERY == 0:
            self._checkpoints.append(StreamCheckpoint(self._index, iterator.get_state()))
        return record

    def state(self, make_dataset: MakeDataset, index: int) -> str:
        """Grain's state before the record at `index`, as JSON. Raises ValueError where Grain's mix ends before."""
        try:
            return json.dumps(self._at(make_dataset, index).get_state())
        except StopIteration:
            raise EpochEnded(index, self._index) from None

    @staticmethod
    def restored(make_dataset: MakeDataset, index: int, state: str) -> "RecordStream":
        """A stream at `index`, where `state` was taken. Raises ValueError for a state of another place or dataset."""
        try:
            loaded = json.loads(state)
            check_same_shape(iter(make_dataset()).get_state(), loaded)
            stream = RecordStream([StreamCheckpoint(index, loaded)])
            stream._at(make_dataset, index)
        except Exception as error:  # whatever Grain raises for a state of another dataset
            raise ValueError(f"{state!r:.200} is no state of Grain's iterator over these records: {error}") from error
        if loaded["index"] - loaded["stop"] != index:  # a mix that came to its end has counted one too many
            raise ValueError(f"{state!r:.200} is not the state of Grain's iterator before the record {index}")
        return stream

    def _at(self, make_dataset: MakeDataset, index: int) -> grain.DatasetIterator:
        iterator = self._iterator
        if iterator is None or self._index != index:
            before = [checkpoint for checkpoint in self._checkpoints if checkpoint.record <= index]
            nearest = max(before, default=StreamCheckpoint(0, None), key=lambda checkpoint: checkpoint.record)
            with user_code("beginning to iterate over the sources"):
                iterator = iter(make_dataset())
                if nearest.state is not None:
                    iterator.set_state(nearest.state)
            self._iterator, self._index = iterator, nearest.record
            while self._index < index:
                self._next(iterator)
        return iterator

    def _next(self, iterator: grain.DatasetIterator) -> Any:
        try:
            record = next(iterator)
        except StopIteration:
            raise
        except BaseException:
            self._iterator = None  # after any error Grain's mix is at its end; the next read starts from a checkpoint
            raise
        self._index += 1
        return record

    def _all_checkpoints(self) -> list[StreamCheckpoint]:
        here = [] if self._iterator is None else [StreamCheckpoint(self._index, self._iterator.get_state())]
        return [*self._checkpoints, *here]

    def __reduce__(self) -> Any:
        return RecordStream, (self._all_checkpoints(),)
