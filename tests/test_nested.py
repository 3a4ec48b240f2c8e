"""Nested records: the same structure and bytes on every route."""

import jax
import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource
from mixserve_client import MixClient
from mixserve_client.schema.tree import flatten
from tests.conftest import assert_batches_equal
from tests.processes import ONE_SIZE


def nested(length: int) -> dict:
    image = np.arange(length * 4, dtype=np.uint8).reshape(length, 2, 2)
    return {"image": {"pixels": image, "a/b": np.arange(length, dtype=np.int32)}, "pair": (np.ones(length), [image])}


def make_node() -> MixDataSourcesNode:
    items = [jax.tree.map(lambda array, i=i: array[i], nested(9)) for i in range(9)]
    sources = [ArraySource(nested(5)), RandomAccessSource(items)]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1), plan_sizes=ONE_SIZE), sources)


def test_nested_records_keep_their_structure_in_the_node():
    node = make_node()
    batch = node.get_batch_at(3, 20, jax.random.key(0))
    assert jax.tree.structure(batch) == jax.tree.structure(nested(1)) == jax.tree.structure(node.element_spec())
    traced = jax.jit(lambda start: node.get_batch_at(start, 20, jax.random.key(0)))(3)
    assert_batches_equal(flatten(traced), flatten(batch))


def test_nested_records_keep_their_structure_on_the_wire():
    from mixserve import local_client, serve

    node = make_node()
    expected = node.get_batch_at(3, 20, jax.random.key(0))
    with serve({"x": node}) as server, MixClient.connect(server.address) as remote, local_client({"x": node}) as local:
        for client in (remote, local):
            batch = client.get_batch_at(3, 20, 0)
            assert jax.tree.structure(batch) == jax.tree.structure(expected)
            assert batch["pair"][0].dtype == np.float64
            np.testing.assert_array_equal(batch["image"]["pixels"], expected["image"]["pixels"])
            with client.batches(20, 0, start=3) as batches:
                assert_batches_equal(flatten(next(batches)), flatten(batch))
