"""The lines that a client writes: one for each failover and fault, that says what to do, and never many."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from mixserve import serve
from mixserve_client import CorruptReply, MixClient, Overloaded, ServerFault, Unavailable
from mixserve_client.limited_log import LimitedLogs, limit_hits
from tests.client.test_replicas import KEY, SIZE, Running, make, until
from tests.conftest import make_node
from tests.ports import free_ports
from tests.processes import DEADLINE_S


@pytest.fixture
def running() -> Iterator[Running]:
    with ExitStack() as opened:
        yield Running(opened)


def sixteen_times(read: Callable[[], None]) -> None:
    """Run it in as many threads, and wait for them."""
    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [said for said in caplog.messages if text in said]


@pytest.mark.parametrize("how", ["calls", "iterator"])
def test_the_only_server_is_lost_and_back(how, caplog):
    caplog.set_level(logging.INFO, "mixserve_client")
    address = f"127.0.0.1:{free_ports()}"
    with MixClient.connect(address, patience_s=DEADLINE_S, shared_memory=False) as client:
        batches = client.batches(SIZE, KEY, prefetch=0)
        read = (lambda: client.get_batch_at(0, SIZE, KEY)) if how == "calls" else (lambda: next(batches))
        # That it has not begun to serve is no failure: commands would say it beside their errors.
        for level in (logging.INFO, logging.WARNING):
            caplog.clear()
            thread = threading.Thread(target=read)
            thread.start()
            until(lambda: lines(caplog, "does not answer, and the client asks again for up to"))
            with serve({"train": make_node()}, address):
                thread.join()
                (lost,) = lines(caplog, "does not answer")
                assert address in lost
                assert f"for up to {DEADLINE_S:g} s (patience_s)" in lost
                (back,) = lines(caplog, "is back after")
                assert address in back
                told = [record.levelno for record in caplog.records if record.getMessage() in (lost, back)]
                assert told == [level] * 2
                assert client.stats()["mixserve_client_replicas_out"].value() == 0


def test_faults_of_replicas_are_told_with_what_to_do(running, caplog):
    first, one = running.start(make())
    second, other = running.start(make())
    client = running.connect(one.address, other.address, patience_s=3)
    client.mixture()
    for error, said in (
        (ServerFault("a source fails"), "cannot answer this request, and the other replicas are asked. See its log"),
        (Overloaded("full", 0.05), "is busy, and gets requests again later; if that lasts, add replicas"),
        (CorruptReply("nonsense"), "look for a proxy that changes replies"),
    ):
        caplog.clear()
        first.error = second.error = error
        with pytest.raises(type(error)):
            client.get_batch_at(0, SIZE, KEY)
        told = lines(caplog, said)
        assert {address for address in (one.address, other.address) if any(address in line for line in told)} == {
            one.address,
            other.address,
        }
        assert all(str(error) in line for line in told)
    assert client.stats()["mixserve_client_corrupt_replies_total"].value() >= 2


def test_a_storm_of_faults_leaves_one_line_a_second(running, caplog):
    services, server = running.start(make())
    client = running.connect(server.address, patience_s=1.5)
    client.mixture()
    services.error = Overloaded("full", 0.0)
    began = time.monotonic()

    def read() -> None:
        with pytest.raises(Overloaded):
            client.get_batch_at(0, SIZE, KEY)

    sixteen_times(read)
    told = lines(caplog, "is busy")
    assert 1 <= len(told) <= time.monotonic() - began + 1
    assert client.stats()["mixserve_client_retries_total"].value(error="Overloaded") > 50
    if len(told) > 1:
        assert re.search(r"and \d+ more since the last such line", told[1])


def test_waits_of_many_requests_leave_few_lines(caplog, monkeypatch):
    monkeypatch.setattr("mixserve_client.rpc.tries._LOG_AFTER_S", 0.3)
    with MixClient.connect("127.0.0.1:1", patience_s=2) as client:

        def read() -> None:
            with pytest.raises(Unavailable):
                client.get_batch_at(0, SIZE, KEY)

        sixteen_times(read)
    assert 1 <= len(lines(caplog, "still waiting for a server")) <= 4


def test_kinds_are_limited_each_for_itself_and_are_no_limits(caplog):
    now = [1000.0]
    logs = LimitedLogs(logging.getLogger("mixserve_client"), lambda: now[0])
    before = limit_hits()
    for _ in range(5):
        logs.warn("a", "%s fails", "one")
        logs.warn("b", "100 % of it fails")
    now[0] += 1
    logs.warn("a", "%s fails", "one")
    assert caplog.messages == [
        "one fails",
        "100 % of it fails",
        "one fails (and 4 more since the last such line)",
    ]
    assert limit_hits() == before
