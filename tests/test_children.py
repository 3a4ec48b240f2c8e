"""Children of any kind: nested mixtures, and sources of the reference's own protocol, traced and not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve.sources import ReferenceSource
from mixserve_client import MixClient
from tests.conftest import assert_batches_equal
from tests.profiles import examples


def mix(*sources, weights=None, plan_sizes=(1024,), **options) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(
        num_sources=len(sources), weights=weights or (1.0,) * len(sources), plan_sizes=plan_sizes, **options
    )
    return MixDataSourcesNode(config, list(sources))


def rows(length: int, first: int) -> ArraySource:
    return ArraySource({"x": np.arange(first, first + length, dtype=np.int32)})


class Keyed:
    """Follows the reference's protocol in JAX; its records depend on their key."""

    def __init__(self, length: int = 20):
        self.length = length

    def __len__(self):
        return self.length

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def get_batch_at(self, start, size, key=None):
        ids = jnp.asarray(start, jnp.int32) + jnp.arange(size, dtype=jnp.int32)
        return {"x": ids + 1000 * jax.random.randint(key, (), 1, 1_000_000, dtype=jnp.int32)}


class OnHost(Keyed):
    """The same records, but `start` must be a concrete number."""

    def get_batch_at(self, start, size, key=None):
        return {"x": np.asarray(super().get_batch_at(int(start), size, key)["x"])}


class InMemory(nnx.Module):
    """A Flax NNX module with data, shuffled by the key, with the reference's names."""

    def __init__(self, values):
        self.values, self.name = nnx.data(values), type(self).__name__

    def __len__(self):
        return len(self.values)

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct(self.values.shape[1:], self.values.dtype)}

    def get_batch_at(self, start, size, key=None):
        order = jax.random.permutation(key, len(self.values))
        ids = order[(start + jnp.arange(size, dtype=jnp.int32)) % len(self.values)]
        return {"x": jnp.take(jnp.asarray(self.values), ids, axis=0)}


def one_record(node: MixDataSourcesNode, key, position: int) -> int:
    """The reference's five steps for one position, eagerly, child by child."""
    words = jnp.array([position >> 32, position & 0xFFFFFFFF], jnp.uint32)
    position_key = jax.random.wrap_key_data(threefry_2x32(jax.random.key_data(key), words))
    source_key, record_key, fetch_key = jax.random.split(position_key, 3)
    log_weights = jnp.log(jnp.asarray(np.float32(node.config.weights)))
    source = node.sources[int(jax.random.categorical(source_key, log_weights))]
    if len(source) < 2**31:
        record = int(jax.random.randint(record_key, (), 0, len(source), dtype=jnp.int32))
    else:
        hi, lo = map(int, jax.random.bits(record_key, (2,), jnp.uint32))
        record = (hi << 32 | lo) * len(source) >> 64
    if isinstance(source, MixDataSourcesNode):
        return one_record(source, fetch_key, record)
    if hasattr(source, "take"):
        return int(source.take(np.array([record]))["x"][0])
    return int(source.get_batch_at(record, 1, fetch_key)["x"][0])


def in_pairs(read, start: int, size: int) -> dict[str, np.ndarray]:
    """The rows [start, start + size) from `read(at)`, which gives the rows `at` and `at + 1`."""
    pairs = [read(at) for at in range(start, start + size, 2)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *pairs)


def read_in_a_program(node: MixDataSourcesNode, start: int, size: int, key) -> dict[str, np.ndarray]:
    """The batch, read by a program of two rows: it compiles in half the time of one of more rows."""
    return in_pairs(jax.jit(lambda at: node.get_batch_at(at, 2, key)), start, size)


@functools.cache
def tree(keyed: type = Keyed, placement: str = "host") -> MixDataSourcesNode:
    items = RandomAccessSource([{"x": np.int32(-i)} for i in range(1, 30)])
    inner = mix(rows(7, 100), mix(rows(5, 200), keyed(), weights=(3, 1)), weights=(1, 2))
    return mix(inner, rows(9, 300), keyed(11), items, weights=(5, 0.5, 1, 1))


@pytest.mark.parametrize("keyed", [Keyed, OnHost])
@settings(max_examples=examples(8), deadline=None)
@given(start=st.sampled_from([0, 3, 2**31 - 5, 2**32 - 7, 2**62]), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_tree_of_children_gives_the_records_of_the_reference(keyed, start, size, seed):
    node, key = tree(keyed), jax.random.key(seed)
    batch = node.get_batch_at(start, size, key)["x"]
    assert batch.shape == (size,)
    for i in {0, size // 3, size - 1}:
        assert int(batch[i]) == one_record(node, key, start + i)


def test_a_tree_of_children_is_the_same_compiled_and_served():
    node, key = tree(), jax.random.key(5)
    expected = node.get_batch_at(90, 70, key)
    assert_batches_equal(jax.jit(lambda start, key: node.get_batch_at(start, 70, key))(90, key), expected)
    with serve({"x": node}) as server, MixClient.connect(server.address) as remote, local_client({"x": node}) as local:
        assert_batches_equal(remote.get_batch_at(90, 70, 5), expected)
        assert_batches_equal(local.get_batch_at(90, 70, 5), expected)
        assert remote.mixture().fingerprint == local.mixture().fingerprint
        assert [source.length for source in remote.mixture().sources] == [7 + 5 + 20, 9, 11, 29]


def test_a_source_that_refuses_tracers_is_refused_inside_programs():
    node = tree(OnHost)
    with pytest.raises(ValueError, match=r"OnHost\(name=None, length=\d+\) cannot be read inside a compiled"):
        jax.jit(lambda start: node.get_batch_at(start, 8, jax.random.key(0)))(3)
    assert [ReferenceSource(source).traces for source in (Keyed(), OnHost(), Keyed(2**31))] == [True, False, False]


def test_records_do_not_depend_on_the_batch_around_them():
    node = mix(Keyed(1000))
    whole = node.get_batch_at(0, 200, jax.random.key(1))["x"]
    for start, size in ((0, 1), (3, 8), (5, 9), (100, 64), (7, 65), (60, 130)):
        part = node.get_batch_at(start, size, jax.random.key(1))["x"]
        np.testing.assert_array_equal(part, whole[start : start + size])


def test_nested_arrays_lie_on_the_device_too():
    def make(placement):
        inner = mix(rows(7, 100), mix(rows(5, 200), rows(6, 300)), weights=(1, 2))
        return mix(rows(4, 0), inner, placement=placement)

    host, device = make("host"), make("device")
    assert (host.placement, device.placement) == ("host", "device")
    expected = host.get_batch_at(3, 60, jax.random.key(2))
    assert_batches_equal(device.get_batch_at(3, 60, jax.random.key(2)), expected)
    jitted = jax.jit(lambda node, start: node.get_batch_at(start, 2, jax.random.key(2)))
    assert_batches_equal(in_pairs(functools.partial(jitted, device), 3, 60), expected)
    assert device.mixture.fingerprint == host.mixture.fingerprint


def test_stored_64_bits_survive_nesting():
    wide = ArraySource({"id": np.array([2**40 + 1, -(2**62)])})
    with local_client({"x": mix(mix(wide))}) as client:
        ids = client.get_batch_at(0, 50, 1)["id"]
    assert ids.dtype == np.int64
    assert set(ids.tolist()) == {2**40 + 1, -(2**62)}


class Long:
    """2^40 records, each the low bits of its number."""

    def __len__(self):
        return 2**40

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        return {"x": (record_ids % 2**31).astype(np.int32)}


def test_long_mixtures_nest_outside_of_programs():
    node = mix(rows(4, 0), mix(Long(), rows(9, 0), Keyed()), weights=(1, 2))
    key = jax.random.key(4)
    batch = node.get_batch_at(2**40, 30, key)["x"]
    assert batch.tolist() == [one_record(node, key, 2**40 + i) for i in range(30)]
    with pytest.raises(ValueError, match="more than 2\\^31 - 1 records cannot be drawn inside a compiled program"):
        jax.jit(lambda start: node.get_batch_at(start, 8, key))(0)
    beside = mix(Long(), mix(rows(3, 5), Keyed()))
    expected = beside.get_batch_at(6, 30, key)
    assert_batches_equal(read_in_a_program(beside, 6, 30, key), expected)


def test_the_content_of_a_nested_mixture_is_in_the_fingerprint():
    prints = {mix(rows(2, 0), mix(rows(4, first), rows(4, 9))).mixture.fingerprint for first in (0, 1)}
    prints.add(mix(rows(2, 0), mix(rows(4, 0), rows(4, 9), weights=(1, 3))).mixture.fingerprint)
    assert len(prints) == 3


def test_modules_keep_their_data_out_of_programs():
    values = np.arange(40_000, dtype=np.int32).reshape(-1, 4)
    module = InMemory(values)
    source = ReferenceSource(module)
    assert source._program(8).memory_analysis().argument_size_in_bytes >= values.nbytes
    node = mix(module, InMemory(values[:50]))  # the default name, twice
    assert node.mixture.names == ("0", "1")
    assert isinstance(module.values, np.ndarray)
    batch = node.get_batch_at(1, 20, jax.random.key(3))
    assert_batches_equal(read_in_a_program(node, 1, 20, jax.random.key(3)), batch)
    assert isinstance(module.values, np.ndarray)


def test_64_bits_of_a_module_are_what_jax_makes_of_them():
    node = mix(InMemory(np.arange(6)))
    assert node.element_spec()["x"].dtype == np.int32
    assert node.get_batch_at(0, 5, jax.random.key(0))["x"].dtype == np.int32


def test_names_of_modules_hold_where_they_were_given():
    module = InMemory(np.arange(6, dtype=np.int32))
    module.name = "web"
    assert mix(module, mix(rows(3, 0))).mixture.names == ("web", "1")


class Texts(Keyed):
    """Its records are not numbers."""

    def element_spec(self):
        raise ValueError("these are texts")

    def get_batch_at(self, start, size, key=None):
        return {"x": ["text"] * size}


class Empty(Keyed):
    def __len__(self):
        return 0

    def get_batch_at(self, start, size, key=None):
        raise IndexError(start)


def test_odd_modules():
    with pytest.raises(ValueError, match=r"the source '0' has no numeric element_spec.*these are texts"):
        mix(Texts()).get_batch_at(0, 1, jax.random.key(0))
    assert mix(Empty(), rows(3, 0), weights=(0, 1)).get_batch_at(0, 2, jax.random.key(0))["x"].shape == (2,)
    with pytest.raises(TypeError, match=r"a source needs __len__.*RandomAccessSource"):
        mix([{"x": 1}])


def test_two_sources_of_different_specs_are_named_beside_one_without_numbers():
    texts = RandomAccessSource([{"text": "a"}])
    with pytest.raises(ValueError, match=r"'1' and '2' must have the same element_spec"):
        mix(texts, rows(3, 0), ArraySource({"x": np.zeros(3)}))


def test_settings_of_the_callers_thread_do_not_reach_children():
    outside = mix(Keyed(), InMemory(np.arange(6, dtype=np.int32)))
    expected = outside.get_batch_at(0, 20, jax.random.key(0))
    key = np.array([0, 0], np.uint32)
    for setting in (jax.enable_x64(True), jax.default_prng_impl("rbg"), jax.transfer_guard("disallow")):
        with setting:
            for node in (outside, mix(Keyed(), InMemory(np.arange(6, dtype=np.int32)))):
                assert_batches_equal(node.get_batch_at(0, 20, key), expected)
    with jax.enable_x64(True):
        assert_batches_equal(read_in_a_program(outside, 0, 20, key), expected)
    with jax.debug_infs(True), jax.debug_key_reuse(True):
        assert len(mix(rows(3, 0), Long(), weights=(0, 1)).mixture.fingerprint) == 64
    with jax.default_prng_impl("rbg"):
        assert mix(OnHost()).get_batch_at(0, 3, np.array([0, 1], np.uint32))["x"].shape == (3,)


def test_the_data_of_a_module_are_those_of_when_the_node_was_made():
    module = InMemory(jnp.arange(6, dtype=jnp.int32))
    node = mix(module)
    expected = node.get_batch_at(0, 10, jax.random.key(0))
    module.values = nnx.data(jnp.arange(6, dtype=jnp.int32) + 100)
    assert_batches_equal(node.get_batch_at(0, 10, jax.random.key(0)), expected)
    assert_batches_equal(read_in_a_program(node, 0, 10, jax.random.key(0)), expected)
    assert mix(module).mixture.fingerprint != node.mixture.fingerprint


def test_warm_up_compiles_what_children_need(cold):
    module = InMemory(np.arange(60, dtype=np.int32))
    node, compiled = mix(module), []
    node.warm_up(100)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        for size in (1, 8, 9, 64, 65, 100):
            node.read_into(0, np.array([0, 1], np.uint32), {"x": np.empty(size, np.int32)})
    finally:
        jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_children_that_are_never_drawn_do_not_forbid_programs():
    long = mix(Long(), OnHost())
    node = mix(rows(4, 0), OnHost(), long, mix(rows(3, 9), OnHost(), weights=(1, 0)), weights=(1, 0, 0, 1))
    expected = node.get_batch_at(3, 30, jax.random.key(1))
    assert_batches_equal(read_in_a_program(node, 3, 30, jax.random.key(1)), expected)


def test_a_subclass_that_makes_its_own_batches_is_asked_for_them():
    class Sevens(MixDataSourcesNode):
        def get_batch_at(self, start, size, key=None):
            return {"x": jnp.full(size, 7, jnp.int32)}

    inner = Sevens(MixDataSourcesConfig(num_sources=1, weights=(1,)), [rows(5, 0)])
    assert set(mix(inner).get_batch_at(0, 9, jax.random.key(0))["x"].tolist()) == {7}


def test_a_source_that_is_away_is_no_source_without_numbers():
    class Away(Keyed):
        def get_batch_at(self, start, size, key=None):
            raise OSError("the disk is away")

    with pytest.raises(OSError, match="the disk is away"):
        mix(Away())


def test_a_nested_source_without_numbers_is_named_with_its_way():
    with pytest.raises(ValueError, match=r"in '1': the source '0' has no numeric element_spec"):
        mix(rows(3, 0), mix(Texts())).element_spec()
