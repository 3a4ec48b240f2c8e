"""Statistics of servers -> what the policy sees; of made-up ones, and of real servers."""

import time

import pytest

from mixserve import serve
from mixserve.autoscaling import Observer, Seen, observe_by
from mixserve_client import MixClient
from mixserve_client.schema.stats import Metric, MetricKind, Sample, Stats, by_name, counter, gauge
from tests.conftest import make_node
from tests.processes import ONE_SIZE


def stats(readers: dict[str, int], share: float | None, made_s: float = 0.0, sent: float = 0.0) -> Stats:
    found = [
        gauge(
            "mixserve_readers", "", {("train", name): count for name, count in readers.items()}, ("mixture", "client")
        ),
        Metric(
            "mixserve_batch_seconds", "", MetricKind.HISTOGRAM, ("mixture",), (Sample(("train",), made_s, (1,)),), ()
        ),
        counter("mixserve_source_bytes_total", "", {("train", "web"): sent}, ("mixture", "source")),
    ]
    if share is not None:
        found.append(gauge("mixserve_wait_share", "", {("train",): share}, ("mixture",)))
    return by_name(found)


def test_the_first_look_has_no_rates():
    assert Observer().see(100.0, {"a": stats({"x": 2}, 0.5, 10, 1e6)}) == Seen(2, 0.5)


def test_rates_of_all_replicas_and_shares_by_their_readers():
    observer = Observer()
    observer.see(100.0, {"a": stats({"x": 3}, 0.4), "b": stats({"x": 1}, 0.8)})
    seen = observer.see(110.0, {"a": stats({"x": 3}, 0.4, 6.0, 4e7), "b": stats({"x": 1}, 0.8, 2.0, 2e7)})
    assert seen == Seen(3, pytest.approx(0.5), pytest.approx(0.4), pytest.approx(6e6))


def test_a_reader_of_several_replicas_counts_once():
    assert Observer().see(0.0, {"a": stats({"x": 2, "y": 1}, 0.1), "b": stats({"x": 2}, 0.1)}).readers == 3


def test_a_replica_that_is_new_is_reckoned_to_do_as_much_as_the_others():
    observer = Observer()
    observer.see(0.0, {"a": stats({}, None)})
    seen = observer.see(10.0, {"a": stats({}, None, 5.0, 1e7), "b": stats({}, None, 7.0, 9e9)})
    assert seen == Seen(0, None, pytest.approx(0.5), pytest.approx(2e6))


def test_real_servers():
    nodes = [make_node(plan_sizes=ONE_SIZE) for _ in range(2)]
    with serve({"train": nodes[0]}) as one, serve({"train": nodes[1]}) as other:
        addresses = [one.address, other.address]
        with MixClient.connect(addresses) as client:
            observe = observe_by(client)
            assert observe() == (2, Seen(0, None))
            batches, deadline = client.batches(30, 7), time.monotonic() + 20
            replicas, seen = observe()
            while seen.wait_share is None and time.monotonic() < deadline:
                for _ in range(100):
                    next(batches)
                time.sleep(0.1)  # a step, in which the time counts
                replicas, seen = observe()
        assert (replicas, seen.readers, seen.problem()) == (2, 1, None)
        assert seen.wait_share is not None
        assert (seen.load or 0) > 0
        assert (seen.busy or 0) > 0
        other.stop()
        with MixClient.connect(addresses) as client:
            assert observe_by(client)()[0] == 1
