"""The node's methods over a client: the same bytes as the node itself, eager and inside programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import InvalidRequest, MixClient, OutOfRange
from mixserve_client.jax import RemoteMixDataSourcesNode

KEY, SIZE, STEPS = jax.random.key(7), 2, 100  # programs of two rows compile in half the time of three


@pytest.fixture(scope="module")
def node():
    sources = [
        ArraySource(
            {
                "tokens": np.arange(4 * n, dtype=np.int32).reshape(n, 4) + 1000 * n,
                "pair": (np.arange(n), np.arange(n, dtype=np.float32) / 3),
            }
        )
        for n in (30, 20)
    ]

    def statistics(batch):
        return {"mean": jnp.mean(batch["pair"][1])}

    config = MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3), batch_stats_fn=statistics)
    return MixDataSourcesNode(config, sources)


@pytest.fixture(scope="module", params=["in-process", "grpc", "shared memory"])
def remote(request, node):
    if request.param == "in-process":
        with local_client({"train": node}) as client:
            yield RemoteMixDataSourcesNode(client, session="run")
        return
    with (
        serve({"train": node}) as server,
        MixClient.connect(server.address, patience_s=20, shared_memory=request.param == "shared memory") as client,
    ):
        yield RemoteMixDataSourcesNode(client, session="run")


@pytest.fixture(scope="module")
def of_node(node):
    """The node's results, each computed once: a program that reads from the host is compiled again each time."""
    known = {}

    def result(name, compute):
        if name not in known:
            known[name] = compute(node)
        return known[name]

    return result


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def test_batches_and_spec_are_the_nodes(node, remote):
    batch = remote.get_batch_at(5, SIZE, KEY)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
    assert_same(batch, node.get_batch_at(5, SIZE, KEY))
    assert remote.element_spec() == node.element_spec()
    assert len(remote) == len(node)
    assert remote.supports_indexed_access()


def test_a_scan_of_a_hundred_steps_equals_the_local_nodes(of_node, remote):
    def run(source):
        def step(total, number):
            batch = source.get_batch_at(number * SIZE, SIZE, KEY)
            return total + batch["tokens"].sum(), batch

        return jax.jit(lambda: jax.lax.scan(step, jnp.int32(0), jnp.arange(STEPS, dtype=jnp.int32)))()

    assert_same(run(remote), of_node("scan", run))


@pytest.mark.parametrize("transform", [jax.jit, nnx.jit, jax.vmap], ids=["jit", "nnx.jit", "vmap"])
def test_programs_give_the_nodes_bytes(of_node, remote, transform):
    starts = jnp.arange(3, dtype=jnp.int32)
    start = starts if transform is jax.vmap else starts[2]
    for key in (KEY, jax.random.key_data(KEY)):

        def run(source, key=key):
            return transform(lambda start: source.get_batch_at(start, SIZE, key))(start)

        assert_same(run(remote), of_node(f"{transform.__module__} {transform.__name__} {key.dtype}", run))


def test_a_traced_key_gives_the_nodes_bytes(of_node, remote):
    for key in (KEY, jax.random.key_data(KEY)):

        def run(source, key=key):
            return jax.jit(lambda key: source.get_batch_at(3, SIZE, key))(key)

        assert_same(run(remote), of_node(f"traced {key.dtype}", run))


def test_the_module_may_be_an_argument_and_a_part_of_another(node, remote):
    class Model(nnx.Module):
        def __init__(self, source):
            self.source = source
            self.weight = nnx.Param(jnp.float32(2))

    @nnx.jit
    def step(model, start):
        return model.source.get_batch_at(start, SIZE, KEY)["pair"][1] * model.weight[...]

    model = Model(remote)
    np.testing.assert_array_equal(step(model, jnp.int32(8)), node.get_batch_at(8, SIZE, KEY)["pair"][1] * 2)
    assert len(jax.tree.leaves(nnx.state(model))) == 1
    assert_same(nnx.clone(model).source.get_batch_at(0, SIZE, KEY), node.get_batch_at(0, SIZE, KEY))


def test_a_known_start_has_64_bits_beside_a_traced_key(of_node, remote):
    def run(source):
        return jax.jit(lambda key: source.get_batch_at(2**40, SIZE, key))(KEY)

    assert_same(run(remote), of_node("64 bits", run))


def test_what_is_traced_is_checked_while_it_is_traced(remote):
    def traced(start=0, key=KEY, size=SIZE):
        return jax.jit(lambda start, key: remote.get_batch_at(start, size, key))(start, key)

    for start in (np.float32(1.5), np.zeros(2, np.int32)):
        with pytest.raises(InvalidRequest, match="start must be an integer, got shape"):
            traced(start=start)
    with pytest.raises(InvalidRequest, match="key must be two uint32 words"):
        traced(key=np.zeros(3, np.uint32))
    with pytest.raises(InvalidRequest, match="size must be an integer of at least 1, got 0"):
        traced(size=0)


def test_errors_are_typed_outside_and_kept_inside_of_programs(remote):
    with pytest.raises(InvalidRequest, match="key is required"):
        remote.get_batch_at(0, SIZE)
    with pytest.raises(OutOfRange):
        remote.get_batch_at(2**63 - 2, SIZE, KEY)
    assert isinstance(remote.last_error, OutOfRange)
    with pytest.raises(jax.errors.JaxRuntimeError, match="InvalidRequest: start must be at least 0, got -3"):
        jax.block_until_ready(jax.jit(lambda start: remote.get_batch_at(start, SIZE, KEY))(jnp.int32(-3)))
    assert isinstance(remote.last_error, InvalidRequest)


def test_what_has_a_state_is_the_sessions(node, remote):
    ours = node.clone()
    remote.reset()
    for source in (ours, remote):
        iter(source)
    assert_same(jax.tree.map(np.asarray, next(ours)), jax.tree.map(np.asarray, next(remote)))
    assert_same(ours.next_batch(5), remote.next_batch(5))
    assert (remote.index, remote.epoch) == (6, 1)
    batch = remote.process(3, SIZE, KEY)
    np.testing.assert_array_equal(batch["tokens"], ours.process(3, SIZE, KEY)["tokens"])
    assert remote.get_operation_stats() == ours.get_operation_stats()
    expected = ours.compute_statistics(ours.get_batch_at(0, SIZE, KEY))
    assert_same(remote.compute_statistics(0, SIZE, KEY), jax.tree.map(np.asarray, expected))
    state = remote.get_state()
    assert state["index"] == 6
    remote.reset_statistics()
    assert remote.get_statistics() is None
    remote.set_statistics({"mean": 1.0})
    assert remote.get_statistics() == {"mean": 1.0}
    remote.reset_operation_stats()
    remote.reset_cache()
    remote.set_state(state)
    assert remote.get_operation_stats() == {"applied_count": 1, "skipped_count": 0}
    assert_same(ours.next_batch(5), remote.next_batch(5))


def test_without_a_name_there_is_no_session(node):
    with local_client({"train": node}) as client:
        remote = RemoteMixDataSourcesNode(client)
        assert_same(remote.get_batch_at(0, SIZE, 7), node.get_batch_at(0, SIZE, KEY))
        with pytest.raises(InvalidRequest, match="session='name'"):
            remote.reset()
