"""A mixture whose source hangs harms no other, tells its callers, and serves again by itself when the source does."""

import logging
import threading
import time
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

from mixserve import ArraySource, ServerLimits, serve
from mixserve.serving import routes
from mixserve_client import MixClient, Overloaded, ServerFault, Unavailable
from mixserve_client.schema.keys import key_words
from mixserve_client.wire import methods
from tests.conftest import ROUTES
from tests.hanging_source import HangingSource
from tests.load.hanging import DEADLINE_S, SIZE, Hanging, Next, abandon, node_of, request, until


def read_all_ways(hanging: Hanging, route: str) -> float:
    """Read the other mixture, and return the longest that anything took."""
    longest = 0.0
    with hanging.connect(route) as client, client.batches(SIZE, 5, mixture="train") as batches:
        for i in range(30):
            began = time.monotonic()
            next(batches)
            client.get_batch_at(SIZE * i, SIZE, 5, mixture="train")
            assert "hangs" in client.mixtures()
            longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.parametrize("route", ROUTES)
def test_abandoned_calls_of_a_mixture_that_hangs_stop_no_other(make, route):
    hanging = make()
    hanging.switch.touch()
    for i in range(4):
        abandon(hanging, 16, first=1000 * i)
    assert read_all_ways(hanging, route) < 5


def test_calls_that_wait_for_a_mixture_that_hangs_stop_no_other(make):
    hanging = make()
    hanging.switch.touch()
    with grpc.insecure_channel(hanging.server.address) as channel:
        call = channel.unary_unary(methods.GET_BATCH_AT)
        waiting = [call.future(request(SIZE * i)) for i in range(200)]  # a connection may have 256
        until(lambda: hanging.source.taken >= 16)
        assert read_all_ways(hanging, "grpc") < 5
        hanging.switch.unlink()
        for one in waiting:  # 16 are answered, those that waited for a turn too, and the others were told when to come
            error = one.exception(DEADLINE_S)
            # Cancelled: their requests came late, and others needed the thread.
            assert error is None or error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
        assert sum(one.exception() is None for one in waiting) >= 16


@pytest.mark.parametrize("route", ["grpc", "bulk"])
def test_streams_of_a_mixture_that_hangs_stop_no_other(make, route):
    hanging = make()
    hanging.switch.touch()
    with ExitStack() as stack:
        readers = [
            stack.enter_context(stack.enter_context(hanging.connect(route)).batches(SIZE, 100 + i, mixture="hangs"))
            for i in range(20)
        ]
        threads = [Next(reader) for reader in readers]
        until(lambda: hanging.source.taken >= 8)
        assert read_all_ways(hanging, route) < 5
        hanging.switch.unlink()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert thread.batch is not None


def test_a_read_that_takes_too_long_ends_with_an_error_that_says_where_and_the_log_has_it(make, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    hanging = make(read_timeout_s=0.3)
    with hanging.connect(patience_s=0.01) as client:
        first = client.get_batch_at(40, 1, 3, mixture="hangs")["x"][0]
        hanging.switch.touch()
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"at position 41: .*source '0'.* has not answered for 0\.3 s"):
            client.get_batch_at(41, 4, 3, mixture="hangs")
        assert 0.3 <= time.monotonic() - began < 5
        with pytest.raises(Unavailable, match=r"at position 0: .* has not answered"):
            next(client.batches(SIZE, 3, mixture="hangs"))
        log = caplog.text
        assert "the mixture 'hangs': reading 4 records of the source '0'" in log
        assert "look at what the source reads from" in log
        hanging.switch.unlink()
        until(lambda: "has ended after" in caplog.text)
        assert client.get_batch_at(40, 1, 3, mixture="hangs")["x"][0] == first


def test_rows_before_those_that_hang_are_delivered(make, tmp_path):
    switch = tmp_path / "one hangs"
    array = ArraySource({"x": np.arange(5, dtype=np.int32) + 10_000}, name="array")
    node = node_of(array, HangingSource(switch))
    expected = [node.mixture.planner.plan(key_words(3), p, 1).source_ids[0] for p in range(SIZE)]
    before = expected.index(1)
    assert before > 0
    with serve({"both": node}, limits=ServerLimits(read_timeout_s=0.3)) as server:
        switch.touch()
        with MixClient.connect(server.address, patience_s=0.01) as client:
            batches = client.batches(1, 3, prefetch=0)
            for _ in range(before):
                assert next(batches)["x"][0] >= 10_000
            with pytest.raises(Unavailable, match=f"at position {before}: "):
                next(batches)
            switch.unlink()
            assert next(batches)["x"][0] < 1000


@pytest.mark.parametrize("alone", [True, False])
def test_when_all_threads_that_read_hang_calls_are_refused_at_once_and_later_served_again(make, alone, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    hanging = make(alone=alone, calls_per_mixture=2)  # so there are 6 that read
    hanging.switch.touch()
    for i in range(3):
        abandon(hanging, 2, first=100 * i)
    assert hanging.source.taken == 6
    with hanging.connect(patience_s=0.01) as client:
        for read in (
            lambda: client.get_batch_at(500, SIZE, 3, mixture="hangs"),
            lambda: next(client.batches(SIZE, 4, mixture="hangs")),
        ):
            began = time.monotonic()
            with pytest.raises(Overloaded, match="all 6 threads that read the mixture 'hangs' are inside its sources"):
                read()
            assert time.monotonic() - began < 2
        assert client.mixture("hangs").name == "hangs"
    assert "calls are refused until one comes back" in caplog.text
    hanging.switch.unlink()
    with hanging.connect() as client:
        assert len(client.get_batch_at(500, SIZE, 3, mixture="hangs")["x"]) == SIZE


def test_what_waits_for_a_thread_is_dropped_when_its_client_goes(make):
    hanging = make(alone=True, calls_per_mixture=2)
    hanging.switch.touch()
    abandon(hanging, 2)  # so that the next read begins after these have given up their threads
    with hanging.connect() as patient, grpc.insecure_channel(hanging.server.address) as channel:
        threads = [threading.Thread(target=patient.get_batch_at, args=(700 + SIZE * i, SIZE, 3)) for i in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: hanging.source.taken == 4)
        call = channel.unary_unary(methods.GET_BATCH_AT)
        waiting = [call.future(request(SIZE * i), timeout=0.5) for i in range(50)]
        for one in waiting:
            assert one.exception(DEADLINE_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        hanging.switch.unlink()
        for thread in threads:
            thread.join(DEADLINE_S)
        patient.get_batch_at(900, SIZE, 3)  # takes its turn after all of those
        assert hanging.source.taken == 5


def test_a_client_that_comes_back_for_a_batch_waits_for_the_read_that_goes_on(make):
    hanging = make()
    hanging.switch.touch()
    for _ in range(20):
        with grpc.insecure_channel(hanging.server.address) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(methods.GET_BATCH_AT)(request(0), timeout=0.05)
    with hanging.connect() as client:
        expected = np.asarray(client.get_plan_at(0, SIZE, 3, mixture="hangs")["record_id"])
        reading = threading.Timer(0.2, hanging.switch.unlink)
        reading.start()
        np.testing.assert_array_equal(client.get_batch_at(0, SIZE, 3, mixture="hangs")["x"], expected)
    assert hanging.source.taken == 1


@pytest.mark.parametrize("route", ["grpc", "bulk"])
def test_an_iterator_that_is_closed_frees_the_threads_that_it_had(make, route):
    hanging = make(calls_per_mixture=1)
    hanging.switch.touch()
    share = hanging.server._work.bulk if route == "bulk" else hanging.server._work.streams
    with hanging.connect(route) as client:
        batches = client.batches(SIZE, 3, mixture="hangs")
        waiting = Next(batches)
        until(lambda: share.held("hangs") == 1)
        batches.close()
        until(lambda: share.held("hangs") == 0)
        waiting.join(DEADLINE_S)
        assert isinstance(waiting.error, Unavailable)


def test_a_bulk_client_that_is_killed_frees_the_thread_that_it_had(make):
    hanging = make()
    hanging.switch.touch()
    client = hanging.connect("bulk")
    waiting = Next(client.batches(SIZE, 3, mixture="hangs"))
    until(lambda: hanging.server._work.bulk.held("hangs") > 0)
    client.close()
    until(lambda: hanging.server._work.bulk.held("hangs") == 0)
    waiting.join(DEADLINE_S)


def test_a_lone_mixture_that_hangs_is_described_all_the_same(make):
    hanging = make(alone=True)
    hanging.switch.touch()
    with grpc.insecure_channel(hanging.server.address) as channel, hanging.connect() as client:
        waiting = [channel.unary_unary(methods.GET_BATCH_AT).future(request(SIZE * i)) for i in range(100)]
        until(lambda: hanging.source.taken == 16)
        began = time.monotonic()
        assert client.mixtures() == ("hangs",)
        assert client.mixture("hangs").fields
        assert time.monotonic() - began < 5
        hanging.switch.unlink()
        assert all(one.exception(DEADLINE_S) is None for one in waiting)  # they wait for one another


@pytest.mark.parametrize(
    "limits",
    [{"calls_per_mixture": 0}, {"calls_per_mixture": 1.5}, {"calls_per_mixture": 10_000}, {"calls_per_mixture": True}]
    + [{"read_timeout_s": value} for value in (0, -1.0, float("inf"), float("nan"), True, "60")],
)
def test_limits_that_cannot_be(limits):
    with pytest.raises(ValueError, match=f"{next(iter(limits))} must be "):
        ServerLimits(**limits)


def test_more_calls_than_may_wait_are_refused_before_they_do(make, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    monkeypatch.setattr(routes, "_MOST_WAITING", 5)
    hanging = make(alone=True, calls_per_mixture=1)
    hanging.switch.touch()
    with grpc.insecure_channel(hanging.server.address) as channel:
        calls = [channel.unary_unary(methods.GET_BATCH_AT).future(request(SIZE * i)) for i in range(20)]
        until(lambda: sum(one.done() for one in calls) >= 10)
        hanging.switch.unlink()
        codes = [None if one.exception(DEADLINE_S) is None else one.exception().code() for one in calls]
    assert codes.count(None) >= 6
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 10
    assert "calls wait for a thread: others are refused" in caplog.text


def test_a_log_that_exits_takes_no_thread_that_reads(make, caplog):
    class Exits(logging.Handler):
        def emit(self, record):
            raise SystemExit

    exits = Exits(logging.WARNING)
    hanging = make(calls_per_mixture=1, read_timeout_s=0.2)  # so there are 3 that read
    logging.getLogger("mixserve").addHandler(exits)
    try:
        with hanging.connect(patience_s=0.01) as client:
            for i in range(4):
                hanging.switch.touch()
                with pytest.raises((Unavailable, ServerFault)):
                    client.get_batch_at(SIZE * i, SIZE, 3, mixture="hangs")
                hanging.switch.unlink()
                until(lambda: not hanging.server._work._readers["hangs"]._running)
                assert client.get_batch_at(SIZE * i, SIZE, 3, mixture="hangs")
    finally:
        logging.getLogger("mixserve").removeHandler(exits)
