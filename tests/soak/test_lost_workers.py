"""Readers of workers that are lost with streams in flight, again and again: none waits for ever.

gRPC's own retries lose the end of a stream that cannot connect about once in a thousand rounds. MIXSERVE_LOST_ROUNDS
sets how often each reader loses three workers.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import pytest

from mixserve import MixDataSourcesNode
from mixserve.servicer import Services
from mixserve_client import MixClient
from tests.client.worker_processes import Process, port_of, running

ROUNDS = int(os.environ.get("MIXSERVE_LOST_ROUNDS") or 60)
READERS, BATCHES, SIZE, KEY = 4, 40, 4096, 7
LONGEST_S = 15.0


@pytest.fixture
def services(node: MixDataSourcesNode) -> Iterator[Services]:
    made = Services({"train": node})
    made.warm_up()
    yield made
    made.close()


class Reader(threading.Thread):
    """Reads from a server whose workers end while it does. `moved_at` is when it went on last."""

    def __init__(self, services: Services):
        super().__init__(daemon=True)  # one that waits for ever must not keep the process
        self._services = services
        self.rounds, self.moved_at = 0, time.monotonic()

    def run(self) -> None:
        for _ in range(ROUNDS):
            with ExitStack() as stack:
                self._lose_workers(stack)
            self.rounds += 1

    def _lose_workers(self, stack: ExitStack) -> None:
        told: list[str] = []
        shared, *workers = (Process(self._services, told) for _ in range(3))
        address = stack.enter_context(running(shared))[0]
        stops = [stack.enter_context(ExitStack()) for _ in workers]
        told += [port_of(stop.enter_context(running(one))[0]) for stop, one in zip(stops, workers, strict=True)]
        client = stack.enter_context(MixClient.connect(address, shared_memory=False, patience_s=20))
        for _ in islice(client.batches(SIZE, KEY, prefetch=2), BATCHES // 2):
            pass
        for stop in stops:
            batches = client.batches(SIZE, KEY, prefetch=2)
            for number in range(BATCHES):
                if number == 1:
                    stop.close()
                next(batches)
                self.moved_at = time.monotonic()


@pytest.mark.alone
@pytest.mark.timeout(120 + ROUNDS)
def test_no_reader_of_lost_workers_waits_for_ever(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="mixserve_client")
    readers = [Reader(services) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    while running_ones := [reader for reader in readers if reader.is_alive()]:
        waited_s = time.monotonic() - min(reader.moved_at for reader in running_ones)
        assert waited_s < LONGEST_S, f"a reader has waited for {waited_s:.1f} s"
        running_ones[0].join(0.5)
    assert [reader.rounds for reader in readers] == [ROUNDS] * READERS
