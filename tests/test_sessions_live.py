"""Many sessions on one real server: concurrent trainers, and many idle ones; `make crash` has a thousand."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mixserve import MixDataSourcesNode
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, UnknownSession
from tests.conftest import assert_batches_equal
from tests.processes import DEADLINE_S, ServerProcess, server_process, write_mixture

TRAINERS_S = float(os.environ.get("MIXSERVE_TRAINERS_S", "5"))
TRAINERS = 8
SESSIONS = int(os.environ.get("MIXSERVE_SESSIONS") or 250)
SESSION_BYTES = 64 << 10


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_mixture(tmp_path_factory.mktemp("sessions"))


def twin(config: Path) -> MixDataSourcesNode:
    return build_nodes(load_config(config), config)["train"].clone()


def read(config: Path, address: str, number: int, together: Barrier) -> int:
    """Read through a session as a trainer does, and through a local node; returns how many records were equal."""
    node, read, saved = twin(config), 0, None
    with MixClient.connect(address, patience_s=DEADLINE_S) as client:
        session = client.session(f"trainer-{number}")
        together.wait(DEADLINE_S)
        end = time.monotonic() + TRAINERS_S
        while time.monotonic() < end:
            iter(session)
            iter(node)
            while time.monotonic() < end:
                size = 1 + (7 * number + read) % 37
                try:
                    batch = session.next_batch(size)
                except StopIteration:
                    with pytest.raises(StopIteration):
                        node.next_batch(size)
                    break
                assert_batches_equal(batch, node.next_batch(size))
                read += len(batch["tokens"])
                if read % 5 == 0:
                    session.save_checkpoint("last", keep_last=2)
                    saved = node.get_state()
                if read % 11 == 0 and saved is not None:
                    session.restore_checkpoint("last")
                    node.set_state(saved)
        assert (session.index, session.epoch) == (int(node.index.get_value()), int(node.epoch.get_value()))
        assert session.get_state() == node.get_state()
    return read


def test_eight_trainers_beside_each_other_each_read_what_they_would_alone(config, tmp_path):
    with server_process(config, "--state-dir", str(tmp_path / "state")) as server:
        address, together = server.address(), Barrier(TRAINERS)
        with ThreadPoolExecutor(TRAINERS) as trainers:
            runs = [trainers.submit(read, config, address, number, together) for number in range(TRAINERS)]
            records = [run.result() for run in runs]
    print(f"records in {TRAINERS_S:.0f} s: {records}")
    assert min(records) > 0


def status(server: ServerProcess, entry: str) -> int:
    """A field of /proc/PID/status: `Threads`, or bytes such as `VmRSS`."""
    found = re.search(
        rf"^{entry}:\s+(\d+)( kB)?$", Path(f"/proc/{server.process.pid}/status").read_text(), re.MULTILINE
    )
    assert found is not None
    return int(found[1]) * (1024 if found[2] else 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_many_sessions_take_little_memory_and_no_threads_and_end_with_their_leases(config, tmp_path):
    with (
        server_process(config, "--state-dir", str(tmp_path / "state"), "--session-ttl-s", "5") as server,
        MixClient.connect(server.address(), patience_s=DEADLINE_S) as client,
    ):
        for number in range(50):  # one-time costs of the first sessions: code, pools, threads of the server
            session = client.session(f"first-{number}")
            iter(session)
            session.next_batch(8)
        memory, threads = status(server, "VmRSS"), status(server, "Threads")
        sessions = []
        for number in range(SESSIONS):
            sessions.append(client.session(f"session-{number}"))
            iter(sessions[-1])
            sessions[-1].next_batch(8)
        each = (status(server, "VmRSS") - memory) / SESSIONS
        print(
            f"{each / 1024:.1f} KiB for a session, its node and Grain's iterator; {status(server, 'Threads')} threads"
        )
        assert each < SESSION_BYTES
        assert status(server, "Threads") <= threads + 2
        held = [known for known in client.sessions() if known.holder and known.name.startswith("session-")]
        assert len(held) == SESSIONS
        # Silent from here on: they leave memory, and their journals stay.
        client._leases._held.clear()
        deadline = time.monotonic() + DEADLINE_S
        while any(known.holder for known in client.sessions()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert sessions[7].next_batch(8) is not None  # no other client came meanwhile
        assert client.session("session-8").index == 8
        with pytest.raises(UnknownSession):
            client.view_session("session-none").get_state()
