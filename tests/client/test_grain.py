"""Remote batches in Grain's own pipelines, and in its checkpoints."""

import pickle
import sys

import grain
import grain.checkpoint
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.grain import RemoteDatasetIterator, RemoteIterDataset, RemoteMapDataset
from tests.conftest import assert_batches_equal

SIZE = 6


@pytest.fixture
def connected(server):
    with MixClient.connect(server.address, patience_s=20) as client:
        yield client


def batch_at(client, number, count=1):
    return client.get_batch_at(number * SIZE, count * SIZE, 7)


def test_batches_go_by_their_number(client):
    dataset = RemoteMapDataset(client, batch_size=SIZE, key=7)
    assert len(dataset) == sys.maxsize
    for number in (0, 3, 10**9):
        assert_batches_equal(dataset[number], batch_at(client, number))
    short = RemoteMapDataset(client, batch_size=SIZE, key=7, num_batches=5)
    assert len(short) == 5
    assert_batches_equal(short[7], batch_at(client, 2))
    assert_batches_equal(short[-1], batch_at(client, 4))
    assert [int(batch["id"][0]) for batch in short] == [int(batch_at(client, n)["id"][0]) for n in range(5)]
    assert_batches_equal(short[1:3][1], batch_at(client, 2))
    for given, read in zip([2, 3, 4, 0, 9, 1], short._getitems([2, 3, 4, 0, 9, 1]), strict=True):
        assert_batches_equal(read, batch_at(client, given % 5))


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": True}, {"num_batches": 0}, {"num_batches": 1.5}, {"key": -1}]
)
def test_what_cannot_be_is_refused_at_once(client, wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        RemoteMapDataset(client, **({"batch_size": SIZE, "key": 7} | wrong))


@pytest.mark.parametrize("threads", [0, 4])
def test_a_pipeline_of_grain_resumes(client, threads):
    def pipeline():
        dataset = RemoteMapDataset(client, batch_size=SIZE, key=7).map(lambda batch: batch["image"] * 2).batch(2)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, 8)))

    one = pipeline()
    for number in range(4):
        expected = np.stack([batch_at(client, 2 * number + i)["image"] * 2 for i in range(2)])
        np.testing.assert_array_equal(next(one), expected)
    state = one.get_state()
    expected = [next(one) for _ in range(3)]
    other = pipeline()
    other.set_state(state)
    np.testing.assert_array_equal([next(other) for _ in range(3)], expected)


def test_the_streams_are_a_data_set_too(client):
    dataset = RemoteIterDataset(client, batch_size=SIZE, key=7, shard=(1, 2), stop=30).map(lambda batch: batch["id"])
    expected = [batch["id"] for batch in client.batches(SIZE, 7, shard=(1, 2), stop=30)]
    np.testing.assert_array_equal(list(dataset), expected)
    np.testing.assert_array_equal(list(dataset), expected)
    iterator = iter(dataset)
    iterator.start_prefetch()
    next(iterator)
    state = iterator.get_state()
    later = list(iterator)
    other = iter(dataset)
    other.set_state(state)
    np.testing.assert_array_equal(list(other), later)


def test_grains_checkpoint_handler_keeps_the_iterator_beside_a_model(client, tmp_path):
    model = {"w": jnp.arange(4.0)}
    batches = RemoteDatasetIterator(client.batches(SIZE, 7))
    for _ in range(3):
        next(batches)
    handlers = {"model": ocp.StandardCheckpointHandler(), "data": grain.checkpoint.CheckpointHandler()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
        saved = {"model": ocp.args.StandardSave(model), "data": grain.checkpoint.CheckpointSave(batches)}
        checkpointer.save(tmp_path / "checkpoint", ocp.args.Composite(**saved))
        expected = [next(batches) for _ in range(3)]
        other = RemoteDatasetIterator(client.batches(SIZE, 1))
        wanted = {"model": ocp.args.StandardRestore(model), "data": grain.checkpoint.CheckpointRestore(other)}
        restored = checkpointer.restore(tmp_path / "checkpoint", ocp.args.Composite(**wanted))
    np.testing.assert_array_equal(restored["model"]["w"], model["w"])
    for batch in expected:
        assert_batches_equal(next(restored["data"]), batch)


def test_a_data_set_is_pickled_with_its_client(connected):
    for made in (RemoteMapDataset, RemoteIterDataset):
        dataset = pickle.loads(pickle.dumps(made(connected, batch_size=SIZE, key=7)))
        iterator = iter(dataset)
        assert_batches_equal(next(iterator), batch_at(connected, 0))
        dataset._client.close()


def test_nested_records_stay_nested():
    source = ArraySource({"pair": (np.arange(10), np.arange(10) * 2)})
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])
    with local_client({"train": node}) as client:
        dataset = RemoteMapDataset(client, batch_size=2, key=7)
        for number, batch in enumerate(dataset._getitems([0, 1])):
            first, second = batch["pair"]
            np.testing.assert_array_equal(first, client.get_batch_at(2 * number, 2, 7)["pair"][0])
            np.testing.assert_array_equal(second, 2 * first)


def test_specs_are_those_of_the_batches(client):
    for made in (RemoteMapDataset, RemoteIterDataset):
        dataset = made(client, batch_size=SIZE, key=7)
        spec = dataset._element_spec
        assert {name: (field.shape, field.dtype) for name, field in spec.items()} == {
            name: (array.shape, array.dtype) for name, array in batch_at(client, 0).items()
        }
    assert iter(dataset)._element_spec == spec


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"shard": (2, 2)}, {"key": None}, {"stop": -1}])
def test_wrong_options_are_refused_when_the_data_set_is_made(client, wrong):
    with pytest.raises(InvalidRequest):
        RemoteIterDataset(client, **{"batch_size": SIZE, "key": 7} | wrong)
