"""The node: batches equal the reference's algorithm on the sources, eager and compiled, on host and device."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from tests.conftest import arrays, assert_batches_equal, make_node
from tests.profiles import examples
from tests.reference import draw


def two(weights=(1.0, 3.0), **options) -> MixDataSourcesNode:
    """A node without 64-bit fields, which JAX can hold."""
    kept = ("tokens", "image", "half", "eighth", "flag")
    sources = [ArraySource({name: arrays(10 + i, i)[name] for name in kept}) for i in range(2)]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=weights, **options), sources)


def rows_of_the_reference(node: MixDataSourcesNode, start: int, size: int, seed: int) -> dict[str, np.ndarray]:
    blocks = [source.blocks()[0] for source in node.sources]
    drawn = draw(node.config.weights, [len(s) for s in node.sources], jax.random.key(seed), start, size)
    return {name: np.stack([blocks[source][name][record] for source, record in drawn]) for name in blocks[0]}


@pytest.mark.parametrize("placement", ["host", "device"])
def test_get_batch_at_gives_the_rows_of_the_reference(placement):
    node = two(placement=placement)
    assert node.placement == placement
    batch = node.get_batch_at(7, 40, jax.random.key(3))
    assert all(isinstance(array, jax.Array) for array in batch.values())
    assert_batches_equal(batch, rows_of_the_reference(node, 7, 40, 3))


# In these tests one program reads from the host and the device: XLA compiles their equal draws, the larger part, once.
PLACEMENTS = ("host", "device")


def test_get_batch_at_is_the_same_under_jit_with_traced_start_and_key():
    nodes = [two(placement=placement) for placement in PLACEMENTS]
    assert [node.placement for node in nodes] == list(PLACEMENTS)
    batches = jax.jit(lambda start, key: [node.get_batch_at(start, 40, key) for node in nodes])
    for start, seed in ((0, 0), (2**31 - 100, 2**32 - 1), (12345, 6)):
        key = jax.random.key(seed)
        typed, words = batches(start, key), batches(np.uint32(start), jax.random.key_data(key))
        for i, node in enumerate(nodes):
            expected = node.get_batch_at(start, 40, key)
            assert_batches_equal(typed[i], expected)
            assert_batches_equal(words[i], expected)


def test_get_batch_at_under_vmap_and_scan():
    nodes, key = [two(placement=placement) for placement in PLACEMENTS], jax.random.key(1)
    starts = jnp.arange(0, 30, 10)

    def read(start: jax.Array) -> list[dict[str, jax.Array]]:
        return [node.get_batch_at(start, 10, key) for node in nodes]

    mapped = jax.vmap(read)(starts)
    _, scanned = jax.lax.scan(lambda carry, start: (carry, read(start)), 0, starts)
    for i, start in enumerate(starts.tolist()):
        for number, node in enumerate(nodes):
            expected = node.get_batch_at(start, 10, key)
            assert_batches_equal({name: array[i] for name, array in mapped[number].items()}, expected)
            assert_batches_equal({name: array[i] for name, array in scanned[number].items()}, expected)


@settings(max_examples=examples(40), deadline=None)
@given(start=st.integers(0, 2**62), size=st.integers(2, 300), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_batch_equals_its_parts_put_together(node, start, size, seed, data):
    cut = data.draw(st.integers(1, size - 1))
    words = np.array([0, seed], np.uint32)

    def read(first: int, rows: int) -> dict[str, np.ndarray]:
        out = {f.name: np.empty((rows, *f.shape), f.dtype) for f in node.mixture.fields}
        node.read_into(first, words, out)
        return out

    parts = read(start, cut), read(start + cut, size - cut)
    whole = read(start, size)
    assert_batches_equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_placement_device_keeps_64_bit_fields_on_the_host():
    host, device = make_node(placement="host"), make_node(placement="device")
    for node in (host, device):
        assert node.element_spec()["id"].dtype == np.int32
    words = np.array([0, 9], np.uint32)
    read = []
    for node in (host, device):
        out = {f.name: np.empty((700, *f.shape), f.dtype) for f in node.mixture.fields}
        node.read_into(5, words, out)
        read.append(out)
    assert read[0]["id"].dtype == np.int64
    assert_batches_equal(*read)


def test_get_batch_at_inside_a_program_with_known_arguments():
    node = two()
    key = jax.random.key(1)
    expected = node.get_batch_at(3, 10, key)
    # One program, in which XLA compiles the equal draws once.
    made_inside, made_outside = jax.jit(lambda: [node.get_batch_at(3, 10, k) for k in (jax.random.key(1), key)])()
    assert_batches_equal(made_inside, expected)
    assert_batches_equal(made_outside, expected)


def test_placement_device_keeps_every_bit_of_every_float():
    patterns = {
        "bfloat16": np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16),
        "float16": np.arange(1 << 16, dtype=np.uint16).view(np.float16),
        "float8": np.tile(np.arange(256, dtype=np.uint8), 256).view(ml_dtypes.float8_e5m2),
        "float32": (np.arange(1 << 16, dtype=np.uint32) << 16 | 0x1234).view(np.float32),
        "complex64": (np.arange(1 << 17, dtype=np.uint32) << 15 | 0x1234).view(np.complex64),
    }
    halves = [ArraySource({name: half[i::2] for name, half in patterns.items()}) for i in range(2)]
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1)), halves)
    with local_client({"x": node}) as host, local_client({"x": node}, placement="device") as device:
        assert_batches_equal(device.get_batch_at(0, 60_000, 1), host.get_batch_at(0, 60_000, 1))
        assert host.mixture().fingerprint == device.mixture().fingerprint


@pytest.mark.parametrize("sizes", [(4096,), (7, 100), (1, 3, 65_536)])
@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_sizes_of_plans_decide_no_bytes(sizes, placement):
    node, other = two(placement=placement), two(placement=placement, plan_sizes=sizes)
    assert other.mixture.fingerprint == node.mixture.fingerprint
    with local_client({"x": node}) as expected, local_client({"x": other}) as client:
        for start, size in ((0, 1), (3, 20), (2**40, 500), (7, 4096)):
            assert_batches_equal(client.get_batch_at(start, size, 5), expected.get_batch_at(start, size, 5))


@pytest.mark.parametrize("sizes", [(), (0,), (-1, 5), (16, 4), (4, 4), (70_000,), (1.5,), (True,), "16", 16, None])
def test_sizes_of_plans_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match=r"plan_sizes must be ascending integers in 1\.\.65536, at least one, got"):
        two(plan_sizes=sizes)


def test_a_served_node_on_the_device_compiles_nothing_more(cold):
    node = two(placement="device")
    compiled = []
    with local_client({"x": node}) as client:
        client.get_batch_at(0, 1, 0)
        node.warm_up(client.mixture().limits.size)
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
        try:
            for size in np.random.default_rng(1).integers(1, 6000, 40).tolist():
                client.get_batch_at(0, size, 0)
        finally:
            jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_a_known_start_with_a_traced_key_is_checked_and_has_64_bits():
    node, key = two(), jax.random.key(3)
    for start in (2**31, 2**32 - 1, np.int64(2**40), 2**62):  # two rows compile in half the time of three
        traced = jax.jit(lambda key, start=start: node.get_batch_at(start, 2, key))
        assert_batches_equal(traced(key), node.get_batch_at(start, 2, key))
    with pytest.raises(ValueError, match="start must be at least 0"):
        jax.jit(lambda key: node.get_batch_at(-1, 8, key))(key)
    for start in (1.5, True, jnp.arange(2)):
        with pytest.raises(ValueError, match="start must be an integer"):
            jax.jit(lambda start: node.get_batch_at(start, 8, key))(start)


def test_a_mesh_of_the_caller_does_not_reach_plans():
    def drawn() -> list[int]:
        weights = tuple(range(1, 70))  # a number of sources that no other test compiles for
        source = {"x": np.arange(9, dtype=np.int32)}
        node = MixDataSourcesNode(
            MixDataSourcesConfig(num_sources=69, weights=weights), [ArraySource(source) for _ in weights]
        )
        assert len(node.mixture.fingerprint) == 64
        return node.get_batch_at(0, 20, 1)["x"].tolist()

    with jax.set_mesh(jax.make_mesh((1,), ("x",))), jax.transfer_guard("disallow"):
        inside = drawn()
    assert inside == drawn()


def test_placement_auto_is_host_on_a_cpu():
    assert two(placement="auto").placement == "host"


def test_placement_device_refuses_sources_that_are_no_arrays():
    with pytest.raises(ValueError, match="all its sources must be array-backed"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), placement="device"), [Squares()])


class Squares:
    """A source that computes its records."""

    def __len__(self):
        return 1000

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((2,), np.int32)}

    def take(self, record_ids):
        return {"x": np.stack([record_ids, record_ids**2], axis=1).astype(np.int32)}


def test_computed_sources_mix_with_arrays():
    table = ArraySource({"x": -np.arange(20, dtype=np.int32).reshape(10, 2)})
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=3, weights=(1, 1, 1)), [table, Squares(), Named()])
    drawn = draw((1, 1, 1), [10, 1000, 1000], jax.random.key(0), 0, 50)
    expected = [table.blocks()[0]["x"][record] if source == 0 else (record, record**2) for source, record in drawn]
    np.testing.assert_array_equal(node.get_batch_at(0, 50, jax.random.key(0))["x"], np.array(expected))


class Named(Squares):
    name = "named"


def test_64_bit_values_that_jax_can_hold_are_narrowed_and_others_refused():
    def node_of(values) -> MixDataSourcesNode:
        return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [ArraySource({"id": values})])

    small = node_of(np.array([1, -2, 2**31 - 1]))
    assert small.get_batch_at(0, 20, jax.random.key(0))["id"].dtype == jnp.int32
    halves = node_of(np.array([0.5, np.nan, np.inf]))
    assert halves.get_batch_at(0, 20, jax.random.key(0))["id"].dtype == jnp.float32
    for values in (np.array([2**31]), np.array([0.1])):
        with pytest.raises(ValueError, match=r"field 'id' holds .*64 values .* row 0"):
            node_of(values).get_batch_at(0, 2, jax.random.key(0))
    with jax.enable_x64(True):
        wide = node_of(np.array([2**40])).get_batch_at(0, 2, jax.random.key(0))["id"]
        assert wide.dtype == jnp.int64
        assert wide.tolist() == [2**40] * 2


def test_element_spec_describes_the_batches():
    node = two()
    batch = node.get_batch_at(0, 3, jax.random.key(0))
    assert {name: (spec.shape, spec.dtype) for name, spec in node.element_spec().items()} == {
        name: (array.shape[1:], array.dtype) for name, array in batch.items()
    }


def test_len_and_repr():
    sources = [ArraySource({"x": np.zeros(10, np.int32)}), ArraySource({"x": np.zeros(20, np.int32)})]
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 3)), sources)
    assert len(node) == 30
    children = "ArraySource({x: int32[]}, length=10), ArraySource({x: int32[]}, length=20)"
    assert repr(node) == f"MixDataSourcesNode(sources=[{children}], weights=[0.25, 0.75], length=30)"
    assert str(node) == repr(node)


def test_get_batch_at_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        two().get_batch_at(0, 8)


@pytest.mark.parametrize(
    "key",
    [
        jax.random.key(0, impl="rbg"),
        np.zeros(4, np.uint32),
        np.zeros(2, np.int32),
        jax.random.split(jax.random.key(0)),
        True,
        -1,
        2**32,
        "7",
    ],
    ids=str,
)
def test_get_batch_at_refuses_other_keys(key):
    with pytest.raises(ValueError, match=r"threefry2x32.*got"):
        two().get_batch_at(0, 8, key)


@pytest.mark.parametrize("key", [jax.random.key(0, impl="rbg"), np.zeros(4, np.uint32)], ids=["rbg", "four words"])
def test_get_batch_at_refuses_other_keys_under_jit(key):
    node = two()
    with pytest.raises(ValueError, match="key must be"):
        jax.jit(lambda key: node.get_batch_at(0, 8, key))(key)


def test_an_integer_seed_is_the_key_of_jax():
    node = two()
    assert_batches_equal(
        node.get_batch_at(0, 8, 2**32 - 1), node.get_batch_at(0, 8, jax.random.key(np.uint32(2**32 - 1)))
    )


@pytest.mark.parametrize(("start", "size"), [(0, 0), (0, -1), (-1, 1), (2**63 - 5, 6), (0, 1.5), (True, 1), (0, True)])
def test_get_batch_at_refuses_positions_that_do_not_exist(start, size):
    with pytest.raises(ValueError, match=r"(start|size) .*must be .*got"):
        two().get_batch_at(start, size, jax.random.key(0))


@pytest.mark.parametrize(
    ("other", "leaf", "said"),
    [
        ({"x": np.zeros((4, 3), np.int32)}, "x", r"int32\[2\] in '0' and int32\[3\] in '1'"),
        ({"x": np.zeros((4, 2), np.int64)}, "x", r"int32\[2\] in '0' and int64\[2\] in '1'"),
        ({"y": np.zeros((4, 2), np.int32)}, "x", "'0' has the leaf 'x', '1' does not"),
        ({"x": np.zeros((4, 2), np.int32), "y": np.zeros(4)}, "y", "'1' has the leaf 'y', '0' does not"),
    ],
)
def test_sources_must_share_their_element_spec(other, leaf, said):
    sources = [ArraySource({"x": np.zeros((4, 2), np.int32)}), ArraySource(other)]
    with pytest.raises(ValueError, match=f"element_spec.*{leaf}.*{said}|element_spec.*{said}"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1)), sources)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "num_sources"),
        ({"num_sources": 2}, "weights"),
        ({"num_sources": 0, "weights": ()}, "num_sources"),
        ({"num_sources": 2, "weights": (1.0,)}, "weights"),
        ({"num_sources": 2, "weights": (1.0, -0.5)}, "weights must be positive or zero"),
        ({"num_sources": 2, "weights": (0.0, 0.0)}, "weights must have a positive, finite sum"),
        ({"num_sources": 1, "weights": (float("nan"),)}, "weights"),
        ({"num_sources": 1, "weights": (float("inf"),)}, "weights"),
        ({"num_sources": 1, "weights": ("1",)}, "weights must be numbers"),
        ({"num_sources": 1, "weights": (1.0,), "placement": "moon"}, "placement"),
        ({"num_sources": 1, "weights": (1.0,), "source_names": ("a", "b")}, "source_names"),
        ({"num_sources": 1, "weights": (1.0,), "source_names": "a"}, "source_names must be a tuple of strings"),
        ({"num_sources": 1, "weights": (1.0,), "source_names": (1,)}, "source_names must be a tuple of strings"),
        ({"num_sources": 1, "weights": (1.0,), "batch_stats_fn": len, "precomputed_stats": {}}, "batch_stats_fn"),
    ],
)
def test_config_says_which_field_is_wrong(options, field):
    with pytest.raises(ValueError, match=field):
        MixDataSourcesConfig(**options)


def test_config_is_frozen_and_hashable():
    config = MixDataSourcesConfig(num_sources=1, weights=[2.0], precomputed_stats={"mean": 1})
    assert config.weights == (1.0,)
    assert hash(config) == hash(MixDataSourcesConfig(num_sources=1, weights=(2.0,), precomputed_stats={"mean": 1}))
    with pytest.raises(AttributeError):
        config.weights = (1.0,)


def test_node_refuses_what_is_no_source_and_wrong_numbers_of_them():
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    with pytest.raises(TypeError, match="a source needs"):
        MixDataSourcesNode(config, [[1, 2, 3]])
    with pytest.raises(ValueError, match="num_sources is 1, got 2"):
        MixDataSourcesNode(config, [Squares(), Squares()])


def test_an_empty_source_needs_the_weight_0():
    sources = [ArraySource({"x": np.zeros(0, np.int32)}), ArraySource({"x": np.arange(5, dtype=np.int32)})]
    with pytest.raises(ValueError, match="'0' has no records"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1)), sources)
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0, 1)), sources)
    assert set(node.get_batch_at(0, 100, jax.random.key(0))["x"].tolist()) == set(range(5))


def test_names_must_differ():
    sources = [ArraySource({"x": np.zeros(2, np.int32)}, name="a") for _ in range(2)]
    with pytest.raises(ValueError, match=r"distinct names.*'a'"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1)), sources)


def test_memory_maps_stay_maps_and_nothing_is_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(4000, dtype=np.int64).reshape(1000, 4))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    node = MixDataSourcesNode(config, [ArraySource({"x": mapped})])
    jax.jit(lambda start: node.get_batch_at(start, 8, jax.random.key(0)))(3)
    assert np.shares_memory(node.sources[0].blocks()[0]["x"], mapped)
    assert not node.sources[0].blocks()[0]["x"].flags.writeable
