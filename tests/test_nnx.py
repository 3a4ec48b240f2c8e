"""The node inside JAX and Flax NNX programs: the same bytes as eager, and the node is unchanged afterwards."""

import copy
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from tests.conftest import assert_batches_equal

SIZE = 2  # a program of two rows compiles in half the time of one of three
STARTS = jnp.array([*range(0, 13, 2), 2**31 - 4, 2**31 - 2, 2**31 - 1], jnp.int32)
KEY = jax.random.key(3)
WIDE = 2**40
MIB, GIB = 1 << 20, 1 << 30

host_and_device = pytest.mark.parametrize("placement", ["host", "device"])
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc, which only Linux has")


def make_node(sources: list[Any], placement: str = "host") -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(sources), weights=range(1, len(sources) + 1), placement=placement)
    return MixDataSourcesNode(config, sources)


def table(length: int, seed: int = 0) -> ArraySource:
    rng = np.random.default_rng(seed)
    return ArraySource({"x": rng.normal(size=(length, 3)).astype(np.float32), "id": np.arange(length) + 1000 * seed})


def small_node(placement: str = "host") -> MixDataSourcesNode:
    return make_node([table(20, 1), table(30, 2)], placement)


def read(node: MixDataSourcesNode, start: Any, key: jax.Array) -> dict[str, jax.Array]:
    return node.get_batch_at(start, SIZE, key)


def stored(node: MixDataSourcesNode, start: int) -> dict[str, np.ndarray]:
    """Eight rows in their stored dtypes."""
    rows = {field.name: np.empty((8, *field.shape), field.dtype) for field in node.mixture.fields}
    node.read_into(start, np.array([0, 1], np.uint32), rows)
    return rows


def call_each(program: Callable[..., Any]) -> Callable[..., Any]:
    def run(node: Any, starts: jax.Array, key: jax.Array) -> Any:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(program(node, start, key) for start in starts))

    return run


def scan(reads: Callable[..., Any]) -> Callable[..., Any]:
    def step(carry: Any, start: jax.Array) -> Any:
        node, key = carry
        return carry, reads(node, start, key)

    return lambda node, starts, key: jax.lax.scan(step, (node, key), starts)[1]


def nnx_scan(reads: Callable[..., Any]) -> Callable[..., Any]:
    @nnx.scan(in_axes=(nnx.Carry, None, 0), out_axes=(nnx.Carry, 0))
    def step(node: Any, key: jax.Array, start: jax.Array) -> Any:
        return node, reads(node, start, key)

    return lambda node, starts, key: step(node, key, starts)[1]


# From a function of (node, start, key) to one of (node, starts, key) that stacks the results.
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jax.jit": lambda reads: call_each(jax.jit(reads)),
    "nnx.jit": lambda reads: call_each(nnx.jit(reads)),
    "nnx.jit without graph updates": lambda reads: call_each(nnx.jit(reads, graph_updates=False)),
    "jax.lax.scan": scan,
    "nnx.scan": nnx_scan,
    "jax.vmap": lambda reads: jax.jit(jax.vmap(reads, in_axes=(None, 0, None))),
}


def rest_of_the_epoch(node: MixDataSourcesNode) -> Iterator[Any]:
    """The records from the node's position on."""
    with suppress(StopIteration):
        while True:
            yield next(node)


def assert_records_equal(records: Iterable[Any], expected: list[Any]) -> None:
    for record, other in zip(records, expected, strict=True):
        assert_batches_equal(record, other)


def assert_same_as_eager(stacked: dict[str, Any], node: MixDataSourcesNode) -> None:
    for i, start in enumerate(STARTS.tolist()):
        assert_batches_equal({name: array[i] for name, array in stacked.items()}, read(node, start, KEY))


class Ran(NamedTuple):
    """A node in the middle of an epoch, after a transformed function has read it: as its argument, and as a closure."""

    node: MixDataSourcesNode
    passed: dict[str, Any]
    closed_over: dict[str, Any]
    mapped: np.ndarray
    rest: list[Any]  # of the epoch, from a node that was never transformed


@pytest.fixture(scope="module", params=TRANSFORMS)
def ran(request, tmp_path_factory):
    """A `Ran` per placement. One program reads everything for many tests: compiling takes most of the time."""
    ids = np.arange(30)
    ids[17] = WIDE  # JAX cannot hold it; the positions at STARTS do not draw it
    file = tmp_path_factory.mktemp("ran") / "ids.npy"
    np.save(file, ids)
    mapped = np.load(file, mmap_mode="r")
    sources = [ArraySource({"x": np.linspace(0, 1, 30, dtype=np.float32), "id": mapped}) for _ in range(2)]
    nodes = {placement: make_node(sources, placement) for placement in ("host", "device")}
    untouched = make_node(sources)
    for node in (*nodes.values(), untouched):
        list(islice(iter(node), 7))

    def reads(passed: dict[str, MixDataSourcesNode], start: Any, key: jax.Array) -> Any:
        return {name: (read(passed[name], start, key), read(node, start, key)) for name, node in nodes.items()}

    stacked = TRANSFORMS[request.param](reads)(nodes, STARTS, KEY)
    rest = list(rest_of_the_epoch(untouched))
    return {placement: Ran(node, *stacked[placement], mapped, rest) for placement, node in nodes.items()}


@host_and_device
def test_a_node_that_is_an_argument_gives_the_eager_bytes(ran, placement):
    assert_same_as_eager(ran[placement].passed, ran[placement].node)


@host_and_device
def test_a_node_that_is_a_closure_gives_the_eager_bytes(ran, placement):
    assert_same_as_eager(ran[placement].closed_over, ran[placement].node)


@host_and_device
def test_memory_maps_are_still_memory_maps(ran, placement):
    for source in ran[placement].node.sources:
        array = source.blocks()[0]["id"]
        assert type(array) is np.ndarray
        assert np.shares_memory(array, ran[placement].mapped)
        assert not array.flags.writeable


@host_and_device
def test_64_bit_values_are_still_64_bit_values(ran, placement):
    node = ran[placement].node
    rows = stored(node, 40)  # they draw record 17
    assert rows["id"].dtype == np.int64
    assert rows["id"].max() == WIDE
    assert_batches_equal(rows, stored(make_node(node.sources), 40))


@host_and_device
def test_placement_and_element_spec_are_what_they_were(ran, placement):
    node = ran[placement].node
    assert node.placement == placement
    assert node.element_spec() == make_node(node.sources).element_spec()


@host_and_device
def test_an_epoch_under_way_goes_on(ran, placement):
    node, rest = ran[placement].node, ran[placement].rest
    assert (int(node.index.get_value()), int(node.epoch.get_value())) == (7, 1)
    assert len(rest) > 10
    assert_records_equal(rest_of_the_epoch(node), rest)


class Hashed:
    """A source of the reference's protocol, in JAX: the record and bits of its key."""

    def __len__(self):
        return 9

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32), "word": jax.ShapeDtypeStruct((), np.uint32)}

    def get_batch_at(self, start, size, key=None):
        return {"x": start + jnp.arange(size, dtype=jnp.int32), "word": jax.random.bits(key, (size,), jnp.uint32)}


def numbered(first: int) -> ArraySource:
    return ArraySource({"x": np.arange(first, first + 9, dtype=np.int32), "word": np.zeros(9, np.uint32)})


@pytest.fixture(scope="module")
def outer_nodes():
    """Equal lengths and weights, so that one program draws for both."""
    on_host = make_node([Hashed(), make_node([numbered(200), Hashed()])])
    return [on_host, make_node([numbered(100), make_node([numbered(200), numbered(300)])], "device")]


@pytest.mark.parametrize("transform", ["nnx.jit", "jax.lax.scan", "jax.vmap"])
def test_children_that_are_mixtures_or_follow_the_reference_give_the_eager_bytes(outer_nodes, transform):
    nodes = outer_nodes

    def reads(passed: list[MixDataSourcesNode], start: Any, key: jax.Array) -> Any:
        return [(read(node, start, key), read(outer, start, key)) for node, outer in zip(passed, nodes, strict=True)]

    for node, (passed, closed_over) in zip(nodes, TRANSFORMS[transform](reads)(nodes, STARTS, KEY), strict=True):
        assert_same_as_eager(passed, node)
        assert_same_as_eager(closed_over, node)


@pytest.mark.parametrize("compiled", [jax.jit, nnx.jit])
def test_64_bit_values_that_jax_cannot_hold_are_refused_with_the_field_inside_a_program(compiled):
    node = make_node([ArraySource({"id": np.array([WIDE])})])
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"field 'id' holds int64 values .* row 0"):
        jax.block_until_ready(compiled(read)(node, 0, KEY))


CLONES = {"clone": lambda node: node.clone(), "nnx.clone": nnx.clone, "deepcopy": copy.deepcopy}
COPIES = CLONES | {"copy": lambda node: node.copy()}


@pytest.mark.parametrize("made", COPIES)
def test_copies_share_host_data(made):
    node = small_node()
    copied = COPIES[made](node)
    assert copied is not node
    for source, other in zip(node.sources, copied.sources, strict=True):
        for name, array in source.blocks()[0].items():
            assert np.shares_memory(array, other.blocks()[0][name])
    assert_batches_equal(stored(copied, 0), stored(node, 0))


@pytest.mark.parametrize("made", CLONES)
def test_a_clone_goes_on_at_the_same_record_with_an_iterator_of_its_own(made):
    node, untouched = small_node(), small_node()
    for each in (node, untouched):
        list(islice(iter(each), 5))
    rest = list(rest_of_the_epoch(untouched))
    clone = CLONES[made](node)
    assert_records_equal(rest_of_the_epoch(clone), rest)
    assert int(node.index.get_value()) == 5
    assert_records_equal(rest_of_the_epoch(node), rest)


@pytest.mark.parametrize("made", CLONES)
@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "gone"])
def test_a_clone_goes_on_where_the_original_stood_even_if_that_has_gone_on_or_away(made, is_kept):
    node, untouched = small_node(), small_node()
    for each in (node, untouched):
        list(islice(iter(each), 5))
    clone = CLONES[made](node)
    list(islice(rest_of_the_epoch(node), 4))
    if not is_kept:
        del node, each
        gc.collect()
    assert_records_equal(rest_of_the_epoch(clone), list(rest_of_the_epoch(untouched)))


@pytest.mark.parametrize("made", CLONES)
def test_a_clone_has_its_own_children_where_they_have_a_state(made):
    child = small_node()
    node = make_node([child])
    list(islice(iter(child), 5))
    clone = CLONES[made](node)
    clone.reset()
    assert (node.sources[0].index.get_value(), clone.sources[0].index.get_value()) == (5, 0)


def test_a_copy_starts_anew():
    node = small_node()
    first = list(islice(iter(node), 5))
    copied = node.copy()
    assert (copied.index.get_value(), copied.epoch.get_value()) == (0, 0)
    assert_records_equal(islice(rest_of_the_epoch(copied), 5), first)
    assert (node.index.get_value(), node.epoch.get_value()) == (5, 1)


@pytest.mark.parametrize(
    "compiled", [jax.jit, nnx.jit, partial(nnx.jit, graph_updates=False)], ids=["jax", "nnx", "no graph updates"]
)
def test_epochs_records_and_changes_of_index_do_not_retrace(compiled):
    traces = []

    @compiled
    def program(node: MixDataSourcesNode, start: int) -> jax.Array:
        traces.append(start)
        read(node, start, KEY)  # traced, and not compiled, since nothing uses the result
        return node.index[...]

    node = small_node()
    program(node, 0)
    for change in (
        lambda: iter(node),
        lambda: next(node),
        lambda: node.index.set_value(9),
        lambda: next(node),
        lambda: list(node),
        node.get_state,
        node.reset,
    ):
        change()
        program(node, 1)
    assert len(traces) == 1


@pytest.mark.parametrize("compiled", [jax.jit, partial(nnx.jit, graph_updates=False)], ids=["jax", "nnx"])
def test_data_on_the_device_are_inputs_of_a_program_that_takes_the_node_and_no_constants(compiled):
    node = make_node([ArraySource({"x": np.arange(MIB // 4, dtype=np.int32)})], "device")
    taken, closed_over = compiled(read).lower(node, 0, KEY), compiled(lambda start: read(node, start, KEY)).lower(0)
    assert len(taken.as_text()) < MIB / 8
    assert len(closed_over.as_text()) > MIB  # so constants show
    jaxpr = jax.make_jaxpr(read)(node, 0, KEY)
    assert sum(constant.nbytes for constant in jaxpr.consts) < 100
    assert MIB in [aval.size * aval.dtype.itemsize for aval in jaxpr.in_avals]


def in_a_fresh_process(task: Callable[[], Any]) -> Any:
    """The result of `task`, a function of this module, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        return processes.submit(task).result()


def status_bytes(field: str) -> int:
    """A field of this process's memory in /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def growth_of_a_node_on_the_host() -> int:
    """Growth in bytes, without mapped files, when a node of 200 MiB goes through `nnx.jit`."""
    program = nnx.jit(read)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "zeros.npy"
        np.lib.format.open_memmap(file, "w+", np.int64, (200 * MIB // 64, 8)).flush()  # a sparse file
        node = make_node([ArraySource({"id": np.load(file, mmap_mode="r")})])
        before = status_bytes("RssAnon")
        for start in range(3):
            jax.block_until_ready(program(node, start, KEY))
        assert node.sources[0].blocks()[0]["id"].nbytes == 200 * MIB
        return status_bytes("RssAnon") - before


@pytest.mark.alone
@on_linux
def test_a_memory_map_is_not_read_into_memory():
    assert in_a_fresh_process(growth_of_a_node_on_the_host) < 100 * MIB


class Figures(NamedTuple):
    data: int
    program_text: int
    growth: dict[str, int]


def calls_of_a_node_of_1_gib_on_the_device() -> Figures:
    records = jax.lax.broadcasted_iota(jnp.int32, (GIB // 4096, 1024), 0)
    node = make_node([ArraySource({"x": records})], "device")
    numbers = make_node([ArraySource({"x": np.arange(len(records), dtype=np.int32)})])
    programs = {"jax.jit": jax.jit(read), "nnx.jit": nnx.jit(read, graph_updates=False)}
    growth = {}
    for name, program in programs.items():
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = status_bytes("VmRSS")
        for start in range(20):
            rows = np.asarray(program(node, start, KEY)["x"])
            np.testing.assert_array_equal(rows, np.repeat(read(numbers, start, KEY)["x"][:, None], 1024, axis=1))
        growth[name] = status_bytes("VmHWM") - before
    return Figures(records.nbytes, len(programs["jax.jit"].lower(node, 0, KEY).as_text()), growth)


@pytest.mark.alone
@on_linux
def test_a_call_costs_no_memory_per_byte_of_data_on_the_device():
    figures = in_a_fresh_process(calls_of_a_node_of_1_gib_on_the_device)
    assert figures.data == GIB
    assert figures.program_text < MIB
    assert max(figures.growth.values()) < GIB / 4, figures.growth


def test_statistics_states_and_looking_at_a_node_retrace_nothing():
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), batch_stats_fn=lambda batch: {"rows": len(batch)})
    node, traces = MixDataSourcesNode(config, [table(9)]), []

    @nnx.jit
    def look(node):
        traces.append(repr(node))
        return len(node.sources)

    for _ in range(3):
        assert look(node) == 1
        node.compute_statistics([1, 2])
        node.set_state(node.get_state())
    assert node.get_statistics() == {"rows": 2}
    assert len(traces) == 1


def test_statistics_of_a_clone_are_its_own():
    node = small_node()
    node.set_statistics({"mean": 1})
    clones = node.clone(), copy.deepcopy(node)
    node.set_statistics({"mean": 2})
    clones[0].set_statistics({"mean": 3})
    assert [n.get_statistics() for n in (node, *clones)] == [{"mean": 2}, {"mean": 3}, {"mean": 1}]


def test_statistics_cannot_be_changed_inside_a_program():
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), batch_stats_fn=lambda batch: {"mean": batch["x"][0]})
    node = MixDataSourcesNode(config, [numbered(0)])

    def compute(node, start):
        node.compute_statistics(node.get_batch_at(start, 2, jax.random.key(0)))
        return 0

    for program in (jax.jit(compute), nnx.jit(compute), lambda node, start: jax.jit(partial(compute, node))(start)):
        with pytest.raises(ValueError, match="statistics cannot change inside a compiled program"):
            program(node, 0)
    with pytest.raises(ValueError, match="statistics cannot change inside a compiled program"):
        jax.jit(lambda node: node.reset_statistics())(node)
    assert node.get_state()["statistics"]["known"] is False


def test_a_kept_batch_that_was_given_away_is_made_again():
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), cacheable=True), [numbered(0)])
    expected = np.asarray(node.get_batch_at(0, 64, 0)["x"]).copy()
    give_away = jax.jit(lambda batch: batch["x"] + 1, donate_argnums=0)
    jax.block_until_ready(give_away(node.get_batch_at(0, 64, 0)))
    np.testing.assert_array_equal(node.get_batch_at(0, 64, 0)["x"], expected)
