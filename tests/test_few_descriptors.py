"""A process that has no descriptor left takes no connections, and takes them when it has some again."""

import logging
import os
import resource
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mixserve.serving.metrics_port import MetricsPort
from mixserve.serving.stats_socket import StatsSocket, of_workers
from mixserve_client.schema.stats import counter
from tests.processes import DEADLINE_S
from tests.waiting import wait_until

METRIC = counter("of_this_test", "…", {(): 7})


@contextmanager
def no_descriptor() -> Iterator[None]:
    """In the block, this process gets no descriptor."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))  # those that it has stay
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_metrics_of_a_worker_are_told_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The thread that tells them ended."""
    path = str(tmp_path / "stats")
    with closing(StatsSocket(lambda: [METRIC], path)) as told:
        asked = socket.socket(socket.AF_UNIX)
        with asked, no_descriptor():
            asked.connect(path)
            wait_until(lambda: "cannot take a connection for the metrics" in caplog.text, "the line in the log")
        wait_until(lambda: [metric.value() for metric in of_workers([path])] == [7], "the values of the workers")
        assert told._untaken.count < 20  # it waits between two tries


def test_a_port_of_metrics_does_not_spin(caplog: pytest.LogCaptureFixture) -> None:
    with closing(MetricsPort(lambda: [METRIC], "127.0.0.1:0")) as port:
        port.start()
        with socket.socket() as asked:
            host, _, number = port.address.rpartition(":")
            with no_descriptor():
                asked.connect((host, int(number)))
                used_s = time.process_time()
                time.sleep(1.0)
                assert time.process_time() - used_s < 0.1  # a loop without a pause takes what the machine has
        text = urllib.request.urlopen(f"http://{port.address}/metrics", timeout=DEADLINE_S).read().decode()
    assert "of_this_test" in text
    assert logging.ERROR not in [record.levelno for record in caplog.records]
