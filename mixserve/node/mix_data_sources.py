"""The mixing node: a Flax NNX module whose batches are pure functions of (start, size, key)."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, UInt32

from mixserve.error_boundary import user_code
from mixserve.failed_read import naming_positions, raising_own
from mixserve.mixture import device, programs
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.gather import Buffers, SourceReader
from mixserve.mixture.leaves import Plan
from mixserve.mixture.mixture import Mixture, names_of
from mixserve.module import DataSourceModule
from mixserve.module.holders import DeviceData, ModuleOwned, OpaqueHolder
from mixserve.module.state import State, below, check_same_shape, pop_entry
from mixserve.node.batch_cache import BatchCache
from mixserve.node.batches import check_traced_start, eager_batch, jax_dtype, traced_batch, traced_words
from mixserve.node.children import as_source, forget_last_read, last_read, mixed_records
from mixserve.node.config import MixDataSourcesConfig
from mixserve.node.pending_rows import PendingRows
from mixserve.node.record_stream import RecordStream
from mixserve.node.rows import Rows
from mixserve.sources import AnySource, ElementSpec, ReferenceSource
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import Range, check_positions
from mixserve_client.schema.text import show
from mixserve_client.schema.tree import unflatten

logger = logging.getLogger(__name__)

_LAST_EPOCH = 2**62


class _Private(NamedTuple):
    """What each clone has for itself: its children that are modules, and its position among the records."""

    sources: tuple[Any, ...]
    records: RecordStream


class MixDataSourcesNode(DataSourceModule):
    """Mixes records of several sources in proportion to weights.

    `len(node)` is the number of records of all sources together. Batches come from a stream of positions, drawn as
    `config.sampling` says; iteration yields single records in the sources' own order, interleaved by Grain.
    """

    config: MixDataSourcesConfig

    def __init__(
        self,
        config: MixDataSourcesConfig,
        sources: list[Any],
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        """Raises ValueError unless there are `config.num_sources` sources with equal element specs, TypeError for an
        object that is not a source."""
        if not isinstance(config, MixDataSourcesConfig):
            raise TypeError(f"config must be a MixDataSourcesConfig, got {show(config)}")
        if not isinstance(sources, list | tuple):
            raise TypeError(f"sources must be a list in the order of the weights, got {show(sources)}")
        if len(sources) != config.num_sources:
            raise ValueError(f"num_sources is {config.num_sources}, got {len(sources)} sources")
        super().__init__(config, rngs=rngs, name=name)
        children = [_child(source) for source in sources]
        # A nested node's own name, since its mixture has none; an adapter's name, since it may drop a default one.
        names = config.source_names or names_of(
            [source if isinstance(child, Mixture) else child for source, child in zip(sources, children, strict=True)]
        )
        mixture = Mixture(children, config.how_to_sample, names, config.plan_sizes, config.content_ids)
        self._mixture = OpaqueHolder(mixture)
        self._private = ModuleOwned(self, _Private(tuple(sources), RecordStream()))
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self.placement = device.choose_placement(config.placement, mixture)
        on_device = device.upload(mixture.leaves, mixture.fields) if self.placement == "device" else {}
        self._device_data = DeviceData(on_device)
        if config.cacheable:
            self._cache = OpaqueHolder(BatchCache())

    @property
    def mixture(self) -> Mixture:
        """The immutable mixture that this node draws from."""
        return self._mixture.value

    @property
    def sources(self) -> list[Any]:
        """The child sources, in the order of their weights."""
        return list(self._own().sources)

    def __len__(self) -> int:
        return len(self.mixture)

    def supports_indexed_access(self) -> bool:
        """Whether the node has batches by position, which pipelines ask; False if records are not numeric."""
        return self.mixture.is_numeric

    def element_spec(self) -> ElementSpec:
        """Shape and dtype per leaf of one record, as a `jax.ShapeDtypeStruct`: the dtypes of `get_batch_at`.

        Dtypes have 64 bits only if JAX has x64 enabled. Raises ValueError if the records of a source are not numeric.
        """
        return unflatten(
            {field.name: jax.ShapeDtypeStruct(field.shape, jax_dtype(field)) for field in self.mixture.fields}
        )

    @raising_own
    def get_batch_at(self, start: int | Array, size: int, key: Array | None = None) -> dict[str, Array]:
        """The rows at the positions [start, start + size): per field an array of shape (size, *field shape).

        Per position p: `pos_key = fold_in(key, p)`, split into three; the source is drawn with
        `categorical(src_key, log_weights)`, the record with `randint(idx_key, (), 0, len(source))`, and fetched with
        `fetch_key`. (`mixserve.mixture.epoch` describes the other mode.) Equal arguments give equal bytes, eager and
        compiled. `start` and `key` may be traced; a traced `start` needs start + size <= 2^32.

        Raises ValueError if `key` is None or not a threefry2x32 key, if `size` is not positive or `start` negative, if
        a value of a 64-bit field does not fit into JAX's 32 bits, or if the records of a source are not numeric; and
        what a source raises, with a note that names source, record and position.
        """
        if key is None:
            raise InvalidRequest("key is required: without a key a batch is not defined; pass jax.random.key(seed)")
        if isinstance(start, Tracer):
            check_positions(0, size)
            check_traced_start(start)
        else:
            start, size = check_positions(start, size)
        mixture, on_device = self.mixture, self._on_device()
        if isinstance(start, Tracer) or isinstance(key, Tracer):
            return unflatten(traced_batch(mixture, on_device, traced_words(key), start, size))
        words = key_words(key)
        if self._cache.value is not None:
            make = partial(eager_batch, mixture, on_device, words, start, size)
            return unflatten(self._cache.value.get((start, size, *words.tolist()), make))
        return unflatten(eager_batch(mixture, on_device, words, start, size))

    def process(self, input: int | Array, *args: Any, **kwargs: Any) -> dict[str, Array]:  # noqa: A002
        """`get_batch_at(input, size, key)`, counted as applied if it returns a batch, as skipped if it raises."""
        return self.counted(lambda: self.get_batch_at(input, *args, **kwargs))

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch: `epoch` + 1, `index` 0. The iterator continues where the node is, and never starts over."""
        self.epoch.set_value(int(self.epoch.get_value()) + 1)
        self.index.set_value(0)
        return _NodeIterator(self)

    def __next__(self) -> Any:
        """The record at `index`; then adds 1 to `index`.

        Raises StopIteration after `len(node)` records, or when Grain's mix ends.
        """
        index = self._index()
        if index >= len(self):
            raise StopIteration
        record = self._own().records.read(self.to_grain_iter_dataset, index)
        self.index.set_value(index + 1)  # last, so that after an error the same record comes again
        return record

    def next_batch(self, size: int) -> Any:
        """The next `size` records as arrays of shape (size, *field shape), fewer at the epoch's end; moves `index`.

        Raises StopIteration if none is left, WrongRecord if a record is not as declared, and what sources raise; then
        nothing has moved.
        """
        _, size = check_positions(0, size)
        before, rows = self._index(), Rows()
        try:
            with suppress(StopIteration):
                while len(rows) < size:
                    forget_last_read()
                    record, read = next(self), last_read()
                    self.mixture.check_record(record, before + len(rows), read)
                    rows.add(record, read)
            if not rows:
                raise StopIteration
            return rows.stack(before)
        except BaseException:
            self.index.set_value(before)
            raise

    def to_grain_iter_dataset(self) -> grain.IterDataset:
        """A new data set of single records of all sources with a share, interleaved by `IterDataset.mix`."""
        return mixed_records(self.sources, self.mixture.shares, self.mixture.names)

    def reset(self) -> None:
        """Set `index` and `epoch` to 0, and call `reset()` of every source that has it."""
        self.index.set_value(0)
        self.epoch.set_value(0)
        for source in self.sources:
            if callable(getattr(source, "reset", None)):
                with user_code("reset of {!r:.200}", source):
                    source.reset()

    def get_place(self) -> State:
        """The part of the state that reading records changes: `index`, `epoch`, and Grain's `iterator` as JSON."""
        index = self._index()
        iterator = self._own().records.state(self.to_grain_iter_dataset, index)
        return {"index": index, "epoch": int(self.epoch.get_value()), "iterator": iterator}

    def set_place(self, place: State) -> None:
        """Continue where `get_place` was called. Raises ValueError for a place that this node does not have."""
        self._place_change(place, "")()

    def get_state(self) -> State:
        """The state of the module, with `get_place()`, and the states of children that are modules of mixserve.

        `order` identifies the order of records in which the place is one: Grain would accept that of another mixture.
        """
        state = super().get_state() | self.get_place() | {"order": self.mixture.order}
        modules = {name: module.get_state() for name, module in self._modules().items()}
        return state | {"sources": modules} if modules else state

    @raising_own
    def read_into(self, start: int, key: UInt32[np.ndarray, "2"], buffers: Buffers) -> None:
        """Write the rows from position `start` on into host arrays of the stored dtypes, one per field.

        The leading length of the arrays, equal in all, is the size of the batch. 64-bit fields keep all their bits.
        Raises what a source raises, as `get_batch_at` does.
        """
        ranges = [(start, len(next(iter(buffers.values()))))]
        with naming_positions(ranges):
            self.begin_read(key, ranges).write(buffers)

    def begin_read(
        self,
        key: UInt32[np.ndarray, "2"],
        ranges: Sequence[Range],
        schedule: PlanBlocks | None = None,
        content: Content | None = None,
        reader: SourceReader | None = None,
    ) -> PendingRows:
        """Plan the rows of `ranges`, one range after another, and begin to gather them.

        `schedule` has the plans under a reader's own weights (default: the node's); `content` selects what each row
        holds (default: the record). Records that sources read by code of their own are read by `reader` (default: in
        the thread that waits for the rows). When this returns, gathering on a device is in flight, and the next
        read may begin. Raises OutOfRange if a position is not before the mixture's end.
        """
        plan = (self.mixture.blocks if schedule is None else schedule).plan(key, ranges)
        begin_gather = self.begin_gather if reader is None else partial(self.begin_gather, reader=reader)
        return PendingRows(plan, content or Content.RECORDS, self.mixture.fields, begin_gather)

    def begin_gather(self, plan: Plan, reader: SourceReader | None = None) -> Callable[[Buffers], None]:
        """Begin to fetch the records of a plan; returns a function that waits and writes them into host arrays.

        They have the stored dtypes. `reader` is as in `begin_read`. When this returns, gathering on a device is in
        flight, and the next may begin.
        """
        mixture, on_device = self.mixture, self._on_device()
        starts, sizes = mixture.device_starts, mixture.plan_sizes
        taken = device.begin_take(on_device, starts, plan, sizes) if on_device else None
        on_host = mixture.host_gather.begin(plan, reader) if len(on_device) < len(mixture.fields) else None

        def write(buffers: Buffers) -> None:
            if taken is not None:
                taken(buffers)
                buffers = {name: buffer for name, buffer in buffers.items() if name not in on_device}
            if on_host is not None:
                on_host(buffers)

        return write

    def begin_to_compile(self, *, first: bool) -> None:
        """Begin to load or compile the programs of plans; with `first` only some, which suffice for every plan."""
        programs.begin(self.mixture.planner.programs(first=first))

    def warm_up(self, size_limit: int, *, first: bool = False) -> None:
        """Load or compile the programs that reads of up to `size_limit` rows need, and wait for them.

        With `first`, of the programs of plans only some, which suffice for every plan.
        """
        programs.load(self.mixture.planner.programs(first=first))
        for leaf in self.mixture.leaves:
            if isinstance(leaf, ReferenceSource):
                leaf.warm_up()
        device.warm_up(self._on_device(), size_limit, self.mixture.plan_sizes)

    def placed(self, placement: str | None) -> "MixDataSourcesNode":
        """This node if it gathers there (`auto`, `host` or `device`), else a copy that does. None means anywhere."""
        if placement is None or placement in (self.placement, self.config.placement):
            return self
        return self.copy(config=replace(self.config, placement=placement))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(sources={self.sources!r}, weights={list(self.mixture.shares)!r}, "
            f"length={len(self)})"
        )

    __str__ = __repr__

    def _on_device(self) -> Mapping[str, Array]:
        """The sources' data on the device, by field."""
        # To ask a Variable for its value takes longer than to copy the rows of a small batch.
        return self._device_data.get_value() if self.placement == "device" else {}

    def _index(self) -> int:
        index = int(self.index.get_value())
        if index < 0:
            raise ValueError(f"index must be at least 0, got {index}")
        return index

    def _own(self) -> _Private:
        return self._own_holder("_private", self._clone_private).value

    def _clone_private(self, shared: _Private) -> _Private:
        # Data sources are shared; modules have a state, so a clone gets its own. A source that is listed twice has one.
        clones = {id(s): s.clone() for s in shared.sources if isinstance(s, DataSourceModule)}
        return _Private(tuple(clones.get(id(s), s) for s in shared.sources), shared.records.copy())

    def _take_own(self) -> None:
        super()._take_own()
        self._own()

    def _modules(self) -> dict[str, DataSourceModule]:
        """The children that are modules and have a state, by name."""
        named = zip(self.mixture.names, self.sources, strict=True)
        return {name: source for name, source in named if isinstance(source, DataSourceModule)}

    def _arguments(self, **changed: Any) -> dict[str, Any]:
        return super()._arguments(**changed) | {"sources": self.sources}

    def _changes(self, state: State, path: str) -> list[Callable[[], None]]:
        # Checks first, all of them, those of children included: either everything changes or nothing does.
        given, modules = dict(state), self._modules()
        iterator, order = pop_entry(given, "iterator", str, path), pop_entry(given, "order", str, path)
        if order != self.mixture.order:
            raise ValueError(
                f"{below(path, 'order')} must be {self.mixture.order!r}, got {order!r:.100}: this is the state of a "
                "mixture with other sources, lengths or weights"
            )
        states = pop_entry(given, "sources", dict, path) if modules else {}
        check_same_shape(dict.fromkeys(modules), dict.fromkeys(states), below(path, "sources"))
        changes = super()._changes(given, path)
        for name, module in modules.items():
            changes += module._changes(states[name], below(below(path, "sources"), name))
        changes.append(self._place_change(given | {"iterator": iterator}, path))
        return changes

    def _place_change(self, place: State, path: str) -> Callable[[], None]:
        """Check `place`; returns a function that moves this node there. Raises ValueError, which names the path."""
        index, epoch = int(place["index"]), int(place["epoch"])
        for name, last in (("index", len(self)), ("epoch", _LAST_EPOCH)):
            if not 0 <= int(place[name]) <= last:
                raise ValueError(f"{below(path, name)} must be in 0..{last}, got {place[name]}")
        try:
            records = RecordStream.restore(self.to_grain_iter_dataset, index, place["iterator"])
        except ValueError as error:
            raise ValueError(f"{below(path, 'iterator')}: {error!s:.500}") from error
        own = _Private(self._own().sources, records)

        def move() -> None:
            self._private.value = own
            self.index.set_value(index)
            self.epoch.set_value(epoch)

        return move


class _NodeIterator:
    """Iterates over its node: it has no position of its own."""

    def __init__(self, node: MixDataSourcesNode):
        self._node = node

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._node)


def _child(source: Any) -> AnySource | Mixture:
    """The child of a mixture for `source`: the mixture of a node, unless a subclass overrides `get_batch_at`."""
    if isinstance(source, MixDataSourcesNode) and type(source).get_batch_at is MixDataSourcesNode.get_batch_at:
        return source.mixture
    return as_source(source)
