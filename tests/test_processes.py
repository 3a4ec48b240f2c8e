"""Several processes that serve one port: real ones, called at all their addresses, killed and drained."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mixserve import local_client
from mixserve.cli import supervisor
from mixserve.cli.health import probe
from mixserve.cli.signals import Signals
from mixserve.cli.worker_link import Place
from mixserve_client import PermissionDenied, Unauthenticated
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_stream_request
from mixserve_client.wire.server import ask_load, decode_server
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.cluster import Cluster, is_running, listening_ports, unix_sockets
from tests.conftest import assert_batches_equal
from tests.processes import DEADLINE_S, server_process, write_mixture
from tests.tokens.calling import REFLECTION, bearer
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")

# A quick form runs in `make test`; with MIXSERVE_WORKER_KILLS=20 the longer one.
KILLS = int(os.environ.get("MIXSERVE_WORKER_KILLS") or 3)
WORKERS = 3
BATCH = 64
ROWS = 2400  # of 32 bytes: enough for shared memory
SCHEDULE = [(0, (0.7, 0.3)), (1000, (0.1, 0.9))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("workers"), WORKERS)
    try:
        yield made
    finally:
        made.server.kill()


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Iterator[Cluster]:
    """A second one, which tests break."""
    folder = tmp_path_factory.mktemp("broken")
    made = Cluster(folder, 2, Authority(folder / "authority") if shutil.which("openssl") else None)
    try:
        yield made
    finally:
        made.server.kill()


@pytest.fixture(scope="module", autouse=True)
def _start_both(cluster: Cluster, other: Cluster) -> None:
    """Both start at once."""


@pytest.mark.parametrize("shared_memory", [True, False])
def test_every_worker_serves_the_same_batches(cluster: Cluster, shared_memory: bool) -> None:
    with local_client({"train": cluster.node}) as local:
        wanted = list(islice(local.batches(ROWS, 7), 3))
        scheduled = list(islice(local.batches(ROWS, 7, schedule=SCHEDULE), 2))
    own = cluster.own_addresses()
    assert len(set(own)) == WORKERS
    for address in own:
        with cluster.connect_to_one(address, shared_memory) as client:
            assert_batches_equal(client.get_batch_at(0, ROWS, 7), wanted[0])
            for found, expected in zip(client.batches(ROWS, 7), wanted, strict=False):
                assert_batches_equal(found, expected)
            assert client.transport == ("shared memory, " if shared_memory else "") + f"grpc {address}"
    with cluster.connect(shared_memory=shared_memory) as client:  # each worker learns the schedule
        for _ in range(2):
            for found, expected in zip(client.batches(ROWS, 7, schedule=SCHEDULE), scheduled, strict=False):
                assert_batches_equal(found, expected)
        assert re.fullmatch(
            rf"(shared memory|bulk 127.0.0.1:\d+), grpc 127.0.0.1:\d+, one of {WORKERS} processes", client.transport
        )


def test_every_worker_has_a_port_for_bulk_channels(cluster: Cluster) -> None:
    cluster.wait_until_all_serve()
    for number in range(WORKERS):
        assert cluster.bulk_port + number in listening_ports(cluster.worker(number))
    # A stream that begins in another thread shows its worker before that has a channel.
    ports = "|".join(str(cluster.bulk_port + number) for number in range(WORKERS))
    with cluster.connect(shared_memory=False) as client, client.batches(BATCH, 7) as batches:
        told = re.compile(rf"bulk 127\.0\.0\.1:({ports}), grpc \S+, one of {WORKERS} processes")
        wait_until(
            lambda: next(batches) and told.fullmatch(client.transport) is not None,
            "that a batch comes from the process",
        )


def test_info_shows_the_processes(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "mixserve", "info", cluster.server.address()]
    token = os.environ | {"MIXSERVE_TOKEN": cluster.tokens["reader"]}
    shown = subprocess.run(command, env=token, capture_output=True, text=True, check=True).stdout
    told = ", ".join(f":{address.rpartition(':')[2]}" for address in cluster.own_addresses())
    assert shown.splitlines()[-1] == f"3 processes serve this address, and each serves one of its own: {told}"


def test_a_client_spreads_its_streams_evenly(cluster: Cluster) -> None:
    with cluster.connect(shared_memory=False) as client:
        next(client.batches(BATCH, 7))
        transport: Any = client.catalog.resources.here.caller.transport
        first = BatchRequest("train", 0, BATCH, np.array([0, 7], np.uint32))
        request = encode_stream_request(StreamRequest(first, BATCH, 1000, BATCH))
        streams = [transport.stream(methods.STREAM_BATCHES, request, DEADLINE_S, 1, 1) for _ in range(4 * WORKERS)]
        readers = [iter(stream) for stream in streams]
        firsts = [bytes(next(reader)) for reader in readers]
        counts = {address: len(worker.streams) for address, worker in transport._workers.items()}
        assert len(set(firsts)) == 1
        for stream in streams:
            stream.cancel()
    assert list(counts.values()) == [4] * WORKERS


def test_every_worker_tells_the_readers_of_all(cluster: Cluster) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(cluster.connect(shared_memory=False))
        each = [stack.enter_context(cluster.connect_to_one(one, False)) for one in cluster.own_addresses()]
        batches = client.batches(BATCH, 7, prefetch=0)

        def told() -> list[int]:
            loads = [decode_server(one._caller.call(methods.GET_SERVER, ask_load())).load for one in each]
            return [0 if load is None else load.readers for load in loads]

        wait_until(lambda: len(next(batches)) > 0 and min(told()) > 0, "every process knows the reader of one")
        batches.close()
        wait_until(lambda: not any(told()), "every process knows that it has gone")


def test_tokens_and_reflection_at_every_worker(cluster: Cluster) -> None:
    for address in (cluster.server.address(), *cluster.own_addresses()):
        with cluster.connect(address, token=None) as client, pytest.raises(Unauthenticated):
            client.mixtures()
        with cluster.connect(address, "reader") as client:
            assert client.mixtures() == ("train",)
            with pytest.raises(PermissionDenied):
                client.session("mine")
        with grpc.insecure_channel(address) as channel:
            call = channel.stream_stream(REFLECTION)
            assert not list(call(iter([]), metadata=bearer(cluster.tokens["admin"]), timeout=DEADLINE_S))
        assert probe(address, DEADLINE_S) == "SERVING"


def test_sessions_through_every_worker_are_those_of_one(cluster: Cluster) -> None:
    node, own = cluster.node, cluster.own_addresses()
    with cluster.connect(own[1]) as client, client.session("wandering") as session:
        assert_batches_equal(session.next_batch(5), node.next_batch(5))
        session.save_checkpoint("here")
    for address in own:  # the next one goes on where the last one was
        with cluster.connect(address) as client:
            assert "wandering" in [one.name for one in client.sessions()]
            with client.session("wandering") as session:
                assert_batches_equal(session.next_batch(7), node.next_batch(7))
                with pytest.raises(Exception, match="no checkpoint"):
                    session.restore_checkpoint("elsewhere")
    # The worker that keeps sessions knows who called the other one.
    callers = re.findall(r"worker 0: event=session-opened who=trainer peer=(\S+)", cluster.server.log())
    assert len(callers) == 1 + WORKERS
    assert all(caller.startswith("ipv4:127.0.0.1:") for caller in callers)


def test_kills_under_load_lose_nothing_and_workers_come_back(cluster: Cluster) -> None:
    ended, read = threading.Event(), [0, 0, 0]

    def read_batches(number: int) -> None:
        with cluster.connect(shared_memory=number == 0) as client, local_client({"train": cluster.node}) as local:
            for found, wanted in zip(client.batches(BATCH, number), local.batches(BATCH, number), strict=False):
                assert_batches_equal(found, wanted)
                assert_batches_equal(client.get_batch_at(read[number], 3, 5), local.get_batch_at(read[number], 3, 5))
                read[number] += 1
                if ended.is_set():
                    return

    def use_session() -> None:
        node = cluster.node
        with cluster.connect() as client:
            session = client.session("killed")
            while not ended.is_set():
                try:
                    assert_batches_equal(session.next_batch(2), node.next_batch(2))
                except StopIteration:
                    iter(session)
                    iter(node)
                read[2] += 1

    cluster.wait_until_all_serve()
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(read_batches, 0), threads.submit(read_batches, 1), threads.submit(use_session)]
        try:
            for kill in range(KILLS):
                wait_for_progress(read, running)
                victim = cluster.worker((kill + 1) % WORKERS)
                os.kill(victim, signal.SIGKILL)
                for address in (cluster.health, cluster.server.address()):
                    wait_until(
                        lambda address=address: probe(address, 5) == "NOT_SERVING", "that the process no longer serves"
                    )
                wait_for_progress(read, running, of=2)  # without the worker that is missing
                cluster.wait_until_all_serve()
                assert not is_running(victim)
                assert len(cluster.workers()) == WORKERS
            wait_for_progress(read, running)
        finally:
            ended.set()
        for one in running:
            one.result(DEADLINE_S)
    assert len(re.findall(r"was ended by SIGKILL; another one starts", cluster.server.log())) == KILLS
    assert len(re.findall(r"INFO serving on ", cluster.server.log())) == 1
    print(f"batches beside {KILLS} kills: {read}")


def wait_for_progress(read: list[int], running: list[Any], of: int = 3) -> None:
    """Wait until each of the first readers has read something more."""
    before = read[:of]
    wait_until(
        lambda: any(one.done() for one in running) or all(a > b for a, b in zip(read, before, strict=False)),
        "that all readers go on",
    )
    for one in running:
        if one.done():
            one.result()


@NEEDS_OPENSSL
def test_certificates_at_every_worker(other: Cluster) -> None:
    node = other.node
    for address in (other.server.address(), *other.own_addresses()):
        with other.connect(address) as client, client.session("certified") as session:
            next(client.batches(BATCH, 7))
            assert_batches_equal(session.next_batch(3), node.next_batch(3))
        with other.connect(address, tls=True) as client, pytest.raises(Unauthenticated):
            client.mixtures()


def test_a_worker_that_would_serve_other_mixtures_is_refused(other: Cluster) -> None:
    other.wait_until_all_serve()
    text = other.config.read_text()
    other.config.write_text(text.replace("weight: 0.7", "weight: 0.6"))
    os.kill(other.worker(1), signal.SIGKILL)
    other.server.wait_for_log("worker 1 would serve other mixtures")
    other.server.wait_for_log(r"worker 1 \(process \d+\) ended with exit code 1; another one starts")
    assert probe(other.health, 5) == "NOT_SERVING"
    with other.connect() as client:
        next(client.batches(BATCH, 7))
    other.config.write_text(text)
    other.wait_until_all_serve()


def test_no_worker_outlives_the_process_that_started_it(other: Cluster) -> None:
    other.wait_until_all_serve()
    workers = other.workers()
    assert len(workers) == 2
    (folder,) = {Path(one).parent for one in unix_sockets(other.worker(0)) if one.endswith("state.sock")}
    other.server.kill()
    wait_until(lambda: not any(map(is_running, workers)), "that all workers end")
    assert not folder.exists()


def test_a_port_that_is_taken_is_refused(tmp_path: Path, cluster: Cluster) -> None:
    port = cluster.server.address().rpartition(":")[2]
    with server_process(write_mixture(tmp_path), "--processes", "2", "--port", port, real=True) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert "cannot listen" in server.log()


def test_a_signal_drains_all_workers(cluster: Cluster) -> None:
    cluster.wait_until_all_serve()
    workers = cluster.workers()
    assert len(workers) == WORKERS
    with cluster.connect() as client:
        next(client.batches(BATCH, 7))
    assert cluster.server.terminate() == 0
    assert not any(map(is_running, workers))
    log = cluster.server.log()
    assert len(re.findall(r"worker \d: stopped", log)) == WORKERS
    assert log.rstrip().endswith("INFO stopped")


ENDS_AT_ONCE = """
import socket, sys
link = socket.socket(fileno=int(sys.argv[1]))
link.recv(1 << 16)
link.send(b"warm with the same mixtures")
link.recv(100)
link.send(b"serving")
"""


def test_a_worker_that_ends_at_once_again_and_again_starts_later_each_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.1)
    health, signals = list[bool](), Signals()
    place = Place(0, "127.0.0.1:1", ["127.0.0.1:2"], [":2"], "/nowhere")
    running = supervisor.Supervisor([sys.executable, "-c", ENDS_AT_ONCE], [place], health.append)
    signals.is_serving = True

    def delays() -> list[str]:
        return re.findall(r"ended with exit code 0; another one starts in (\S+) s", caplog.text)

    with caplog.at_level("INFO", "mixserve"), ThreadPoolExecutor(1) as thread:
        code = thread.submit(running.run, signals, 1.0)
        wait_until(lambda: len(delays()) >= 4 or code.done(), "four delays")
        signals.tell()
        assert code.result(DEADLINE_S) == 0
    assert delays()[:4] == ["0.0", "0.1", "0.2", "0.4"]
    assert health[:4] == [True, False] * 2


def test_a_worker_may_end_before_it_is_told_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which happens once in 25 times here, so that 200 are enough."""
    monkeypatch.setattr(supervisor, "_LOOK_EVERY_S", 0.01)
    place = Place(0, "127.0.0.1:1", ["127.0.0.1:2"], [":2"], "/nowhere")
    for _ in range(200):
        signals = Signals()
        assert supervisor.Supervisor(["/bin/true"], [place], print).run(signals, 1.0) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--processes", "0"), r"--processes must be in 1\.\.256, or auto, got '0'"),
        (("--processes", "many"), r"--processes must be in 1\.\.256, or auto, got 'many'"),
        (("--processes", "2", "--host", "0.0.0.0"), "can be reached from other machines"),
        (("--processes", "2", "--placement", "nowhere"), "placement must be"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with server_process(write_mixture(tmp_path), *flags, real=True) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert len(re.findall(said, server.log())) == 1
