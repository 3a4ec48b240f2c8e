"""`mixserve autoscale` beside two real servers whose readers come and go."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixserve import ServerTls, serve
from mixserve_client import MixClient
from tests.certificates import NEEDS_OPENSSL, Made
from tests.conftest import make_node
from tests.processes import DEADLINE_S, server_process
from tests.tokens.files import Tokens
from tests.waiting import wait_until

# Waits for each read under a lock: a server has 50 batches in a second at most.
SOURCE = """
import threading, time
import jax, numpy as np

class Waiting:
    content_id = "waiting"
    lock = threading.Lock()

    def __len__(self):
        return 100_000

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((65536,), np.int32)}

    def take(self, record_ids):
        with self.lock:
            time.sleep(0.02)
        return {"x": np.broadcast_to(record_ids.astype(np.int32)[:, None], (len(record_ids), 65536)).copy()}

def make():
    return Waiting()
"""
MIXTURE = """
mixtures:
  train:
    sources:
      waiting: {kind: factory, function: "waiting:make", weight: 1}
server: {port: 0}
"""
READERS, STEP_S = 8, 0.05  # they could take 160 batches in a second
# Servers call a reader gone when it has been silent for a minute: the rest is quick here.
QUICK = ("--every", "0.5", "--up-after-s", "3", "--settle-s", "2", "--gone-after-s", "3")
GONE_S = 60


@contextmanager
def readers(addresses: list[str]) -> Iterator[None]:
    """Trainers that take a batch of 4 rows for each step."""
    over = threading.Event()

    def train(client: MixClient, key: int) -> None:
        with client.batches(4, key) as batches:
            for _ in batches:
                if over.wait(STEP_S):
                    return

    with MixClient.connect(addresses, shared_memory=False) as client:
        threads = [threading.Thread(target=train, args=(client, key)) for key in range(READERS)]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            over.set()
            for one in threads:
                one.join()


@contextmanager
def autoscaler(log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mixserve", "autoscale", *arguments, *QUICK], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE_S)


@NEEDS_OPENSSL
def test_it_sees_what_its_token_may_see_over_tls(tmp_path: Path):
    made, tokens = Made.in_folder(tmp_path), Tokens(tmp_path / "tokens.yaml", {"r": ("reader", ["train"])})
    tls = ServerTls(certificate=made.server.certificate, key=made.server.key)
    token, log = tmp_path / "token", tmp_path / "log"
    token.write_text(tokens["r"])
    token.chmod(0o600)
    with serve({"train": make_node(), "other": make_node(seed=9)}, tls=tls, tokens=tokens.path) as server:
        arguments = server.address, "--dry-run", "--ca", str(made.authority.ca)
        with autoscaler(log, *arguments, "--token-file", str(token)) as process:
            wait_until(lambda: "first look" in log.read_text(), "a first look")
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_S) == 0
        assert "1 replica, 0 readers, 0.00 replies at a time for each, 0.0 MB/s: first look" in log.read_text()
        with autoscaler(log, *arguments) as process:
            assert process.wait(DEADLINE_S) == 2
        assert "token" in log.read_text()


def test_servers_that_do_not_answer_are_asked_again(tmp_path: Path):
    log = tmp_path / "log"
    with autoscaler(log, "127.0.0.1:1", "--dry-run") as process:
        wait_until(lambda: "no replica answers: " in log.read_text(), "a line about it")
        assert "Connection refused" in log.read_text()
        assert process.poll() is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --dry-run, or --run"),
        (("--dry-run", "--run", "scale {replicas}"), "give either --dry-run, or --run"),
        (("--run", "scale"), "must have the place {replicas}"),
        (("--dry-run", "--min", "3", "--max", "2"), "got 3 and 2"),
        (("--dry-run", "--up", "0.01"), "0 <= down < up < 1"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, arguments: tuple[str, ...], said: str):
    with autoscaler(tmp_path / "log", "127.0.0.1:1", *arguments) as process:
        assert process.wait(DEADLINE_S) == 2
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert said in line


def test_it_goes_up_once_and_down_once_with_the_readers(tmp_path: Path):
    (tmp_path / "waiting.py").write_text(SOURCE)
    config = tmp_path / "mixture.yaml"
    config.write_text(MIXTURE)
    dry, real, calls = tmp_path / "dry.log", tmp_path / "real.log", tmp_path / "calls"
    calls.touch()
    command = f"sh -c 'echo {{replicas}} >> {calls}'"
    with server_process(config) as one, server_process(config) as other:
        addresses = [one.address(), other.address()]
        with (
            autoscaler(dry, *addresses, "--max", "8", "--dry-run") as first,
            autoscaler(real, *addresses, "--max", "8", "--run", command) as second,
        ):
            with readers(addresses):
                wait_until(lambda: "would have" in dry.read_text() and calls.read_text(), "more replicas")
                time.sleep(5)  # and no more than that, however long trainers wait
            wait_until(lambda: len(calls.read_text().split()) > 1, "fewer replicas", GONE_S + DEADLINE_S)
            wait_until(lambda: dry.read_text().count("would have") > 1, "fewer replicas in the dry run")
            for process in (first, second):
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE_S) == 0
    print(dry.read_text())
    decisions = [line for line in dry.read_text().splitlines() if "would have" in line]
    up, down = (re.fullmatch(r"\d\d:\d\d:\d\d  would have (\d) in place of 2 replicas: (.*)", one) for one in decisions)
    assert up is not None
    assert down is not None
    assert int(up[1]) in (3, 4)
    assert re.fullmatch(r"trainers wait \d+\.\d% of their time", up[2])
    assert (down[1], down[2]) == ("1", "no trainer reads")
    more, fewer = calls.read_text().split()
    assert int(more) in (3, 4)
    assert fewer == "1"
    assert "failed" not in real.read_text()
