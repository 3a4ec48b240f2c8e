"""What goes wrong with containers while trainers read: stops, too little memory, a full volume, data that change."""

import shutil
import time

import numpy as np
import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, StorageFailed
from tests.container.conftest import SERVE, SERVER
from tests.container.engine import Container

# It takes memory until the kernel kills somebody: first what takes most, the server.
TAKE_MEMORY = """
held = []
while True:
    held.append(b"x" * (1 << 20))
"""


def test_a_stop_under_load(start, train, net):
    """The replica answers what it was asked, and ends with 0; its trainers go on with the other one."""
    names = ("replica-1", "replica-2")
    replicas = [start(("--network", net, "--network-alias", name)) for name in names]
    for replica in replicas:
        replica.wait_until_serving()
    options = {"address": [f"{name}:50051" for name in names], "patience_s": 60}
    trainers = [train(("--network", net), **options) for _ in range(3)]
    for trainer in trainers:
        trainer.wait_for_step(100)
    for stopped in replicas:
        assert stopped.stop() == 0, stopped.log()
        assert "INFO stopped" in stopped.log()
        assert "ERROR" not in stopped.log()
        for trainer in trainers:
            trainer.wait_for_more(200)
        stopped.engine("start", stopped.name)
        stopped.wait_until_serving(times=2)
    for trainer in trainers:
        trainer.check_end()


def test_a_server_that_comes_back_with_another_address(start, train, net):
    """Engines give a container that they start again a new IP address: its name leads there within seconds."""
    server = start(("--network", net, "--network-alias", "replica-1"))
    server.wait_until_serving()
    trainer = train(("--network", net), address="replica-1:50051", patience_s=60)
    trainer.wait_for_step(100)
    before = server.ip_address()
    server.engine("restart", "--time", "40", server.name)
    server.wait_until_serving(times=2)
    began = time.monotonic()
    trainer.wait_for_more(200)
    waited = time.monotonic() - began
    print(f"\n{before} became {server.ip_address()}; the trainer went on {waited:.1f} s after it served")
    assert server.ip_address() == before or waited < 20
    trainer.check_end()


def test_a_server_that_is_killed_for_want_of_memory(engine, start, train, net):
    """The kernel kills it at the limit of its cgroup; the engine starts it again, and the trainer misses nothing."""
    limit = ("--memory", "384m", "--memory-swap", "384m", "--restart", "on-failure")
    server = start((*limit, "--network", net, "--network-alias", "replica-1"))
    server.wait_until_serving()
    trainer = train(("--network", net), address="replica-1:50051", patience_s=90)
    trainer.wait_for_step(100)
    engine.run("exec", server.name, "python", "-c", TAKE_MEMORY)
    server.wait_until_serving(times=2)
    trainer.wait_for_more(200)
    trainer.check_end()
    assert server.stop() == 0


def test_a_limit_that_is_too_low(engine, data, images, containers):
    """Exit code 137 says that the kernel killed it, and the log has nothing of an end."""
    flags = ("--memory", "96m", "--memory-swap", "96m", "--volume", f"{data}:/data:ro")
    containers.append(Container(engine, SERVER, flags, SERVE))
    assert containers[-1].wait_for_end() == 137
    assert "serving on" not in containers[-1].log()


def test_a_full_state_volume(data, start):
    """Calls that must write say so, batches go on, and once there is room the session does, where it was."""
    disk = "/small:rw,size=4m,mode=1777"
    server = start(("--tmpfs", disk, "--publish", "127.0.0.1::50051"), (*SERVE, "--state-dir", "/small/state"))
    server.wait_until_serving()
    config = data / "mixture.yaml"
    with (
        MixClient.connect(server.address(), patience_s=20, bulk=False) as client,
        local_client(build_nodes(load_config(config), config)) as ours,
        client.session("run") as session,
        ours.session("run") as expected,
    ):

        def check_next() -> None:
            np.testing.assert_array_equal(session.next_batch(8)["tokens"], expected.next_batch(8)["tokens"])

        check_next()
        session.save_checkpoint("before")
        server.engine.run("exec", server.name, "sh", "-c", "cat /dev/zero >/small/filler")
        with pytest.raises(StorageFailed, match="No space left on device"):
            session.save_checkpoint("full")
        assert session.index == expected.index
        served = client.get_batch_at(0, 8, key=7)["tokens"]
        np.testing.assert_array_equal(served, ours.get_batch_at(0, 8, key=7)["tokens"])
        assert "No space left" in server.log()
        server.execute("rm", "/small/filler")
        session.save_checkpoint("after")
        check_next()
        session.restore_checkpoint("before")
        assert session.index == 8
    assert server.stop() == 0


def test_data_that_are_replaced(data, start, train, net, tmp_path):
    """A file that is renamed over another one: the server keeps to the old one. After its next start it serves other
    data, and the trainer refuses them with the reason."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    server = start(("--network", net, "--network-alias", "replica-1"), folder=folder)
    server.wait_until_serving()
    trainer = train(("--network", net), folder=data, address="replica-1:50051", patience_s=60)
    trainer.wait_for_step(100)
    np.random.default_rng(9).integers(0, 1 << 16, 4000).astype(np.uint16).tofile(folder / "new")
    (folder / "new").rename(folder / "a.bin")
    trainer.wait_for_more(300)
    assert "ERROR" not in server.log()
    server.engine("restart", "--time", "40", server.name)
    assert trainer.container.wait_for_end() == 1
    assert "FingerprintMismatch" in trainer.container.log()
    assert "the content of a source" in trainer.container.log().splitlines()[-1], trainer.container.log()


def test_data_that_are_written_to(data, start, tmp_path):
    """The server notices within a second, and refuses the batches of that source, here as without containers."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    server = start(("--publish", "127.0.0.1::50051"), folder=folder)
    server.wait_until_serving()
    with MixClient.connect(server.address(), patience_s=20, bulk=False) as client:
        client.get_batch_at(0, 8, key=7)
        with (folder / "a.bin").open("r+b") as file:
            file.write(b"\1\2\3\4")
        with pytest.raises(Exception, match=r"/data/a\.bin was written to after it was opened") as refusal:
            for start_at in range(0, 1 << 30, 8):
                client.get_batch_at(start_at, 8, key=7)
    assert type(refusal.value).__name__ == "SourceChanged"
