"""The training loop's iterator: batch after batch, the next ones in flight, and a state of about 150 bytes
and its schedule."""

import threading
import weakref
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Self

from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import renew_in_forks
from mixserve_client.reading.batches import Batches
from mixserve_client.reading.state_file import load_state, write_state
from mixserve_client.rpc.one_thread import OneThreaded
from mixserve_client.schema.schedule import Weights


class BatchIterator(OneThreaded):
    """Yields dicts of arrays; made by `MixClient.batches`.

    For one thread at a time: a call while another thread is in one raises InvalidRequest. `close` alone may come from
    any thread: it ends a wait for a batch with Unavailable.

    The state is the position behind the last batch that was yielded, whatever has been prefetched. An error leaves it
    where it was: the next `next()` asks for the same batch again.
    """

    def __init__(self, batches: Batches, *, closed: bool = False):
        super().__init__()
        self.batches = batches  # for what yields them later than this does
        self._closed = closed
        renew_in_forks(self, BatchIterator._renew_after_fork)
        weakref.finalize(self, batches.cancel).atexit = False

    def __iter__(self) -> Self:
        return self

    @OneThreaded._in_turn
    def __next__(self) -> Any:
        self._check_open()
        return self.batches.next()

    @OneThreaded._in_turn
    def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Change the weights from `from_position` on, in place of what was scheduled from there: the next batch where
        it is None. Returns the position from which they hold: in epoch mode the next border of a block.

        `weights` is a number for each source, or a dict by their names. Batches that are in flight behind that position
        are asked for again; the schedule is part of the state. Raises InvalidRequest where `from_position` lies in what
        was yielded, for what are no weights of this mixture, and where the mixture ends before they would hold; for one
        of several workers also where it is None, since their next batches begin at different positions.
        """
        return self.batches.schedule_weights(weights, from_position)

    @OneThreaded._in_turn
    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop) as well. The skips are part of the state.

        Raises InvalidRequest where `start` lies in what was yielded.
        """
        self.batches.skip(start, stop)

    @OneThreaded._in_turn
    def get_state(self) -> dict[str, Any]:
        """Where this iterator is, in plain JSON types: restoring it costs the same at every position.

        The lists of its schedule and its skips are shared with other states: copy them before you change them. Asks the
        server for the mixture's fingerprint if nothing has been asked yet.
        """
        return self.batches.state_at(self.batches.checkpoint)

    @OneThreaded._in_turn
    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, under its schedule; batch size and shard may be others than then. What is
        skipped are the state's ranges and those that this iterator was given itself.

        A worker takes its own states, of the same batch size, and those of an iterator that is the only worker.

        Raises InvalidRequest for what is no such state, and where workers would lose rows or read some twice;
        FingerprintMismatch where it was taken from another mixture and this iterator is `strict`. Then nothing has
        changed.
        """
        self.batches.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """`get_state`, by the name that torchdata, Hugging Face and Lightning call it by."""
        return self.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`set_state`, by the name that torchdata, Hugging Face and Lightning call it by."""
        self.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to save this iterator beside a model: the state is taken at once, and written when the
        folder is there. `directory` is Orbax's promise of a folder, or a path."""
        return write_state(directory, self.get_state())

    async def load(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to go on where `save` was called. Raises what `set_state` raises."""
        return load_state(directory, self.set_state)

    @OneThreaded._in_turn
    def reset(self) -> None:
        """Go back to where this iterator began, with the key, schedule and skips that it was given."""
        self.batches.reset()

    @OneThreaded._in_turn
    def start_prefetch(self) -> None:
        """Ask for the first batches now, before `next` does. Does nothing where there are none to ask for ahead."""
        self._check_open()
        self.batches.refill()

    @OneThreaded._in_turn
    def element_spec(self) -> Any:
        """The structure of a batch, a Field with name, dtype and shape in the place of each array; the last batch may
        have fewer rows. Asks the server for the mixture if nothing has been asked yet."""
        return self.batches.spec()

    @OneThreaded._in_turn
    def __len__(self) -> int:
        """How many batches are left for this iterator. Asks the server for the mixture if nothing has been asked yet.

        Raises TypeError, as what has no length, where there is no end.
        """
        return self.batches.left()

    def __bool__(self) -> bool:
        return True  # not whether batches are left, which may have no answer

    def close(self) -> None:
        """Drop what is in flight; the client stays open. Closing twice is closing once.

        While another thread is in a call, a wait for a batch ends with Unavailable, and that thread drops the rest.
        """
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
        """An iterator at the same place, over the same servers."""
        return _unpickle, (self.batches, self._closed)

    def _renew_after_fork(self) -> None:
        """What is in flight is the parent's, and what has not been yielded is asked for again."""
        self.batches.leave_to_parent()
        self._turn = threading.RLock()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this iterator is closed; make another one with client.batches(...)")

    def _drop(self) -> None:
        self.batches.forget()


def _unpickle(batches: Batches, closed: bool) -> BatchIterator:
    return BatchIterator(batches, closed=closed)
