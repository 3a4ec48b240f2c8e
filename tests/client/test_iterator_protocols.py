"""The iterator by the names of other libraries; saved, pickled and forked."""

import json
import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest

from mixserve import local_client, serve
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient
from tests.conftest import assert_batches_equal, make_node

DEADLINE_S = 60
SIZE = 6


def following(batches, count=3):
    return [next(batches) for _ in range(count)]


def assert_all_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert_batches_equal(a, b)


@pytest.fixture
def connected(server):
    with MixClient.connect(server.address, patience_s=20) as client:
        yield client


def test_states_go_by_both_names(client):
    batches = client.batches(SIZE, 7)
    following(batches)
    state = json.loads(json.dumps(batches.state_dict()))
    assert state == batches.get_state()
    expected = following(batches)
    other = client.batches(SIZE, 1)
    other.load_state_dict(state)
    assert_all_equal(following(other), expected)


def test_reset_goes_back_to_the_beginning_with_what_was_given_there(client):
    given = {"start": 5, "schedule": [(20, (1.0, 0.0, 0.0))], "skip": [(11, 14)], "provenance": True}
    expected = following(client.batches(SIZE, 7, **given), 8)
    batches = client.batches(SIZE, 7, **given)
    other = client.batches(SIZE, 3, start=100)
    following(batches)
    batches.schedule_weights((0.0, 0.0, 1.0))
    batches.skip(60, 70)
    following(batches)
    batches.reset()
    assert_all_equal(following(batches, 8), expected)
    following(other)
    batches.set_state(other.get_state())
    batches.reset()
    assert_all_equal(following(batches, 8), expected)


def test_prefetching_may_begin_before_the_first_batch(client):
    batches = client.batches(SIZE, 7)
    batches.start_prefetch()
    assert batches.batches._in_flight
    assert batches.get_state()["position"] == 0
    batches.start_prefetch()
    assert_all_equal(following(batches), following(client.batches(SIZE, 7)))
    with client.batches(SIZE, 7, start=3, stop=3) as none:
        none.start_prefetch()
        assert next(none, None) is None
    with pytest.raises(InvalidRequest, match="closed"):
        none.start_prefetch()


@pytest.mark.parametrize("provenance", [False, True])
@pytest.mark.parametrize("shard", [(0, 1), (1, 4)])
def test_the_spec_is_that_of_a_batch(client, provenance, shard):
    batches = client.batches(SIZE, 7, shard=shard, provenance=provenance)
    spec, batch = batches.element_spec(), next(batches)
    assert {name: (field.shape, field.dtype) for name, field in spec.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }


def test_orbax_saves_it_beside_a_model(client, tmp_path):
    batches, model = client.batches(SIZE, 7), {"w": jnp.arange(4.0)}
    following(batches)
    with ocp.Context():
        ocp.save_checkpointables(tmp_path / "checkpoint", {"model": model, "data": batches})
    expected = following(batches)
    other = client.batches(2 * SIZE, 1)
    restored = ocp.load_checkpointables(tmp_path / "checkpoint", {"model": model, "data": other})
    np.testing.assert_array_equal(restored["model"]["w"], model["w"])
    assert_batches_equal(
        next(other), {name: np.concatenate([a[name], b[name]]) for a, b in [expected[:2]] for name in a}
    )
    (state,) = (tmp_path / "checkpoint").rglob("mixserve_state.json")
    state.write_text(state.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(FingerprintMismatch, match="its batches are different"):
        ocp.load_checkpointables(tmp_path / "checkpoint", {"data": other})
    for damaged in ("{", "[" * 100_000):
        state.write_text(damaged)
        with pytest.raises(InvalidRequest, match=r"mixserve_state\.json is not JSON"):
            ocp.load_checkpointables(tmp_path / "checkpoint", {"data": other})


def test_a_pickled_iterator_goes_on_at_its_place(connected):
    batches = connected.batches(SIZE, 7, schedule=[(30, (0.0, 1.0, 0.0))], skip=[(8, 10)], stop=200, provenance=True)
    following(batches)
    batches.schedule_weights((0.0, 0.0, 1.0), 60)
    data = pickle.dumps(batches)
    expected = following(batches, 12)
    other = pickle.loads(data)
    assert_all_equal(following(other, 12), expected)
    assert other.get_state() == batches.get_state()
    batches.reset()
    other.reset()
    assert_all_equal(following(other, 12), following(batches, 12))
    other.batches._catalog.resources.here.close()
    batches.close()
    with pytest.raises(InvalidRequest, match="closed"):
        next(pickle.loads(pickle.dumps(batches)))


def test_an_iterator_that_asked_for_nothing_yet_is_pickled_without_asking():
    with MixClient.connect("127.0.0.1:1") as client:
        batches = pickle.loads(pickle.dumps(client.batches(SIZE, 7)))
        assert repr(batches) == repr(client.batches(SIZE, 7))


def test_a_pickled_client_expects_the_mixtures_that_it_knew():
    with serve({"train": make_node()}, shared_memory=False) as server:
        with MixClient.connect(server.address) as client:
            client.mixture()
            data = pickle.dumps(client)
        address = server.address
    with (
        serve({"train": make_node(seed=5)}, address, shared_memory=False),
        pickle.loads(data) as other,
        pytest.raises(FingerprintMismatch),
    ):
        other.get_batch_at(0, 4, 7)


def test_a_client_of_this_process_cannot_be_pickled(node):
    with local_client({"train": node}) as client, pytest.raises(TypeError, match=r"use MixClient\.connect"):
        pickle.dumps(client.batches(SIZE, 7))


FORKING = """
import os, sys, warnings
from mixserve_client import MixClient
client = MixClient.connect(sys.argv[1], patience_s=20, shared_memory=sys.argv[2] == "shared memory" and sys.argv[3])
ids = lambda batches: [next(batches)["id"].tolist() for _ in range(3)]
batches = client.batches(6, 7)
print(ids(batches), flush=True)
warnings.simplefilter("ignore")
for child in range(3):
    pid = os.fork()
    if not pid:
        print(ids(batches), flush=True)
        batches.set_state(batches.get_state() | {"position": 600})
        print(ids(batches), flush=True)
        print(client.get_batch_at(0, 2, 7)["id"].tolist(), flush=True)
        if child == 1:
            client.close()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print(ids(batches), flush=True)
"""


@pytest.mark.parametrize("route", ["grpc", "shared memory"])
def test_a_process_that_is_forked_off_goes_on_from_there_and_so_does_its_parent(node, tmp_path, route):
    with serve({"train": node}, shared_memory=str(tmp_path)) as server:
        command = [sys.executable, "-c", FORKING, server.address, route, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    with local_client({"train": node}) as client:
        batches = client.batches(6, 7)
        first, second = ([batch["id"].tolist() for batch in following(batches)] for _ in range(2))
        later = [batch["id"].tolist() for batch in following(client.batches(6, 7, start=600))]
        one = client.get_batch_at(0, 2, 7)["id"].tolist()
    assert done.stdout.splitlines() == list(map(str, [first, *([second, later, one] * 3), second]))
