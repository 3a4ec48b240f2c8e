"""States of iterators: the batches before and after a resume are the plan, each position once, in order."""

import json
import logging
import math
import pickle
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve import local_client
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.skips import Skips
from mixserve_client.reading.state import ReaderState
from tests.conftest import make_node
from tests.processes import ONE_SIZE
from tests.profiles import examples

KEY, LIMIT = 3, 160
SCHEDULES = (None, [[16, [0.1, 0.1, 0.8]], [40, [0.8, 0.1, 0.1]]])


@pytest.fixture(scope="module")
def client():
    with local_client({"train": make_node(plan_sizes=ONE_SIZE)}) as made:
        yield made


class Plans:
    """The records at the positions below LIMIT, under each schedule."""

    def __init__(self, client: MixClient):
        self.of = [client.get_plan_at(0, LIMIT, KEY, schedule=schedule) for schedule in SCHEDULES]


@pytest.fixture(scope="module")
def plans(client) -> Plans:
    return Plans(client)


def record(batch: dict[str, np.ndarray], row: int) -> bytes:
    return bytes(batch["source_id"][row]) + bytes(batch["record_id"][row])


def staying(skips: list[tuple[int, int]], start: int, stop: int) -> list[int]:
    return [p for p in range(start, stop) if not any(first <= p < last for first, last in skips)]


skip_ranges = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)).map(lambda r: (r[0], r[0] + r[1])), max_size=3)


@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    same_size=st.booleans(),
    shards=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    workers=st.integers(1, 4),
    workers_after=st.integers(1, 4),
    start=st.integers(0, 20),
    stops=st.tuples(st.integers(0, 110), st.integers(0, 110)),
    same_stop=st.booleans(),
    skips=st.tuples(skip_ranges, st.one_of(st.just([]), skip_ranges)),
    schedule=st.integers(0, len(SCHEDULES) - 1),
    read=st.integers(0, 30),
    drop=st.booleans(),
)
def test_what_was_read_and_what_is_read_after_a_resume_are_the_plan(
    client,
    plans,
    sizes,
    same_size,
    shards,
    workers,
    workers_after,
    start,
    stops,
    same_stop,
    skips,
    schedule,
    read,
    drop,
):
    size, size_after = sizes[0], sizes[0] if same_size else sizes[1]
    shards = tuple(min(count, least) for count, least in zip(shards, (size, size_after), strict=True))
    stop, stop_after = stops[0], stops[0] if same_stop else stops[1]
    if workers > 1:
        workers_after = workers

    def made(size: int, shards: int, workers: int, **options: Any) -> list[list[BatchIterator]]:
        """One list per shard, with an iterator per worker."""
        options = {"start": start, "drop_remainder": drop, "provenance": True} | options
        return [
            [client.batches(size, KEY, shard=(i, shards), worker=(w, workers), **options) for w in range(workers)]
            for i in range(shards)
        ]

    def records(batches: list[list[BatchIterator]], first: int, most: int) -> list[list[bytes]]:
        """The records of the batches from number `first` on."""
        found = list[list[bytes]]()
        for number in range(first, first + most):
            came = [next(shard[number % len(shard)], None) for shard in batches]
            parts = [part for part in came if part is not None]
            assert len(parts) in (0, len(came))
            if not parts:
                break
            found.append([record(part, row) for part in parts for row in range(len(part["source_id"]))])
        return found

    def expected(skips: list[tuple[int, int]], start: int, stop: int, size: int) -> list[list[int]]:
        stay = staying(skips, start, stop)
        cut = [stay[at : at + size] for at in range(0, len(stay), size)]
        return [batch for batch in cut if len(batch) == size] if drop else cut

    def of_plan(batches: list[list[int]]) -> list[list[bytes]]:
        return [[record(plans.of[schedule], p) for p in batch] for batch in batches]

    before = made(size, shards[0], workers, stop=stop, skip=skips[0], schedule=SCHEDULES[schedule])
    plan = expected(skips[0], start, stop, size)
    came = records(before, 0, read)
    assert came == of_plan(plan[:read])
    read = len(came)
    stands = plan[read - 1][-1] + 1 if read else start

    # Another number of shards: the state of any shard is enough.
    after = made(size_after, shards[1], workers_after, stop=stop_after, skip=skips[1])
    states = [json.loads(json.dumps(worker.get_state())) for worker in before[0]]
    in_group = staying(skips[0], plan[read - 1 - (read - 1) % workers][0], LIMIT) if read else []
    in_group = [p for p in in_group if p < stands]
    loses = (
        size_after != size
        or any(first <= p < last for first, last in skips[1] for p in in_group)
        or (read > 0 and len(plan[read - 1]) < size and staying(skips[0] + skips[1], stands, stop_after) != [])
    )
    try:
        for shard in after:
            for place, worker in enumerate(shard):
                worker.set_state(states[place if workers > 1 else 0])
    except InvalidRequest as error:
        assert workers > 1
        assert loses or _touches_earlier_parts(skips, plan, read, workers), error
        assert "start=" in str(error)
        return
    assert workers == 1 or not loses
    rest = expected(skips[0] + skips[1], stands, stop_after, size_after)
    left = len(after[0][0])
    assert records(after, read if workers > 1 else 0, 200) == of_plan(rest)
    first = read % workers if workers > 1 else 0
    assert left == math.ceil(max(0, len(rest) - (-first) % workers_after) / workers_after)


def _touches_earlier_parts(
    skips: tuple[list[tuple[int, int]], list[tuple[int, int]]], plan: list[list[int]], read: int, workers: int
) -> bool:
    """Whether new skips touch a range that this worker read last, although others have read further."""
    last = {place % workers: batch for place, batch in enumerate(plan[:read])}
    group = {w: plan[max(p for p in range(read) if p % workers == w) - w][0] for w in last}
    return any(first <= p < stop for first, stop in skips[1] for w in last for p in range(group[w], last[w][-1] + 1))


def test_the_state_of_a_worker_has_its_batch_size(client):
    worker = client.batches(8, KEY, worker=(0, 2))
    next(worker)
    state = worker.get_state()
    assert state["batch_size"] == 8
    for size in (4, 16):
        with pytest.raises(InvalidRequest, match=rf"needs batch_size 8, got {size}: .*start="):
            client.batches(size, KEY, worker=(0, 2)).set_state(state)
    old = {name: value for name, value in state.items() if name != "batch_size"}
    client.batches(16, KEY, worker=(0, 2)).set_state(old)  # a state from before this entry existed


def likenesses(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The forms in which checkpointers return a state."""

    def scalars(value: Any, kind: Any) -> Any:
        if isinstance(value, list):
            return [scalars(one, kind) for one in value]
        return kind(value) if type(value) in (int, bool, float) else value

    def arrays(value: Any) -> Any:
        return np.array(value) if isinstance(value, list | int | bool) else value

    return {
        "NumPy's scalars": {
            name: scalars(value, np.asarray(0).dtype.type) for name, value in state.items() if name != "schedule"
        }
        | {"schedule": scalars(state["schedule"], np.float64)},
        "uint32": {name: scalars(value, np.uint32) for name, value in state.items() if name != "schedule"}
        | {"schedule": state["schedule"]},
        "arrays of no dimension": {name: scalars(value, np.array) for name, value in state.items()},
        "arrays": {name: arrays(value) if name != "schedule" else value for name, value in state.items()},
        "JAX's arrays": {
            name: jnp.asarray(value) if name in ("version", "position", "key", "worker", "batch_size") else value
            for name, value in state.items()
        },
        "tuples": {
            name: tuple(map(tuple, value)) if name in ("skip", "schedule") else value for name, value in state.items()
        },
        "strings": {name: np.str_(value) if isinstance(value, str) else value for name, value in state.items()},
    }


def test_states_that_checkpointers_gave_back_are_taken(client):
    def made() -> BatchIterator:
        return client.batches(4, KEY, worker=(1, 2), skip=[(2, 3), (9, 11)])

    first = made()
    first.schedule_weights((0.0, 0.5, 0.5), 16)
    next(first)
    state = first.get_state()
    expected = next(first)
    for what, likeness in likenesses(state).items():
        if what == "NumPy's scalars":
            likeness["schedule"] = [[np.int64(start), weights] for start, weights in likeness["schedule"]]
        resumed = made()
        resumed.set_state(likeness)
        assert resumed.get_state() == state, what
        assert type(resumed.get_state()["key"][0]) is int
        np.testing.assert_array_equal(next(resumed)["id"], expected["id"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": True}, "version must be an integer, got True"),
        ({"position": 1.5}, "position must be an integer"),
        ({"position": np.float32(1)}, "position must be an integer"),
        ({"key": [True, 1]}, "key must be"),
        ({"key": [0.0, 1]}, "key must be"),
        ({"key": np.zeros((2, 2), np.uint32)}, "key must be"),
        ({"mixture": 7}, "mixture must be a string"),
        ({"fingerprint": None}, "fingerprint must be a string"),
        ({"worker": 3}, "worker must be a pair"),
        ({"worker": ["a", "b"]}, "worker must be an integer"),
        ({"worker": [0, 2], "batch_size": 0}, "batch_size must be an integer"),
        ({"worker": [0, 2], "short": "x"}, "short must be an integer"),
    ],
)
def test_what_is_no_state(client, change, said):
    batches = client.batches(4, KEY, worker=(0, 2))
    state = batches.get_state()
    with pytest.raises(InvalidRequest, match=said):
        batches.set_state(state | change)
    assert batches.get_state() == state


def test_a_state_is_the_same_after_parsing(client):
    batches = client.batches(4, KEY, skip=[(2, 3)], worker=(2, 3), stop=10)
    assert list(batches)
    state = batches.get_state()
    assert ReaderState.of(state).plain() == state
    assert state["short"] == 10


def test_how_many_batches_are_left(client):
    assert len(client.batches(8, KEY, stop=27)) == 4
    assert len(client.batches(8, KEY, stop=27, drop_remainder=True)) == 3
    assert len(client.batches(8, KEY, start=5, stop=5)) == 0
    assert [len(client.batches(8, KEY, stop=27, worker=(w, 3))) for w in range(3)] == [2, 1, 1]
    assert len(client.batches(8, KEY, stop=27, skip=[(0, 12)])) == 2
    batches = client.batches(8, KEY, stop=27)
    for left in (3, 2, 1, 0):
        next(batches)
        assert len(batches) == left
    endless = client.batches(8, KEY)
    with pytest.raises(TypeError, match="no end"):
        len(endless)
    assert endless
    assert batches


def test_pickled_skips_of_older_clients_are_taken():
    skips = Skips.of([(1, 3)])
    old = pickle.loads(pickle.dumps(skips))
    old.__setstate__({"ranges": ((1, 3),)})
    assert old == skips
    assert (old | Skips.of([(7, 9)])).plain == [[1, 3], [7, 9]]


def test_a_position_that_workers_share_is_kept_for_a_client_that_is_pickled(client: MixClient):
    batches = client.batches(8, KEY, worker=(0, 2), stop=20)
    assert [len(batch["id"]) for batch in batches] == [8, 4]
    assert batches.get_state()["short"] == 20
    with pytest.raises(InvalidRequest, match="needs stop 20 at most, since the last batch was short"):
        client.batches(8, KEY, worker=(0, 2), stop=64).set_state(batches.get_state())


def test_a_schedule_that_a_state_overrides_is_named(client: MixClient, caplog):
    caplog.set_level(logging.WARNING, "mixserve_client")
    first, other = [(16, (0.1, 0.1, 0.8))], [(16, (0.8, 0.1, 0.1))]
    plain = client.batches(8, KEY)
    scheduled = client.batches(8, KEY, schedule=first)
    scheduled.schedule_weights((0.8, 0.1, 0.1), from_position=40)
    for state, schedule in ((plain, None), (scheduled, None), (scheduled, first)):
        client.batches(8, KEY, schedule=schedule).set_state(state.get_state())
    assert caplog.messages == []
    for state, said in ((plain, "here none"), (scheduled, "here [[16, [0.1, 0.1, 0.8]], [40, ")):
        resumed = client.batches(8, KEY, schedule=other)
        resumed.set_state(state.get_state())
        assert resumed.get_state() == state.get_state()
        assert f"schedule= of this iterator is not used: a state brings its own schedule, {said}" in caplog.messages[-1]
        assert "pass start=step * batch_size and schedule=[...]" in caplog.messages[-1]
    assert len(caplog.messages) == 2
