"""Replicas that fail, that have other data than the others, and that Ray gives up."""

import os

import ray

from mixserve_client import MixClient
from mixserve_client.transport.ray_controller import NAMESPACE
from tests.ray_fleet.cluster import DEADLINE_S, fleet_of
from tests.waiting import wait_until


def _replica(fleet, number=1):
    return next(one for one in fleet.status().replicas if one.name == f"{fleet.name}/{number}")


def _kill(name, **options):
    ray.kill(ray.get_actor(name, namespace=NAMESPACE), **options)


def test_a_replica_serves_again_when_its_data_are_right_again(cluster, config):
    data = config.parent / "a.bin"
    with fleet_of(config, replicas=2) as fleet:
        first = _replica(fleet, 0)
        right = data.read_bytes()
        # Files beside the old one, which the other replica has mapped.
        for content, state, said in ((bytes(8000), "differs", "other"), (None, "failed", "No such file")):
            data.unlink(missing_ok=True)
            if content is not None:
                data.write_bytes(content)
            _kill(f"{fleet.name}/1", no_restart=False)
            wait_until(lambda state=state: _replica(fleet).state == state, state, DEADLINE_S)
            assert {"differs": first.fingerprints["train"], "failed": said}[state] in _replica(fleet).error
            assert fleet.addresses() == (first.address,)
        data.write_bytes(right)
        wait_until(lambda: len(fleet.addresses()) == 2, "it serves again", DEADLINE_S)


def test_a_replica_that_ray_has_given_up_is_replaced(cluster, config):
    with fleet_of(config, replicas=2) as fleet:
        before = _replica(fleet).address
        _kill(f"{fleet.name}/1", no_restart=True)
        wait_until(lambda: _replica(fleet).state == "failed", "it is failed", DEADLINE_S)
        assert "Ray has given it up" in _replica(fleet).error
        wait_until(lambda: len(fleet.addresses()) == 2, "another one serves", DEADLINE_S)
        assert before not in fleet.addresses()


def test_a_forked_process_goes_on_with_the_list_of_its_parent(cluster, config):
    with fleet_of(config, replicas=2) as fleet, MixClient.connect(fleet.address) as client:
        right = client.get_batch_at(0, 8, 7)["tokens"].tobytes()
        child = os.fork()
        if not child:
            code = 1
            try:
                with MixClient.connect(fleet.address) as other:
                    code = 0 if other.get_batch_at(0, 8, 7, timeout_s=20)["tokens"].tobytes() == right else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
