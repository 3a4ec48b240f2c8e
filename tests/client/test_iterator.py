"""The iterator: every position once, in order, at any prefetch, with any cuts, closed, resumed or interleaved."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve import local_client
from mixserve.servicer import Services
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient, Unavailable
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire.batch import decode_batch
from tests.conftest import assert_batches_equal, make_node
from tests.profiles import examples


def concatenate(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 70),
    start=st.integers(0, 2**62),
    rows=st.integers(1, 300),
    prefetch=st.integers(0, 5),
)
def test_batches_in_a_row_are_one_large_batch(client, batch_size, start, rows, prefetch):
    with client.batches(batch_size, 3, start=start, stop=start + rows, prefetch=prefetch) as batches:
        got = list(batches)
    assert [len(batch["id"]) for batch in got[:-1]] == [batch_size] * (len(got) - 1)
    assert_batches_equal(concatenate(got), client.get_batch_at(start, rows, 3))


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 40), data=st.data())
def test_shards_put_together_are_the_global_batches(client, batch_size, data):
    count = data.draw(st.integers(1, batch_size))
    stop = data.draw(st.integers(1, 100))
    shards = [client.batches(batch_size, 3, stop=stop, shard=(index, count)) for index in range(count)]
    for whole in client.batches(batch_size, 3, stop=stop):
        assert_batches_equal(concatenate(next(shard) for shard in shards), whole)
    for shard in shards:
        assert next(shard, None) is None


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 12),
    workers=st.integers(1, 5),
    shards=st.integers(1, 3),
    start=st.integers(0, 50),
    rows=st.integers(0, 90),
    skip=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=3),
    prefetch=st.integers(0, 4),
)
def test_workers_in_turn_give_the_batches_of_one(client, batch_size, workers, shards, start, rows, skip, prefetch):
    options = {"start": start, "stop": start + rows, "skip": skip, "prefetch": prefetch}
    shard = (shards - 1, max(shards, 1)) if shards <= batch_size else (0, 1)
    made = [client.batches(batch_size, 3, shard=shard, worker=(w, workers), **options) for w in range(workers)]
    for number, batch in enumerate(client.batches(batch_size, 3, shard=shard, **options)):
        worker = made[number % workers]
        assert_batches_equal(next(worker), batch)
        if number % 3 == 1:  # as after a stop and a restart
            resumed = client.batches(batch_size, 3, shard=shard, worker=(number % workers, workers), **options)
            resumed.set_state(worker.get_state())
            made[number % workers] = resumed
    for worker in made:
        assert next(worker, None) is None
        assert next(worker, None) is None


@pytest.mark.parametrize("read", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("change", [{"stop": 64}, {"skip": [(32, 40)]}, {"skip": [(28, 30), (36, 52)]}])
def test_workers_go_on_alike_where_the_end_or_the_skips_are_others(client, read, change):
    before = {"stop": 20} if "stop" in change else {"stop": 100}
    after = before | change

    def going_on(workers):
        made = [client.batches(4, 3, worker=(w, workers), start=8, **before) for w in range(workers)]
        for number in range(read):
            next(made[number % workers], None)
        resumed = [client.batches(4, 3, worker=(w, workers), start=8, **after) for w in range(workers)]
        for batches, old in zip(resumed, made, strict=True):
            batches.set_state(old.get_state())
        found = []
        for number in range(min(read, 3) if "stop" in change else read, 40):
            batch = next(resumed[number % workers], None)
            if batch is None:
                break
            found.append(batch)
        return found

    expected = going_on(1)
    assert expected
    for workers in (2, 3):
        found = going_on(workers)
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_batches_equal(left, right)


class Streams(Services):
    """Counts the streams that are opened."""

    opened = 0

    def stream(self, method, request, *more):
        self.opened += 1
        return super().stream(method, request, *more)


@pytest.mark.parametrize("shard", [(0, 1), (1, 3)])
@pytest.mark.parametrize("skip", [[], [(3, 5)], [(2 * i, 2 * i + 1) for i in range(400)]], ids=["none", "one", "many"])
def test_a_batch_that_is_cut_by_skips_is_one_stream(node, skip, shard):
    services = Streams({"train": node})
    with MixClient([InProcessTransport(services, on_close=services.close)]) as client:
        with client.batches(128, 3, skip=skip, shard=shard, stop=800, prefetch=1) as batches:
            came = list(batches)
            # A whole prefetch of small batches arrives in one stream; each batch that is cut has its own.
            assert services.opened <= len(came) + 2
        stay = [p for p in range(800) if not any(first <= p < stop for first, stop in skip)]
        rows = client.get_batch_by_positions(stay, 3)["id"]
        index, count = shard
        for number, batch in enumerate(came):
            whole = rows[number * 128 : (number + 1) * 128]
            own = whole[index * len(whole) // count : (index + 1) * len(whole) // count]
            np.testing.assert_array_equal(batch["id"], own)


def test_workers_change_their_weights_at_one_position(client):
    made = [client.batches(4, 3, worker=(w, 2)) for w in range(2)]
    next(made[0])
    with pytest.raises(InvalidRequest, match="from_position is required"):
        made[0].schedule_weights((0.0, 0.0, 1.0))
    for batches in made:
        batches.schedule_weights((0.0, 0.0, 1.0), 8)
    one = client.batches(4, 3, start=4, schedule=[(8, (0.0, 0.0, 1.0))])
    for number in (1, 0, 1, 0):
        assert_batches_equal(next(made[number]), next(one))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_short_last_batch_may_be_left_out(client, workers):
    options = {"stop": 27, "shard": (1, 2), "drop_remainder": True}
    made = [client.batches(8, 3, worker=(w, workers), **options) for w in range(workers)]
    assert [len(next(made[number % workers])["id"]) for number in range(3)] == [4, 4, 4]
    assert all(next(batches, None) is None for batches in made)


def test_a_worker_takes_its_own_states_and_those_of_one_that_is_alone(client):
    own = client.batches(10, 3, worker=(1, 2))
    next(own)
    state = own.get_state()
    assert (state["position"], state["worker"], state["read"]) == (0, [1, 2], True)
    assert "worker=(1, 2)" in repr(own)
    for worker in ((0, 1), (0, 2), (1, 3)):
        with pytest.raises(InvalidRequest, match=r"that of worker \[1, 2\], and this is worker \[., .\]"):
            client.batches(10, 3, worker=worker).set_state(state)
    alone = client.batches(10, 3)
    next(alone)
    own.set_state(alone.get_state())
    assert_batches_equal(next(own), client.get_batch_at(20, 10, 3))


def test_a_mixture_that_has_changed_is_taken_where_that_is_asked_for(client):
    with local_client({"train": make_node(seed=9)}) as other:
        before = other.batches(10, 3)
        before.schedule_weights((0.0, 1.0, 0.0), 20)
        next(before)
        state = before.get_state()
    batches = client.batches(10, 5, strict=False)
    batches.set_state(state)
    assert_batches_equal(next(batches), client.get_batch_at(10, 10, 3))
    assert_batches_equal(next(batches), client.get_batch_at(20, 10, 3, schedule=[(20, (0.0, 1.0, 0.0))]))
    assert batches.get_state()["fingerprint"] == client.mixture().fingerprint
    with local_client({"train": make_node((0.5, 0.5))}) as smaller:
        refusing = smaller.batches(10, 5, strict=False)
        before = refusing.get_state()
        with pytest.raises(InvalidRequest, match="weights must be 2 numbers"):
            refusing.set_state(state)
        assert refusing.get_state() == before


def test_the_state_counts_what_was_yielded_and_resumes_anywhere(node, client):
    batches = client.batches(batch_size=16, key=5, start=100, prefetch=4)
    for _ in range(3):
        next(batches)
    state = batches.get_state()
    assert state["position"] == 148
    rest = [next(batches) for _ in range(5)]
    with local_client({"train": node}) as other:
        resumed = other.batches(batch_size=16, key=0, prefetch=1)
        resumed.set_state(state)
        for batch in rest:
            assert_batches_equal(next(resumed), batch)
    batches.set_state(state)
    for batch in rest:
        assert_batches_equal(next(batches), batch)


def test_resuming_with_another_batch_size_and_shard_goes_on_at_the_position(client):
    first = client.batches(batch_size=10, key=5)
    next(first)
    second = client.batches(batch_size=6, key=5, shard=(1, 2))
    second.set_state(first.get_state())
    assert_batches_equal(next(second), client.get_batch_at(13, 3, 5))
    assert second.get_state()["position"] == 16


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda state: [], InvalidRequest, "must be a dict of exactly version, mixture, fingerprint, key, position"),
        (lambda state: state | {"extra": 1}, InvalidRequest, "exactly"),
        (lambda state: {k: v for k, v in state.items() if k != "key"}, InvalidRequest, "exactly"),
        (lambda state: state | {"version": 2}, InvalidRequest, "version must be 1, got 2"),
        (lambda state: state | {"position": -1}, InvalidRequest, "position must be an integer in 0"),
        (lambda state: state | {"position": "7"}, InvalidRequest, "position"),
        (lambda state: state | {"position": 2**63}, InvalidRequest, "position must be an integer in 0"),
        (lambda state: state | {"key": [1]}, InvalidRequest, "key must be"),
        (lambda state: state | {"fingerprint": "00"}, FingerprintMismatch, "batches are different"),
    ],
)
def test_states_of_other_kinds_are_refused_and_change_nothing(client, change, error, said):
    batches = client.batches(batch_size=4, key=5)
    next(batches)
    state = batches.get_state()
    with pytest.raises(error, match=said):
        batches.set_state(change(state))
    assert batches.get_state() == state
    assert_batches_equal(next(batches), client.get_batch_at(4, 4, 5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0"),
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"stop": -1}, r"stop must be an integer in 0\.\.9223372036854775807, got -1"),
        ({"stop": 2**63}, "stop must be an integer in"),
        ({"prefetch": -1}, "prefetch must be an integer of at least 0, got -1"),
        ({"shard": (2, 2)}, r"shard must be \(index, count\).*got \(2, 2\)"),
        ({"shard": (0, 9)}, "count <= batch_size"),
        ({"shard": 1}, "shard must be"),
        ({"worker": (1, 1)}, r"worker must be \(index, count\) with 0 <= index < count, got \(1, 1\)"),
        ({"worker": "ab"}, "worker must be"),
        ({"stop": True}, "stop must be"),
        ({"shard": (False, True)}, "shard must be"),
        ({"skip": [(False, True)]}, "skip must"),
        ({"key": None}, "key must be"),
        ({"timeout_s": -1}, "timeout_s must be"),
    ],
)
def test_bad_arguments(client, arguments, said):
    with pytest.raises(InvalidRequest, match=said):
        client.batches(**{"batch_size": 8, "key": 0} | arguments)


def test_an_empty_range_ends_at_once_and_closed_iterators_say_so(client):
    assert list(client.batches(8, 0, start=5, stop=5)) == []
    batches = client.batches(8, 0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(InvalidRequest, match="closed"):
        next(batches)
    assert "position=8" in repr(batches)


class Flaky:
    """A servicer between transport and server that fails on demand."""

    def __init__(self, servicer: Services):
        self._servicer = servicer
        self.failing = threading.Event()
        self.rows = 0

    def handle(self, method: str, request: bytes) -> bytes:
        if self.failing.is_set():
            raise Unavailable("told to fail")
        return self._servicer.handle(method, request)

    def stream(self, method: str, request: bytes) -> Iterator[bytes]:
        for reply in self._servicer.stream(method, request):
            if self.failing.is_set():
                raise Unavailable("told to fail")
            self.rows += len(decode_batch(reply)[1]["id"])
            yield reply

    def copies_rows(self, method: str, request: bytes) -> bool:
        return self._servicer.copies_rows(method, request)


def test_an_error_leaves_the_position_and_the_next_call_goes_on(node):
    flaky = Flaky(Services({"train": node}))
    with MixClient([InProcessTransport(flaky)], patience_s=0.05) as client:
        batches = client.batches(batch_size=8, key=1, prefetch=3)
        next(batches)
        state = batches.get_state()
        drained = 1
        flaky.failing.set()
        with pytest.raises(Unavailable, match="told to fail"):
            while True:  # batches in flight may still arrive
                next(batches)
                drained += 1
        assert batches.get_state() == state | {"position": 8 * drained}
        flaky.failing.clear()
        assert_batches_equal(next(batches), client.get_batch_at(8 * drained, 8, 1))


def test_batches_are_asked_for_ahead_of_their_use(node):
    flaky = Flaky(Services({"train": node}))
    with MixClient([InProcessTransport(flaky)], patience_s=0.05) as client:
        batches = client.batches(batch_size=8, key=1, prefetch=3, stop=80)
        next(batches)
        deadline = time.monotonic() + 20
        while flaky.rows < 80:  # small batches arrive many at a time
            assert time.monotonic() < deadline
            time.sleep(0.005)
        flaky.failing.set()
        assert len(list(batches)) == 9


def test_nothing_is_asked_for_ahead_without_prefetch(node):
    flaky = Flaky(Services({"train": node}))
    with MixClient([InProcessTransport(flaky)]) as client:
        batches = client.batches(batch_size=8, key=1, prefetch=0)
        for count in range(1, 5):
            next(batches)
            assert flaky.rows == 8 * count


def test_closing_a_client_ends_iterators_that_wait_for_a_server():
    with local_client({"train": make_node()}) as client:
        described = client.mixture()
    lost = MixClient.connect("127.0.0.1:1", patience_s=600)
    lost.catalog._known[""] = described
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            next(lost.batches(8, 0))
        except Unavailable as error:
            ended.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    lost.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert ended
