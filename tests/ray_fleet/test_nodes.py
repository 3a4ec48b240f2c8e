"""A trainer reads while nodes of the cluster are removed and added, and while the controller is killed."""

import time

import ray

from mixserve_client import MixClient
from mixserve_client.transport.ray_controller import NAMESPACE
from tests.ray_fleet.cluster import DEADLINE_S, FOLLOWS_S, Trainer, addresses_of, fleet_of


def test_batches_stay_right_while_a_node_is_removed_and_another_one_added(cluster, config):
    with fleet_of(config, replicas=4) as fleet, MixClient.connect(fleet.address) as client:
        before = fleet.status()
        assert cluster.is_head(before.node), "the controller is there"
        assert len({one.node for one in before.replicas}) == 3, "replicas are spread over the nodes"
        with Trainer(client, config) as trainer:
            trainer.read_more()
            trainer.wait_until(lambda: len(addresses_of(client)) == 4, "the list has all replicas", FOLLOWS_S)
            gone = next(one.node for one in before.replicas if not cluster.is_head(one.node))
            lost = {one.address for one in before.replicas if one.node == gone}
            began = time.monotonic()
            cluster.remove(gone)
            trainer.wait_until(lambda: not lost & addresses_of(client), "the list has no lost replica", FOLLOWS_S)
            print(f"\nreplicas of a lost node are off the client's list after {time.monotonic() - began:.1f} s")
            cluster.add()
            took_s = trainer.wait_until(lambda: fleet.status().is_settled, "Ray restarts them elsewhere", DEADLINE_S)
            print(f"they serve again, on other nodes, {took_s:.1f} s later")
            took_s = trainer.wait_until(
                lambda: addresses_of(client) == set(fleet.addresses()), "the list has them again", FOLLOWS_S
            )
            print(f"they are on the client's list {took_s:.1f} s after that")
            trainer.read_more()
        after = fleet.status()
        assert gone not in {one.node for one in after.replicas}
        assert sum(one.restarts for one in after.replicas) == len(lost)
        assert {tuple(one.fingerprints.items()) for one in after.replicas} == {
            tuple(client_fingerprint.items()) for client_fingerprint in [before.replicas[0].fingerprints]
        }
        print(f"{trainer.batches:,} batches, all right; the longest wait was {trainer.longest_s:.2f} s")


def test_a_controller_that_is_killed_finds_its_replicas_again(cluster, config):
    with fleet_of(config, replicas=1) as fleet:
        fleet.scale(2, timeout_s=DEADLINE_S)
        before = fleet.status()
        with MixClient.connect(fleet.address) as client, Trainer(client, config) as trainer:
            ray.kill(ray.get_actor(fleet.name, namespace=NAMESPACE), no_restart=False)
            trainer.read_more()
            fleet.wait(DEADLINE_S)
            after = fleet.status()
            # Two, although it was made with one: it has learned that from the replicas.
            assert after.wanted == before.wanted == {"": 2}
            assert [one.address for one in after.replicas] == [one.address for one in before.replicas]
            assert sum(one.restarts for one in after.replicas) == 0
            fleet.scale(3, timeout_s=DEADLINE_S)
            trainer.wait_until(
                lambda: addresses_of(client) == set(fleet.addresses()), "the list has all three", FOLLOWS_S
            )
            assert len(addresses_of(client)) == 3
            # While it drains two of them.
            fleet.scale(1, grace_s=5)
            ray.kill(ray.get_actor(fleet.name, namespace=NAMESPACE), no_restart=False)
            fleet.wait(DEADLINE_S)
            (left,) = fleet.addresses()
            trainer.wait_until(lambda: addresses_of(client) == {left}, "the list has the one that is left", FOLLOWS_S)
            trainer.read_more()
