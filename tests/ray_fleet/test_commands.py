"""`mixserve ray …` as processes of their own."""

import json

from mixserve_client import MixClient
from tests.ray_fleet.cluster import actors, node_of


def test_up_scale_status_and_down(cluster, config):
    said = cluster.command("up", config, "--replicas", "2", "--name", "run-7", "--insecure")
    assert 'MixClient.connect("ray://run-7")' in said
    try:
        status = json.loads(cluster.command("status", "run-7", "--json"))
        replicas = status["replicas"]
        assert [(one["name"], one["state"]) for one in replicas] == [("run-7/0", "serving"), ("run-7/1", "serving")]
        with MixClient.connect(f"ray://{replicas[0]['address']}") as client:
            assert client.mixture().fingerprint == node_of(config).mixture.fingerprint
        assert "is up" in cluster.command("up", config, "--name", "run-7", fails=True)
        cluster.command("scale", "run-7", "1", "--grace-s", "1")
        table = cluster.command("status", "run-7")
        assert "run-7/0" in table
        assert "run-7/1" not in table
        assert replicas[0]["address"] in table
    finally:
        cluster.command("down", "run-7", "--grace-s", "1")
    assert not actors()
    assert "no fleet of the name 'run-7' is up" in cluster.command("status", "run-7", fails=True)


def test_what_is_wrong_with_the_file_is_said_before_anything_starts(cluster, config):
    text = config.read_text()
    for more, said in (
        ("server: {prot: 1}", "server.prot: unknown key"),
        ("server: {state_dir: state}", "server.state_dir: sessions live on one server"),
        ("server: {processes: 4}", "start more replicas"),
        ("ray: {place: {c: {}}}", "ray.place.c: no mixture has a source of this name"),
        ("ray: {place: {a: {cpus: 1}}}", "ray.place.a.cpus: unknown key; allowed here are replicas"),
    ):
        config.write_text(f"{text}{more}\n")
        assert said in cluster.command("up", config, fails=True)
        assert not actors()


def test_a_node_without_the_data_is_named_and_nothing_is_left(cluster, config, tmp_path):
    error = cluster.command("up", config, "--folder", tmp_path / "elsewhere", "--insecure", fails=True)
    assert "mixserve/0 on the node" in error
    assert str(tmp_path / "elsewhere" / "a.bin") in error
    assert not actors()


def test_beyond_loopback_needs_tls_and_tokens(cluster, config):
    assert "can be reached from other machines" in cluster.command("up", config, fails=True)
    assert not actors()


def test_resources_that_no_node_has_are_named(cluster, config):
    error = cluster.command("up", config, "--insecure", "--resources", '{"tape": 1}', "--timeout-s", "5", fails=True)
    assert "a node with CPU 1, tape 1 may be missing" in error
    assert not actors()


def test_without_a_cluster_the_error_says_how_to_start_one(cluster, config):
    assert "ray start --head" in cluster.command("status", "--address", "127.0.0.1:9", fails=True)
