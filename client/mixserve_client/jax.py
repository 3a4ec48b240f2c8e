"""Remote batches on JAX's devices, ahead of time: whole batches, or each process's part of global arrays."""
# pyright: standard

import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import jax

from mixserve_client.client import MixClient, check_client
from mixserve_client.errors import InvalidRequest
from mixserve_client.jax_dtypes import fit_dtypes
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.state import StreamCheckpoint
from mixserve_client.reading.state_file import load_state, write_state
from mixserve_client.rpc.one_thread import OneThreaded
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.schedule import Weights


def __getattr__(name: str) -> Any:
    """Imports `RemoteMixDataSourcesNode` at its first use."""
    if name == "RemoteMixDataSourcesNode":  # it needs Flax, which the rest of this module does not
        from mixserve_client.nnx import RemoteMixDataSourcesNode

        return RemoteMixDataSourcesNode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DeviceBatches(OneThreaded):
    """Yields batches on devices; made by `device_batches` and `global_batches`. For one thread at a time.

    The state is the position after the last yielded batch; batches that are already on devices do not count.
    """

    def __init__(self, iterator: BatchIterator, put: Callable[[Any], Any], buffer: int):
        """`put` puts a batch on devices; `buffer` is how many batches lie there ahead of the one that is yielded."""
        super().__init__()
        self._iterator = iterator
        iterator.batches.is_noting = False  # its waits overlap with those for devices: the caller's waits are ours
        self._put = put
        self._buffer = check_integer("buffer", buffer, 0)
        # Each with the iterator's checkpoint after it, and the number of its rows.
        self._ready: deque[tuple[Any, StreamCheckpoint, int]] = deque()
        self._checkpoint: StreamCheckpoint | None = None  # after the last yielded batch
        self._error: Exception | None = None  # raised after the batches in `_ready`, which came before it

    def __iter__(self) -> Self:
        return self

    @OneThreaded._in_turn
    def __next__(self) -> dict[str, jax.Array]:
        """The next batch. First puts up to `buffer` more on devices.

        Raises what the iterator's `next` raises, but only after the batches before the error are yielded.
        """
        figures, came = self._iterator.batches.figures, time.monotonic()
        figures.waits.since = came
        self._checkpoint = self._checkpoint or self._iterator.batches.checkpoint
        try:
            while self._error is None and len(self._ready) <= self._buffer and self._put_next():
                pass
        except Exception as error:
            self._error = error
        except BaseException:  # such as KeyboardInterrupt
            figures.waits.give_up(came, time.monotonic())
            raise
        if not self._ready:
            figures.waits.give_up(came, time.monotonic())
            error, self._error = self._error, None
            raise StopIteration if error is None else error
        batch, self._checkpoint, rows = self._ready.popleft()
        figures.note(came, time.monotonic(), rows)
        return batch

    @OneThreaded._in_turn
    def __len__(self) -> int:
        """How many batches are left. Raises TypeError if there is no end."""
        return len(self._iterator) + len(self._ready)

    def __bool__(self) -> bool:
        return True

    @OneThreaded._in_turn
    def get_state(self) -> dict[str, Any]:
        """The state after the last yielded batch: `BatchIterator.get_state`."""
        return self._iterator.batches.state_at(self._checkpoint or self._iterator.batches.checkpoint)

    @OneThreaded._in_turn
    def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken, and drop the batches on devices: `BatchIterator.set_state`."""
        self._iterator.set_state(state)  # first: if it raises, nothing has changed
        self._ready.clear()
        self._checkpoint = self._error = None

    @OneThreaded._in_turn
    def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Use `weights` from `from_position` on (default: the next batch to be yielded), replacing later entries:
        `BatchIterator.schedule_weights`. Batches that are already on devices are requested again."""
        self._go_back()
        return self._iterator.schedule_weights(weights, from_position)

    @OneThreaded._in_turn
    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop), in addition to earlier skips: `BatchIterator.skip`. Batches that are
        already on devices are requested again."""
        self._go_back()
        self._iterator.skip(start, stop)

    async def save(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to save the state beside a model: `BatchIterator.save`. All processes write the same."""
        return write_state(directory, self.get_state())

    async def load(self, directory: Any) -> Awaitable[None]:
        """Orbax calls this to resume where `save` was called. Raises what `set_state` raises."""
        return load_state(directory, self.set_state)

    def close(self) -> None:
        """Drop the batches in flight and on devices; the client stays open."""
        self._closed = True
        self._iterator.close()
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DeviceBatches({self._iterator!r}, buffer={self._buffer})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "batches on devices cannot be pickled: keep get_state(), or pickle the iterator of client.batches(...)"
        )

    def _drop(self) -> None:
        self._go_back()

    def _go_back(self) -> None:
        """Drop the batches on devices, and set the iterator back to the last yielded batch."""
        if self._ready and self._checkpoint is not None:
            self._iterator.batches.return_to(self._checkpoint)
            self._ready.clear()
        self._checkpoint = self._error = None

    def _put_next(self) -> bool:
        """Put one more batch on devices; False at the end."""
        before = self._ready[-1][1] if self._ready else self._checkpoint or self._iterator.batches.checkpoint
        try:
            batch = next(self._iterator, None)
            if batch is None:
                return False
            batches = self._iterator.batches
            self._ready.append((self._put(batch), batches.checkpoint, batches.rows))
        except BaseException:
            # `put` or a signal may fail after the iterator has moved on: without this the batch would be lost.
            self._iterator.batches.return_to(before)
            raise
        return True


def device_batches(batches: BatchIterator, sharding: Any = None, *, buffer: int = 2) -> DeviceBatches:
    """The batches of `batches` as `jax.Array`s, of which `buffer` are put on devices ahead of time.

    `sharding` is a device, a sharding, or None for the default device; it holds for every array. The result takes over
    `batches`: do not call it any more. Without x64, 64-bit values become 32-bit values, and a batch with a value that
    does not fit raises InvalidRequest.
    """
    if not isinstance(batches, BatchIterator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"batches must be an iterator of client.batches(...), got {batches!r:.100}")
    return DeviceBatches(batches, lambda batch: jax.device_put(fit_dtypes(batch), sharding), buffer)


def global_batches(
    client: MixClient, batch_size: int, key: Any, sharding: jax.sharding.Sharding, *, buffer: int = 2, **options: Any
) -> DeviceBatches:
    """Global arrays of shape (batch_size, *field.shape) under `sharding`; each process reads only its own rows.

    Every process must make the same calls. `batch_size` is the number of rows over all processes; `options` are those
    of `client.batches`. A short last batch is left out. Raises InvalidRequest unless the rows of this process are
    contiguous and exactly one n-th of a batch, and otherwise as `device_batches` and `client.batches` do.
    """
    if not isinstance(sharding, jax.sharding.Sharding):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(
            f"sharding must be a jax.sharding.Sharding, such as NamedSharding(mesh, spec); got {sharding!r:.200}"
        )
    begin, rows = _own_rows(sharding, check_integer("batch_size", batch_size, 1))
    shard = (begin // rows, batch_size // rows)
    batches = check_client(client).batches(batch_size, key, shard=shard, drop_remainder=True, **options)

    def put(batch: Any) -> Any:
        return jax.tree.map(lambda array: _make_global(array, batch_size, begin, sharding), fit_dtypes(batch))

    return DeviceBatches(batches, put, buffer)


def _own_rows(sharding: jax.sharding.Sharding, batch_size: int) -> tuple[int, int]:
    """The first row of a batch on this process's devices, and how many there are."""
    try:
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except (ValueError, IndexError) as error:
        raise InvalidRequest(f"sharding cannot shard batch_size {batch_size}: {error}") from error
    # A set, since a sharding may put the same rows on several devices. Ranges, not lists of rows, of which there may be
    # 2^40.
    ranges = sorted({index[0].indices(batch_size)[:2] for index in indices if index is not None})
    begin, end = ranges[0][0], max(stop for _, stop in ranges)
    rows, reached = end - begin, begin
    for start, stop in ranges:
        reached = max(reached, stop) if 0 <= start <= reached else -1
    if reached != end or batch_size % rows or begin % rows:
        raise InvalidRequest(
            "the rows of a process must be contiguous, and exactly one n-th of a batch; the sharding gives this one "
            f"the ranges {ranges[:4]}… of {batch_size}: order the devices of the mesh by process"
        )
    return begin, rows


def _make_global(array: Any, batch_size: int, begin: int, sharding: jax.sharding.Sharding) -> jax.Array:
    # JAX asks with the slices of a global array; `array` holds only this process's rows, from `begin` on.
    def part(index: tuple[slice, ...] | None) -> Any:
        assert index is not None
        start, stop, _ = index[0].indices(batch_size)
        return array[(slice(start - begin, stop - begin), *index[1:])]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)
