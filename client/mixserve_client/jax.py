"""Remote batches on JAX's devices, put there ahead of time: whole, or each process's part of global arrays."""
# pyright: standard

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import jax

from mixserve_client.client import MixClient
from mixserve_client.errors import InvalidRequest
from mixserve_client.jax_dtypes import fitting
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.state import StreamCheckpoint
from mixserve_client.reading.state_file import load_state, write_state
from mixserve_client.rpc.one_thread import OneThreaded
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.schedule import Weights


def __getattr__(name: str) -> Any:
    """`RemoteMixDataSourcesNode`, which needs Flax: loaded when it is asked for."""
    if name == "RemoteMixDataSourcesNode":
        from mixserve_client.nnx import RemoteMixDataSourcesNode

        return RemoteMixDataSourcesNode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DeviceBatches(OneThreaded):
    """Batches on devices; made by `device_batches` and `global_batches`. For one thread at a time, as BatchIterator is.

    The state is that behind the last batch that was yielded, whatever is on devices already.
    """

    def __init__(self, iterator: BatchIterator, put: Callable[[Any], Any], buffer: int):
        """`put` puts a batch on devices."""
        super().__init__()
        self._iterator = iterator
        self._put = put
        self._buffer = check_integer("buffer", buffer, 0)
        self._ahead: deque[tuple[Any, StreamCheckpoint]] = deque()  # and where the iterator stood after each
        self._place: StreamCheckpoint | None = None  # after the last yielded batch
        self._failed: Exception | None = None  # how asking for more ended, while batches are ahead

    def __iter__(self) -> Self:
        return self

    @OneThreaded._in_turn
    def __next__(self) -> Any:
        """The next batch; `buffer` more are on their way. Raises what the iterator's `next` raises, when the batches
        before are yielded."""
        self._place = self._place or self._iterator.batches.checkpoint
        try:
            while self._failed is None and len(self._ahead) <= self._buffer and self._ask():
                pass
        except Exception as error:
            self._failed = error
        if not self._ahead:
            error, self._failed = self._failed, None
            raise StopIteration if error is None else error
        batch, self._place = self._ahead.popleft()
        return batch

    @OneThreaded._in_turn
    def __len__(self) -> int:
        """How many batches are left. Raises TypeError where there is no end."""
        return len(self._iterator) + len(self._ahead)

    def __bool__(self) -> bool:
        return True

    @OneThreaded._in_turn
    def get_state(self) -> dict[str, Any]:
        """Where this is, as `BatchIterator.get_state` says it."""
        return self._iterator.batches.state_at(self._place or self._iterator.batches.checkpoint)

    @OneThreaded._in_turn
    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; what is on devices already is dropped. Raises as `BatchIterator` does."""
        self._iterator.set_state(state)
        self._ahead.clear()
        self._place = self._failed = None

    @OneThreaded._in_turn
    def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Change the weights from `from_position` on, where it is None from the next batch that has not been yielded:
        `BatchIterator.schedule_weights`. What is on devices already is asked for again."""
        self._go_back()
        return self._iterator.schedule_weights(weights, from_position)

    @OneThreaded._in_turn
    def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop) as well: `BatchIterator.skip`."""
        self._go_back()
        self._iterator.skip(start, stop)

    async def save(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to save these beside a model, as `BatchIterator.save` does; each process writes the same."""
        return write_state(directory, self.get_state())

    async def load(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to go on where `save` was called. Raises what `set_state` raises."""
        return load_state(directory, self.set_state)

    def close(self) -> None:
        """Drop what is in flight; the client stays open."""
        self._closed = True
        self._iterator.close()
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "batches on devices cannot be pickled: keep get_state(), or pickle an iterator of client.batches"
        )

    def _drop(self) -> None:
        self._go_back()

    def _go_back(self) -> None:
        """Drop what is on devices ahead of what was yielded: the iterator stands where this does."""
        if self._ahead and self._place is not None:
            self._iterator.batches.return_to(self._place)
            self._ahead.clear()
        self._place = self._failed = None

    def _ask(self) -> bool:
        """Put one more batch on devices; False at the end."""
        before = self._ahead[-1][1] if self._ahead else self._place or self._iterator.batches.checkpoint
        try:
            batch = next(self._iterator, None)
            if batch is None:
                return False
            self._ahead.append((self._put(batch), self._iterator.batches.checkpoint))
        except BaseException:
            self._iterator.batches.return_to(before)
            raise
        return True


def device_batches(batches: BatchIterator, sharding: Any = None, *, buffer: int = 2) -> DeviceBatches:
    """The batches of `batches` as `jax.Array`s, `buffer` of them ahead; each array is put as `sharding` says: a device,
    a sharding, or None for the default device. `batches` belongs to what this gives, and is not to be called any more.

    Without x64, values of 64 bits become those of 32; raises InvalidRequest at a batch that has some which do not fit.
    """
    if not isinstance(batches, BatchIterator):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"batches must be an iterator of client.batches(...), got {batches!r:.100}")
    return DeviceBatches(batches, lambda batch: jax.device_put(fitting(batch), sharding), buffer)


def global_batches(
    client: MixClient, batch_size: int, key: Any, sharding: jax.sharding.Sharding, *, buffer: int = 2, **options: Any
) -> DeviceBatches:
    """Global arrays of shape (batch_size, *field.shape) under `sharding`; each process asks for its own rows alone.

    `options` are those of `client.batches`; a last batch of fewer rows is left out. Every process makes the same
    calls; `batch_size` is that of all together, and the rows of a process must be one n-th of a batch, in a row. Raises
    InvalidRequest where the sharding gives others, and for what `device_batches` and `client.batches` refuse.
    """
    if not isinstance(sharding, jax.sharding.Sharding):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(
            f"sharding must be a jax.sharding.Sharding, as NamedSharding(mesh, spec); got {sharding!r}"
        )
    begin, rows = _own_rows(sharding, check_integer("batch_size", batch_size, 1))
    shard = (begin // rows, batch_size // rows)
    batches = client.batches(batch_size, key, shard=shard, drop_remainder=True, **options)

    def put(batch: Any) -> Any:
        return jax.tree.map(lambda array: _global(array, batch_size, begin, sharding), fitting(batch))

    return DeviceBatches(batches, put, buffer)


def _own_rows(sharding: jax.sharding.Sharding, batch_size: int) -> tuple[int, int]:
    """The first row of a batch on this process's devices, and how many there are."""
    try:
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    except (ValueError, IndexError) as error:
        raise InvalidRequest(f"batch_size {batch_size} cannot be sharded so: {error}") from error
    ranges = sorted({index[0].indices(batch_size)[:2] for index in indices if index is not None})
    begin, end = ranges[0][0], max(stop for _, stop in ranges)
    rows, reached = end - begin, begin
    for start, stop in ranges:
        reached = max(reached, stop) if 0 <= start <= reached else -1
    if reached != end or batch_size % rows or begin % rows:
        raise InvalidRequest(
            "the rows of a process must be one n-th of a batch, in a row; the sharding gives this one the ranges "
            f"{ranges[:4]}… of {batch_size}: order the devices of the mesh by process"
        )
    return begin, rows


def _global(array: Any, batch_size: int, begin: int, sharding: jax.sharding.Sharding) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> Any:
        assert index is not None
        start, stop, _ = index[0].indices(batch_size)
        return array[(slice(start - begin, stop - begin), *index[1:])]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)
