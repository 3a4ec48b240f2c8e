"""Replicas are added and drained while trainers read."""

from mixserve_client import MixClient
from tests.ray_fleet.cluster import DEADLINE_S, FOLLOWS_S, Trainer, addresses_of, fleet_of


def test_two_four_and_one_replica_under_load_lose_nothing(cluster, config):
    with (
        fleet_of(config, replicas=2) as fleet,
        MixClient.connect(fleet.address) as by_name,
        MixClient.connect(f"ray://{fleet.addresses()[0]}", shared_memory=False) as by_address,
        Trainer(by_name, config) as first,
        Trainer(by_address, config) as second,
    ):
        for count in (2, 4, 1):
            fleet.scale(count, timeout_s=DEADLINE_S)
            assert len(fleet.addresses()) == count
            for trainer, client in ((first, by_name), (second, by_address)):
                took_s = trainer.wait_until(
                    lambda client=client: addresses_of(client) == set(fleet.addresses()), "the list", FOLLOWS_S
                )
                print(f"\n{count} replicas are on the client's list after {took_s:.1f} s")
                trainer.read_more()
        print(f"{first.batches:,} and {second.batches:,} batches, all right; longest wait {first.longest_s:.2f} s")
