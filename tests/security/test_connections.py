"""Connections over gRPC end when their clients are gone, or old; those that ping are kept."""

import time
from contextlib import suppress

import numpy as np
import pytest

from benchmarks.attacks.raw import PING, RawConnection, frame
from mixserve import MixDataSourcesNode, serve
from mixserve.limits import ServerLimits
from mixserve.serving import options
from mixserve_client import MixClient
from mixserve_client.wire import methods
from tests.processes import DEADLINE_S
from tests.waiting import wait_until

FREED_S = 30.0


def test_the_calls_of_a_client_that_vanished_end(node: MixDataSourcesNode, monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict(options.KEEPALIVE)
    assert own["grpc.keepalive_time_ms"] + own["grpc.http2.ping_timeout_ms"] <= FREED_S * 1000
    fast = {"grpc.keepalive_time_ms": 500, "grpc.keepalive_timeout_ms": 500, "grpc.http2.ping_timeout_ms": 500}
    monkeypatch.setattr(options, "KEEPALIVE", [*(own | fast).items()])
    with serve({"train": node}, shared_memory=False, limits=ServerLimits(request_timeout_s=3600)) as server:
        vanished, polite = RawConnection(server.address, is_polite=False), RawConnection(server.address)
        for connection in (vanished, polite):
            connection.call(methods.STREAM_BATCHES, None)
        wait_until(lambda: len(server._streams._threads._of_one) == 2, "two streams")
        began = time.monotonic()
        wait_until(lambda: not vanished.is_open, "that the connection ends")
        assert time.monotonic() - began < 10  # without the timeout of pings it is 20 s
        wait_until(lambda: len(server._streams._threads._of_one) == 1, "that one stream is left")
        time.sleep(1.5)
        assert polite.is_open  # it answers pings
        polite.close()


def test_pings_every_two_seconds_are_accepted(node: MixDataSourcesNode) -> None:
    """Without calls, too: a ping that was sent just when the last call ended would count otherwise."""
    with serve({"train": node}, shared_memory=False) as server:
        patient, impatient = RawConnection(server.address), RawConnection(server.address)
        for number in range(5):
            patient.send(frame(PING, 0, 0, bytes(8)))
            with suppress(OSError):  # it is ended already
                for _ in range(5):
                    impatient.send(frame(PING, 0, 0, bytes(8)))
            if number < 4:
                time.sleep(2.1)
        wait_until(
            lambda: not impatient.is_open, "that the impatient one is cut off"
        )  # gRPC ends those that ping much more often
        assert patient.is_open
        patient.close()


def test_an_old_connection_ends_and_its_client_notices_nothing(node: MixDataSourcesNode) -> None:
    with serve({"train": node}, shared_memory=False, limits=ServerLimits(max_connection_age_s=0.4)) as server:
        connection = RawConnection(server.address)
        with MixClient.connect(server.address, shared_memory=False, bulk=False, patience_s=DEADLINE_S) as client:
            expected = client.get_batch_at(0, 400, key=7)
            batches, until, count = client.batches(4, key=7), time.monotonic() + 3, 0
            while time.monotonic() < until:
                client.get_batch_at(0, 2, key=7)
                batch = next(batches)
                if count < 100:
                    for name, rows in batch.items():
                        np.testing.assert_array_equal(rows, expected[name][4 * count : 4 * count + 4])
                count += 1
                time.sleep(0.01)
            assert count > 50
        wait_until(lambda: not connection.is_open, "that the connection ends")


def test_connections_have_no_age_by_default() -> None:
    names = [name for name, _ in options.options_of(ServerLimits(), shares_port=False)]
    assert not any("connection_age" in name for name in names)
