"""Faults that come a thousand times a second: one line of each kind, and none that is not counted."""

import gc
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mixserve import serve
from mixserve.faults import Faults, Kind
from mixserve_client import MixClient, ServerFault
from mixserve_client.schema.stats import by_name
from tests.logs.faulty import FaultySource
from tests.logs.test_request_ids import node_of

WEB = Kind("GetBatchAt", "train", "web", "OSError")
OTHERS = [WEB._replace(what="StreamBatches"), WEB._replace(source="code"), WEB._replace(error="ValueError")]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_of_a_kind_one_per_second_is_due_and_the_others_have_its_id():
    clock = Clock()
    faults = Faults(clock)
    assert faults.note(WEB, "a") == ("a", True, 0)
    for number in range(1000):
        assert faults.note(WEB, str(number)) == ("a", False, 0)
    for at, other in enumerate(OTHERS):
        assert faults.note(other, f"other-{at}") == (f"other-{at}", True, 0)
    clock.now += 1
    assert faults.note(WEB, "b") == ("b", True, 1000)
    clock.now += 1
    assert faults.note(WEB, "c") == ("c", True, 0)
    assert faults.counts() == {
        ("train", "web", "OSError"): 1004,
        ("train", "code", "OSError"): 1,
        ("train", "web", "ValueError"): 1,
    }


def test_the_last_ones_are_told_too(caplog):
    clock = Clock()
    faults = Faults(clock)
    for _ in range(4):
        faults.note(WEB, "0a1b2c3d")
    faults.report()
    assert not caplog.records  # the line has just been written
    clock.now += 1
    faults.report()
    faults.report()
    (line,) = caplog.records
    assert line.getMessage() == "3 more faults in GetBatchAt like 0a1b2c3d (OSError)"
    assert (line.request, line.mixture, line.source, line.error) == ("0a1b2c3d", "train", "web", "OSError")


def test_they_have_bounds():
    clock = Clock()
    faults = Faults(clock)
    for number in range(5000):
        assert faults.note(WEB._replace(error=f"Error{number}"), str(number)).is_due
    assert len(faults._lines) == 1024
    counts = faults.counts()
    assert len(counts) == 1025
    assert counts["train", "", "other"] == 5000 - 1024


def test_a_line_is_due_once_however_many_threads_fail_together():
    faults, due = Faults(), list[bool]()
    start = threading.Barrier(8)

    def fail(number: int) -> None:
        start.wait(20)
        due.extend(faults.note(WEB, f"{number}-{i}").is_due for i in range(200))

    threads = [threading.Thread(target=fail, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(due) <= 2  # two if a second passed meanwhile
    assert faults.counts() == {("train", "web", "OSError"): 1600}


def test_a_server_that_fails_all_the_time_counts_all_and_logs_few(tmp_path, caplog):
    switch = tmp_path / "fails"
    node = node_of(FaultySource(switch))
    (name,) = node.mixture.names
    # A connection may have 256 calls. One whose error is kept somewhere counts until Python's collector finds it.
    with (
        without_collector(),
        serve({"a": node}) as server,
        MixClient.connect(server.address, shared_memory=False, bulk=False) as client,
    ):
        client.get_batch_at(0, 1, 0)
        switch.touch()
        ids = list[str]()
        for key in range(600):
            with pytest.raises(ServerFault) as caught:
                client.get_batch_at(0, 1, key + 1)
            ids.append(caught.value.request_id)
        lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
        stats = by_name(server.stats.collect())
    assert set(ids) == {line.request for line in lines if line.exc_info}
    assert len(lines) < 30  # as many as it took seconds, or twice as many
    assert stats["mixserve_faults_total"].value(mixture="a", source=name, error="ValueError") == 600
    assert stats["mixserve_faults_total"].labels == ("mixture", "source", "error")
