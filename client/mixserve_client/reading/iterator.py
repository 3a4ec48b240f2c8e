"""The training loop's iterator: prefetches batches, and has a state of about 150 bytes, plus its schedule and skips."""

import threading
import weakref
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

from mixserve_client import tracing
from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import renew_in_forks
from mixserve_client.reading.batches import Batches
from mixserve_client.reading.state_file import load_state, write_state
from mixserve_client.reading.traced import next_in_span
from mixserve_client.rpc.one_thread import OneThreaded
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.schedule import Weights


class BatchIterator(OneThreaded):
    """Yields batches as dicts of arrays of shape (rows, *field.shape); made by `MixClient.batches`.

    For one thread at a time: a call while another thread is in one raises InvalidRequest. Only `close` may come from
    any thread; it ends a wait for a batch with Unavailable.

    The state is the position after the last yielded batch; prefetched batches do not count. After an error the state
    stays where it was, and the next `next()` requests the same batch again.
    """

    def __init__(self, batches: Batches, *, closed: bool = False):
        super().__init__()
        tracing.look()
        self.batches = batches  # public for `DeviceBatches` and `AsyncBatchIterator`, which return to checkpoints
        self._closed = closed
        renew_in_forks(self, BatchIterator._renew_after_fork)
        weakref.finalize(self, batches.cancel).atexit = False  # a dropped iterator must not go on reading

    def __iter__(self) -> Self:
        return self

    @OneThreaded._in_turn
    def __next__(self) -> Batch:
        """The next batch. Records that are nested on the server come nested. Raises StopIteration at the end."""
        self._check_open()
        if tracing.spans is not None:
            return next_in_span(tracing.spans, self.batches)
        return self.batches.next()

    @OneThreaded._in_turn
    def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Use `weights` from `from_position` on (default: the next batch), replacing later entries.

        Returns the position at which they take effect: in epoch mode the next block boundary. `weights` is a number for
        each source, or a dict by the sources' names. Batches prefetched past the change are requested again; with small
        batches that is many. The schedule is part of the state.

        Raises InvalidRequest if `from_position` lies before the next batch, if the weights do not fit the mixture, or
        if it ends before they take effect; for one of several workers also if `from_position` is None, since workers
        stand at different positions.
        """
        return self.batches.schedule_weights(weights, from_position)

    @OneThreaded._in_turn
    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop), in addition to earlier skips. The skips are part of the state.

        Raises InvalidRequest if `start` lies before the next batch.
        """
        self.batches.skip(start, stop)

    @OneThreaded._in_turn
    def get_state(self) -> dict[str, Any]:
        """The state in plain JSON types: the position after the last yielded batch, with key, schedule and skips.

        To restore it costs the same at every position. States of one iterator share the lists of their schedule and
        skips: copy a state before you change these lists. Before the first batch this may ask the server for the
        mixture's fingerprint.
        """
        return self.batches.state_at(self.batches.checkpoint)

    @OneThreaded._in_turn
    def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken, with its key and schedule. Batch size and shard may differ from those then.

        The iterator skips the state's ranges and its own. One of several workers accepts its own states, of the same
        batch size, and those of an iterator without workers.

        Raises InvalidRequest if `state` is not a state, or if workers would lose rows or read some twice;
        FingerprintMismatch if it was taken from another mixture and this iterator is `strict`. Then nothing has
        changed.
        """
        self.batches.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """`get_state` under the name that torchdata, Hugging Face and Lightning call."""
        return self.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`set_state` under the name that torchdata, Hugging Face and Lightning call."""
        self.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to save the iterator beside a model. It takes the state at once, and writes it when the
        folder exists. `directory` is Orbax's promise of a folder, or a path."""
        return write_state(directory, self.get_state())

    async def load(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to resume where `save` was called. Raises what `set_state` raises."""
        return load_state(directory, self.set_state)

    @OneThreaded._in_turn
    def reset(self) -> None:
        """Go back to the beginning, with the key, schedule and skips that this iterator was made with."""
        self.batches.reset()

    @OneThreaded._in_turn
    def start_prefetch(self) -> None:
        """Send the first requests now, before the first `next`. Does nothing if there is nothing to prefetch."""
        self._check_open()
        self.batches.refill()

    @OneThreaded._in_turn
    def element_spec(self) -> Any:
        """The structure of a batch, with a Field (name, dtype, shape) in place of each array; the last batch may have
        fewer rows. Before the first batch this may ask the server for the mixture."""
        return self.batches.spec()

    @OneThreaded._in_turn
    def __len__(self) -> int:
        """How many batches are left for this iterator. Before the first batch this may ask the server for the mixture.

        Raises TypeError if there is no end.
        """
        return self.batches.left()

    def __bool__(self) -> bool:
        return True  # otherwise `if iterator:` would call __len__, which asks a server, and raises if there is no end

    def close(self) -> None:
        """Drop the batches in flight; the client stays open. You may call it more than once, from any thread.

        If another thread is waiting for a batch, its call raises Unavailable.
        """
        # In this order: `cancel` wakes a thread that waits, which drops its batches at the end of its call if it finds
        # the iterator closed; `_settle` does so here if no thread is in a call.
        self._closed = True
        self.batches.cancel()
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        batches, shard = self.batches, self.batches.shard
        worker = f", worker={shard.worker}" if shard.worker[1] > 1 else ""
        return (
            f"BatchIterator(mixture={batches.mixture_name!r}, batch_size={shard.batch_size}, "
            f"key={batches.words.tolist()}, position={batches.checkpoint.position}, shard={shard.shard}{worker})"
        )

    def __reduce__(self) -> Any:
        """An iterator at the same position, from the same servers."""
        return _unpickle, (self.batches, self._closed)

    def _renew_after_fork(self) -> None:
        """Leave the batches in flight to the parent; `next` requests them again here."""
        self.batches.leave_to_parent()
        self._turn = threading.RLock()  # a thread that does not exist here may have held the old one

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this iterator is closed: make a new one with client.batches(...)")

    def _drop(self) -> None:
        self.batches.forget()


def _unpickle(batches: Batches, closed: bool) -> BatchIterator:
    return BatchIterator(batches, closed=closed)
