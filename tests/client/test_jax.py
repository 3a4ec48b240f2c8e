"""Remote batches on devices, and as global arrays of several processes."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import FingerprintMismatch, InvalidRequest
from mixserve_client.jax import device_batches, global_batches
from mixserve_client.jax_dtypes import fit_dtypes
from mixserve_client.schema.dtypes import DTYPES
from tests.ports import free_ports

SIZE, DEADLINE_S = 8, 120


def small_node():
    rng = np.random.default_rng(0)
    sources = [
        ArraySource({"tokens": rng.integers(0, 99, (n, 4)).astype(np.int32), "pair": (np.arange(n), np.arange(n) / 2)})
        for n in (30, 20)
    ]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3)), sources)


@pytest.fixture(scope="module")
def client():
    with local_client({"train": small_node()}) as made:
        yield made


def tokens(batches, count):
    return [np.asarray(next(batches)["tokens"]).tolist() for _ in range(count)]


@pytest.mark.parametrize("buffer", [0, 2, 5])
def test_batches_are_on_devices_and_states_behind_the_last_that_was_yielded(client, buffer):
    expected = tokens(client.batches(SIZE, 7), 12)
    sharding = SingleDeviceSharding(jax.devices()[0])
    with device_batches(client.batches(SIZE, 7), sharding, buffer=buffer) as batches:
        assert batches.get_state()["position"] == 0
        first = next(batches)
        assert isinstance(first["tokens"], jax.Array)
        assert first["tokens"].sharding == sharding
        assert first["pair"][0].dtype == np.int32
        assert batches.get_state()["position"] == SIZE
        assert tokens(batches, 4) == expected[1:5]
        state = batches.get_state()
        assert tokens(batches, 3) == expected[5:8]
        batches.set_state(state)
        assert batches.get_state() == state
        assert tokens(batches, 5) == expected[5:10]
        with client.batches(SIZE, 1) as host:
            host.set_state(state)
            assert tokens(host, 2) == expected[5:7]


@pytest.mark.parametrize("buffer", [0, 2])
def test_batches_before_one_that_fails_are_yielded(buffer):
    source = ArraySource({"id": np.arange(40) + np.where(np.arange(40) == 25, 2**40, 0)})
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), sampling="epoch", block_size=8)
    node = MixDataSourcesNode(config, [source])
    with local_client({"train": node}) as client, device_batches(client.batches(4, 7), buffer=buffer) as batches:
        bad = [int(i) for i, batch in zip(range(10), client.batches(4, 7), strict=False) if batch["id"].max() >= 2**40]
        for number in range(bad[0]):
            assert len(next(batches)["id"]) == 4
            assert batches.get_state()["position"] == 4 * (number + 1)
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="cannot hold"):
                next(batches)
            assert batches.get_state()["position"] == 4 * bad[0]


@pytest.mark.parametrize("buffer", [0, 2])
def test_weights_and_skips_hold_behind_what_was_yielded(client, buffer):
    plain = client.batches(SIZE, 7)
    with device_batches(client.batches(SIZE, 7), buffer=buffer) as batches:
        assert tokens(batches, 2) == tokens(plain, 2)
        for either in (batches, plain):
            assert either.schedule_weights((0.0, 1.0)) == 2 * SIZE
            either.skip(3 * SIZE, 4 * SIZE + 1)
        assert batches.get_state() == plain.get_state()
        state = batches.get_state()
        expected = tokens(plain, 4)
        assert tokens(batches, 4) == expected
    with device_batches(client.batches(SIZE, 1), buffer=buffer) as resumed:
        resumed.set_state(state)
        assert tokens(resumed, 4) == expected


def test_all_batches_come_and_then_the_end(client):
    batches = device_batches(client.batches(SIZE, 7, stop=20), buffer=3)
    assert [len(batch["tokens"]) for batch in batches] == [8, 8, 4]
    assert batches.get_state()["position"] == 20
    assert next(batches, None) is None
    with pytest.raises(InvalidRequest, match="buffer must be an integer of at least 0"):
        device_batches(client.batches(SIZE, 7), buffer=-1)


def test_orbax_saves_them_beside_a_model_at_the_last_that_was_yielded(client, tmp_path):
    expected = tokens(client.batches(SIZE, 7), 6)
    model = {"w": jnp.arange(4.0)}
    batches, other = (device_batches(client.batches(SIZE, key), buffer=3) for key in (7, 1))
    tokens(batches, 2)
    tokens(other, 1)  # the next three are on devices, and must not count in the state
    ocp.save_checkpointables(tmp_path / "checkpoint", {"model": model, "data": batches})
    assert tokens(batches, 2) == expected[2:4]
    restored = ocp.load_checkpointables(tmp_path / "checkpoint", {"model": model, "data": other})
    np.testing.assert_array_equal(restored["model"]["w"], model["w"])
    assert other.get_state()["position"] == 2 * SIZE
    assert tokens(other, 4) == expected[2:]
    with client.batches(SIZE, 1) as host:
        ocp.load_checkpointables(tmp_path / "checkpoint", {"data": host})
        assert tokens(host, 1) == expected[2:3]
    (state,) = (tmp_path / "checkpoint").rglob("mixserve_state.json")
    state.write_text(state.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(FingerprintMismatch, match="its batches are different"):
        ocp.load_checkpointables(tmp_path / "checkpoint", {"data": other})
    state.write_text("{")
    with pytest.raises(InvalidRequest, match=r"mixserve_state\.json is not JSON"):
        ocp.load_checkpointables(tmp_path / "checkpoint", {"data": other})


def test_values_that_do_not_fit_are_refused():
    source = ArraySource({"id": np.arange(4) + 2**40})
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])
    with local_client({"train": node}) as client, device_batches(client.batches(SIZE, 7)) as batches:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=r"\['id'\] has values of int64 that int32 cannot hold"):
                next(batches)
            assert batches.get_state()["position"] == 0
        with jax.enable_x64(True):
            assert next(batches)["id"].dtype == np.int64
        assert batches.get_state()["position"] == SIZE


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, "longlong", "ulonglong"])
def test_batches_have_the_dtypes_of_jax(dtype, x64):
    batch = {"narrow": np.zeros(2, np.uint8), "nested": (np.ones((2, 3), dtype),)}
    with jax.enable_x64(x64):
        expected = jax.dtypes.canonicalize_dtype(batch["nested"][0].dtype)
        fitted = fit_dtypes(batch)
    assert fitted["nested"][0].dtype == expected
    assert fitted["narrow"] is batch["narrow"]
    assert (fitted["nested"][0] is batch["nested"][0]) == (expected == batch["nested"][0].dtype)


def test_one_process_gets_global_arrays(client):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batches = global_batches(client, SIZE, 7, sharding, stop=30)
    expected = tokens(client.batches(SIZE, 7), 3)
    assert [np.asarray(batch["tokens"]).tolist() for batch in batches] == expected
    for wrong in (0, -1, "a", 8.5):
        with pytest.raises(InvalidRequest, match="batch_size must be an integer of at least 1, got"):
            global_batches(client, wrong, 7, sharding)
    for wrong in (None, mesh, PartitionSpec("data")):
        with pytest.raises(InvalidRequest, match=r"sharding must be a jax\.sharding\.Sharding"):
            global_batches(client, SIZE, 7, wrong)


PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mixserve_client import MixClient
from mixserve_client.jax import global_batches
address, coordinator, count, number = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
jax.distributed.initialize(coordinator, count, number)
mesh = Mesh(np.array(jax.devices()).reshape(count, 2), ("data", "model"))
with MixClient.connect(address, patience_s=60) as client:
    for spec in (PartitionSpec("data"), PartitionSpec(("data", "model")), PartitionSpec()):
        batches = global_batches(client, 8, 7, NamedSharding(mesh, spec))
        next(batches)
        array = next(batches)["tokens"]
        assert array.shape == (8, 4)
        whole = client.get_batch_at(8, 8, 7)["tokens"]
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])
        print(batches._iterator, flush=True)
        for stop in (22, 23, 24):  # a last batch of 7 rows is cut off in the first process alone
            batches = global_batches(client, 8, 7, NamedSharding(mesh, spec), stop=stop)
            assert [len(batch["tokens"]) for batch in batches] == [8] * (stop // 8), stop
"""


def test_processes_ask_for_their_own_rows_of_global_arrays():
    with serve({"train": small_node()}, shared_memory=False) as server:
        coordinator = f"127.0.0.1:{free_ports()}"
        command = [sys.executable, "-c", PROCESS, server.address, coordinator, "2"]
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        processes = [
            subprocess.Popen(
                [*command, str(number)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | flags,
            )
            for number in range(2)
        ]
        try:
            for number, process in enumerate(processes):
                out, err = process.communicate(timeout=DEADLINE_S)
                assert process.returncode == 0, err
                shards = [line.partition("shard=")[2].rstrip(")") + ")" for line in out.splitlines()]
                assert shards == [f"({number}, 2)", f"({number}, 2)", "(0, 1)"]
        finally:
            for process in processes:
                process.kill()
                process.wait(DEADLINE_S)
