"""Sources on nodes of their own, mixed by replicas elsewhere."""

import jax
import numpy as np

from mixserve_client import MixClient
from tests.ray_fleet.cluster import BATCH, KEY, Trainer, fleet_of, node_of


def test_placed_sources_give_the_same_mixture(cluster, config):
    local = node_of(config)
    placed = config.with_name("placed.yaml")
    placed.write_text(
        config.read_text()
        + "ray: {place: {a: {replicas: 2, resources: {disk-1: 0.1}}, b: {resources: {disk-0: 0.1}}}}\n"
    )
    with fleet_of(placed, replicas=2) as fleet, MixClient.connect(fleet.address) as client:
        assert client.mixture().fingerprint == local.mixture.fingerprint
        assert node_of(placed).mixture.fingerprint == local.mixture.fingerprint  # `mixserve serve` reads all itself
        with Trainer(client, config) as trainer:
            trainer.read_more(20)
        replicas = fleet.status().replicas
        nodes = {source: {one.node for one in replicas if one.source == source} for source in ("", "a", "b")}
        assert len(nodes["a"]) == len(nodes["b"]) == 1
        assert nodes["a"] != nodes["b"]
        batch = client.get_batch_at(0, BATCH, KEY)["tokens"]
        assert np.array_equal(batch, local.get_batch_at(0, BATCH, jax.random.key(KEY))["tokens"])
