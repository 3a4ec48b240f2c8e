"""The node inside JAX and Flax NNX programs: the same bytes as eager, and after it the node is what it was."""

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from tests.conftest import assert_batches_equal

SIZE = 8
STARTS = jnp.array([0, 5, 2**31 - 4], jnp.int32)
KEY = jax.random.key(3)
WIDE = 2**40
MIB = 1 << 20

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


def stored(node: MixDataSourcesNode, size: int) -> dict[str, np.ndarray]:
    """The first rows, in their stored dtypes."""
    rows = {field.name: np.empty((size, *field.shape), field.dtype) for field in node.mixture.fields}
    node.read_into(0, np.array([0, 1], np.uint32), rows)
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


# From a function of (node, start, key) to one of (node, starts, key), whose results are stacked.
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jax.jit": lambda reads: call_each(jax.jit(reads)),
    "nnx.jit": lambda reads: call_each(nnx.jit(reads)),
    "nnx.jit without graph updates": lambda reads: call_each(nnx.jit(reads, graph_updates=False)),
    "jax.lax.scan": scan,
    "nnx.scan": nnx_scan,
    "jax.vmap": lambda reads: jax.jit(jax.vmap(reads, in_axes=(None, 0, None))),
}


def assert_same_as_eager(stacked: dict[str, Any], node: MixDataSourcesNode) -> None:
    for i, start in enumerate(STARTS.tolist()):
        assert_batches_equal({name: array[i] for name, array in stacked.items()}, read(node, start, KEY))


class Ran(NamedTuple):
    """A node in the middle of an epoch that a transformed function has read: as its argument, and as a closure."""

    node: MixDataSourcesNode
    passed: dict[str, Any]
    closed_over: dict[str, Any]
    mapped: np.ndarray
    rest: list[Any]  # of the epoch, as a node sees it that was never transformed


@pytest.fixture(scope="module", params=["host", "device"])
def placement(request):
    return request.param


@pytest.fixture(scope="module", params=TRANSFORMS)
def ran(request, placement, tmp_path_factory):
    """One program for many tests, since the time goes into compiling it."""
    ids = np.arange(30)
    ids[17] = WIDE  # a record that the positions at STARTS do not draw: JAX could not hold it
    file = tmp_path_factory.mktemp("ran") / "ids.npy"
    np.save(file, ids)
    mapped = np.load(file, mmap_mode="r")
    sources = [ArraySource({"x": np.linspace(0, 1, 30, dtype=np.float32), "id": mapped}) for _ in range(2)]
    node, other = make_node(sources, placement), make_node(sources, placement)
    epochs = iter(node), iter(other)
    for epoch in epochs:
        list(islice(epoch, 7))
    transform = TRANSFORMS[request.param]
    passed, closed_over = transform(lambda passed, *args: (read(passed, *args), read(node, *args)))(node, STARTS, KEY)
    return Ran(node, passed, closed_over, mapped, list(epochs[1]))


def test_a_node_that_is_an_argument_gives_the_eager_bytes(ran):
    assert_same_as_eager(ran.passed, ran.node)


def test_a_node_that_is_a_closure_gives_the_eager_bytes(ran):
    assert_same_as_eager(ran.closed_over, ran.node)


def test_memory_maps_are_still_memory_maps(ran):
    for source in ran.node.sources:
        array = source.blocks()[0]["id"]
        assert type(array) is np.ndarray
        assert np.shares_memory(array, ran.mapped)
        assert not array.flags.writeable


def test_64_bit_values_are_still_64_bit_values(ran):
    ids = stored(ran.node, 300)["id"]
    assert ids.dtype == np.int64
    assert ids.max() == WIDE
    assert_batches_equal(stored(ran.node, 300), stored(make_node(ran.node.sources), 300))


def test_placement_and_element_spec_are_the_same(ran, placement):
    assert ran.node.placement == placement
    assert ran.node.element_spec() == make_node(ran.node.sources).element_spec()


def test_an_epoch_under_way_goes_on(ran):
    node = ran.node.clone()  # the fixture is shared
    assert (int(node.index[...]), int(node.epoch[...])) == (7, 1)
    rest = list(islice(iter(lambda: next(node), None), len(ran.rest)))
    for record, expected in zip(rest, ran.rest, strict=True):
        assert_batches_equal(record, expected)
    with pytest.raises(StopIteration):
        next(node)
