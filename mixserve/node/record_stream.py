"""Grain's iterator over the records of a mixture, moved to any index: step by step, or from a saved state."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grain

from mixserve.error_boundary import user_code
from mixserve.failed_read import note_read, read_note
from mixserve.module.state import check_same_shape

_CHECKPOINT_EVERY, _MOST_CHECKPOINTS = 1024, 16

MakeDataset = Callable[[], grain.IterDataset]


class EpochEnded(ValueError):
    """The epoch has no such index; it ends at `end`, the number of its records."""

    def __init__(self, index: int, end: int):
        super().__init__(f"index must be at most {end}, where the epoch ends, got {index}")
        self.end = end


class StreamCheckpoint(NamedTuple):
    """Grain's state before a record; the state None is that of a new iterator."""

    record: int
    state: Any


_Place = StreamCheckpoint  # the former name, under which nodes that earlier versions pickled look for it


class RecordStream:
    """A position among the single records of one epoch. Each call gets the function that makes the data set.

    Keeps a checkpoint every 1,024 records, the last 16 of them, so that it gets to nearby positions quickly: after an
    error, in a clone, and when a user sets an index.
    """

    def __init__(self, checkpoints: list[StreamCheckpoint] | None = None):
        self._iterator: grain.DatasetIterator | None = None
        self._index = 0
        self._checkpoints = deque(checkpoints or [], _MOST_CHECKPOINTS)

    def copy(self) -> "RecordStream":
        """Another stream of the same records, with this one's checkpoints."""
        return RecordStream(self._all_checkpoints())

    def read(self, make_dataset: MakeDataset, index: int) -> Any:
        """The record at `index`. Raises StopIteration if Grain's mix ends at or before it."""
        iterator = self._at(make_dataset, index)
        record = self._next(iterator)
        if self._index % _CHECKPOINT_EVERY == 0:
            self._checkpoints.append(StreamCheckpoint(self._index, iterator.get_state()))
        return record

    def state(self, make_dataset: MakeDataset, index: int) -> str:
        """Grain's state before the record at `index`, as JSON. Raises EpochEnded if Grain's mix ends before it."""
        try:
            return json.dumps(self._at(make_dataset, index).get_state())
        except StopIteration:
            raise EpochEnded(index, self._index) from None

    @staticmethod
    def restore(make_dataset: MakeDataset, index: int, state: str) -> "RecordStream":
        """A stream at `index`, from the state there. Raises ValueError for a state of another index or data set."""
        try:
            loaded = json.loads(state)
            check_same_shape(iter(make_dataset()).get_state(), loaded)
            stream = RecordStream([StreamCheckpoint(index, loaded)])
            stream._at(make_dataset, index)
        except Exception as error:  # whatever Grain raises for a state of another dataset
            raise ValueError(
                f"{state!r:.200} is not a state of Grain's iterator over these records: {error}"
            ) from error
        if loaded["index"] - loaded["stop"] != index:  # at its end, a mix has counted one record too many
            raise ValueError(f"{state!r:.200} is not the state of Grain's iterator before the record {index}")
        return stream

    def _at(self, make_dataset: MakeDataset, index: int) -> grain.DatasetIterator:
        """The iterator, moved to `index`. Raises StopIteration if Grain's mix ends before it."""
        iterator = self._iterator
        if iterator is None or self._index != index:
            before = [checkpoint for checkpoint in self._checkpoints if checkpoint.record <= index]
            nearest = max(before, default=StreamCheckpoint(0, None), key=lambda checkpoint: checkpoint.record)
            with user_code("beginning to iterate over the sources"):
                iterator = iter(make_dataset())
                if nearest.state is not None:
                    iterator.set_state(nearest.state)
            # Set before the steps: if one of them fails, `_next` drops the iterator.
            self._iterator, self._index = iterator, nearest.record
            while self._index < index:
                self._next(iterator)
        return iterator

    def _next(self, iterator: grain.DatasetIterator) -> Any:
        try:
            record = next(iterator)
        except StopIteration:
            raise
        except BaseException as error:
            # After any error of a source, Grain's mix is at its end. The next read starts from a checkpoint.
            self._iterator = None
            note = read_note(error)
            if note is not None:
                note_read(error, f"at index {self._index} of the epoch: {note}", note.read, self._index)
            raise
        self._index += 1
        return record

    def _all_checkpoints(self) -> list[StreamCheckpoint]:
        here = [] if self._iterator is None else [StreamCheckpoint(self._index, self._iterator.get_state())]
        return [*self._checkpoints, *here]

    def __reduce__(self) -> Any:
        return RecordStream, (self._all_checkpoints(),)
