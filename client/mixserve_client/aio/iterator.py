"""`AsyncBatchIterator`, which loses no batch if a call is cancelled."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from mixserve_client.aio.turns import END, Turns
from mixserve_client.forks import PerProcess, renew_in_forks
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.state_file import nothing_left, read_state
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.schedule import Weights

T = TypeVar("T")


class AsyncBatchIterator:
    """Yields batches as dicts of arrays; made by `AsyncMixClient.batches`. A `BatchIterator` whose calls take turns.

    The state is the position after the last batch that a caller received. If `anext` is cancelled, the next `anext`
    returns that batch.
    """

    def __init__(self, iterator: BatchIterator, workers: PerProcess[DaemonThreadPool]):
        self._iterator = iterator
        self._batches = iterator.batches
        self._batches.is_noting = False  # its threads do not wait for as long as the caller does
        self._turns = Turns(workers)
        self._got = self._batches.checkpoint  # after the last batch that a caller received
        renew_in_forks(self, AsyncBatchIterator._renew_after_fork)

    def __reduce__(self) -> Any:
        raise TypeError("an asyncio iterator cannot be pickled: pickle its client, and keep its get_state()")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        figures, came, batch = self._batches.figures, time.monotonic(), END
        figures.waits.since = came
        try:
            batch = await self._turns.once(partial(next, self._iterator, END), "next")
        finally:
            now = time.monotonic()
            if batch is END:
                figures.waits.give_up(came, now)
            else:
                figures.note(came, now, self._batches.rows)
        self._got = self._batches.checkpoint
        if batch is END:
            raise StopAsyncIteration
        return batch

    async def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Use `weights` from `from_position` on (default: the next batch): `BatchIterator.schedule_weights`."""
        return await self._call(partial(self._iterator.schedule_weights, weights, from_position))

    async def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop), in addition to earlier skips: `BatchIterator.skip`."""
        await self._call(partial(self._iterator.skip, start, stop))

    async def get_state(self) -> dict[str, Any]:
        """The state in plain JSON types. `BatchIterator` has the same states: each resumes from those of the other."""
        return await self._call(self._iterator.get_state)

    async def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken: `BatchIterator.set_state`."""
        await self._call(partial(self._iterator.set_state, state))

    async def state_dict(self) -> dict[str, Any]:
        """`get_state` by another name: `BatchIterator.state_dict`."""
        return await self.get_state()

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        """`set_state` by another name: `BatchIterator.load_state_dict`."""
        await self.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to save the iterator beside a model: `BatchIterator.save`."""
        return await self._call(lambda: asyncio.run(self._iterator.save(directory)))

    async def load(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to resume where `save` was called: `BatchIterator.load`."""
        await self.set_state(await self._call(lambda: read_state(directory)))
        return nothing_left()

    async def reset(self) -> None:
        """Go back to the beginning: `BatchIterator.reset`."""
        await self._call(self._iterator.reset)

    async def start_prefetch(self) -> None:
        """Send the first requests now: `BatchIterator.start_prefetch`."""
        await self._call(self._iterator.start_prefetch)

    async def element_spec(self) -> Any:
        """The structure of a batch, with a Field in place of each array: `BatchIterator.element_spec`."""
        return await self._call(self._iterator.element_spec)

    async def close(self) -> None:
        """Drop the batches in flight, and end a wait for one; the client stays open. You may call it more than once."""
        # At once, also if a cancelled call is still running: its thread drops what it requested.
        self._iterator.close()
        await self._turns.at_last(self._iterator.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._iterator!r}"

    def _renew_after_fork(self) -> None:
        """Resume after the last batch that a caller got: the parent may have been inside a call."""
        self._batches.return_to(self._got)

    async def _call(self, task: Callable[[], T]) -> T:
        """Run `task` at the position after the last batch that a caller received."""
        batches = self._batches

        def run() -> T:
            if batches.checkpoint != self._got:  # a cancelled `anext` read a batch that no caller received
                batches.return_to(self._got)
            try:
                return task()
            finally:
                self._got = batches.checkpoint

        return await self._turns.once(run, object())  # a name that equals no other: it gets no kept answer
