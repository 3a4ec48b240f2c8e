"""Single records: Grain's order, epochs, and states that resume at exactly the next record after any kill."""

import copy
import functools
import gc
import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import ArraySource, DataSourceModule, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource
from mixserve.node import record_stream
from tests.forked import Forked
from tests.processes import DEADLINE_S
from tests.profiles import examples


def rows(length: int, first: int) -> ArraySource:
    return ArraySource({"x": np.arange(first, first + length)})


def mix(*sources, weights=None, **options) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(sources), weights=weights or (1.0,) * len(sources), **options)
    return MixDataSourcesNode(config, list(sources))


def make_nested() -> MixDataSourcesNode:
    inner = mix(rows(400, 0), mix(rows(300, 1000), rows(300, 2000), weights=(1, 3)), weights=(2, 1))
    return mix(rows(500, 3000), inner, weights=(0.3, 0.7))


@functools.cache
def whole_epoch() -> tuple[int, ...]:
    return tuple(values(make_nested()))


def values(records, count: int | None = None) -> list[int]:
    found = []
    for record in records:
        found.append(int(record["x"]))
        if len(found) == count:
            break
    return found


def expected_order(lengths: list[int], weights: list[float]) -> list[int]:
    """Grain's own mix of plain ranges under normalised weights; source i counts from 1000 * i."""
    parts = [
        grain.MapDataset.range(1000 * i, 1000 * i + length).to_iter_dataset()
        for i, (length, weight) in enumerate(zip(lengths, weights, strict=True))
        if weight > 0
    ]
    return list(grain.IterDataset.mix(parts, [weight / sum(weights) for weight in weights if weight > 0]))


@settings(max_examples=examples(40), deadline=None)
@given(data=st.data(), count=st.integers(1, 6))
def test_an_epoch_is_grains_mix_without_the_sources_of_weight_0(data, count):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    weight = st.one_of(st.just(0.0), st.floats(0.01, 1.0))
    weights = data.draw(st.lists(weight, min_size=count, max_size=count).filter(any))
    node = mix(*(rows(length, 1000 * i) for i, length in enumerate(lengths)), weights=tuple(weights))
    expected = expected_order(lengths, weights)
    assert values(node) == expected
    assert len(expected) <= len(node)
    assert (int(node.epoch.get_value()), int(node.index.get_value())) == (1, len(expected))
    assert values(node) == expected
    assert int(node.epoch.get_value()) == 2


def test_an_iterator_goes_on_and_a_new_one_starts_over():
    node = mix(rows(10, 0), rows(10, 1000))
    whole = expected_order([10, 10], [1, 1])
    iterator = iter(node)
    assert values(iterator, 3) + values(iterator, 2) == whole[:5]
    assert values(iter(iterator), 2) == whole[5:7]
    assert int(next(node)["x"]) == whole[7]
    assert int(node.epoch.get_value()) == 1
    assert values(node, 2) == whole[:2]
    assert int(node.epoch.get_value()) == 2
    assert values(iterator, 1) == whole[2:3]  # iterators share the node's one position


def test_next_works_without_iter_and_ends():
    node = mix(rows(3, 0))
    assert [int(next(node)["x"]) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(node)
    assert (int(node.epoch.get_value()), int(node.index.get_value())) == (0, 3)


def test_index_can_be_set_by_hand():
    node = make_nested()
    whole = values(node)
    for index in (700, 3, 0, len(whole) - 1):
        node.index.set_value(index)
        assert values(iter_from_here(node), 1) == whole[index : index + 1]


def test_an_index_beyond_the_records_is_no_place():
    node = mix(rows(4, 0), rows(6, 1000))
    end = len(values(node))
    for index in (end + 1, 10**6):
        node.index.set_value(index)
        with pytest.raises(StopIteration):
            next(node)
        with pytest.raises(ValueError, match=f"index must be at most {end}, where the epoch ends, got {index}"):
            node.get_state()
    node.index.set_value(-1)
    for call in (lambda: next(node), node.get_state):
        with pytest.raises(ValueError, match="index must be at least 0, got -1"):
            call()


def test_a_node_out_of_a_pickle_goes_on_where_it_was():
    node = mix(make_nested(), Counter(), weights=(1, 0), cacheable=True)
    whole = values(node)
    values(node, 40)
    batch = mix(rows(9, 0), cacheable=True)
    expected = batch.get_batch_at(0, 5, 1)["x"]
    used = mix(RandomAccessSource([{"x": np.int32(i)} for i in range(9)], threads=3), InMemory())
    expected_of_used = used.get_batch_at(0, 40, 1)["x"]
    other_used = pickle.loads(pickle.dumps(used))
    assert other_used.get_batch_at(0, 40, 1)["x"].tolist() == expected_of_used.tolist()
    other, other_batch = pickle.loads(pickle.dumps((node, batch)))
    values(iter_from_here(node), 10)
    assert values(iter_from_here(other), 5) == whole[40:45]
    assert other_batch.get_batch_at(0, 5, 1)["x"].tolist() == expected.tolist()
    assert other_batch.mixture.fingerprint == batch.mixture.fingerprint


def iter_from_here(node: MixDataSourcesNode):
    while True:
        try:
            yield next(node)
        except StopIteration:
            return


def test_records_of_strings_and_objects_iterate_but_make_no_batches():
    texts = [{"text": f"text {i}", "tags": {"a": object()}} for i in range(5)]
    more = RandomAccessSource([{"text": "other", "tags": {"a": None}}] * 5)
    node = mix(RandomAccessSource(texts), more, rows(5, 0), weights=(1, 1, 0))
    found = [record["text"] for record in node]
    assert found == [text for i in range(5) for text in (f"text {i}", "other")]
    assert len(node) == 15
    assert not node.supports_indexed_access()
    assert mix(rows(5, 0)).supports_indexed_access()
    for call in (lambda: node.get_batch_at(0, 2, 1), node.element_spec):
        with pytest.raises(ValueError, match="'0' has no numeric element_spec, so its records can be iterated"):
            call()
    with pytest.raises(ValueError, match="can be iterated"):
        mix(node, rows(3, 0)).element_spec()
    with pytest.raises(ValueError, match="placement device is not possible: its records are not arrays of numbers"):
        mix(RandomAccessSource(texts), placement="device")


class Hooks:
    """A data set that records how it was read."""

    def __init__(self, **hooks):
        for name, hook in hooks.items():
            setattr(type(self), name, hook)

    def __len__(self):
        return 4

    def element_spec(self):
        raise ValueError("no numbers")

    def get_batch_at(self, start, size, key=None):
        assert size == 1
        return {"x": np.array([300 + start])}


@pytest.mark.parametrize(
    ("hooks", "first"),
    [
        ({}, 300),
        ({"__getitem__": lambda self, i: {"x": 200 + i}}, 200),
        ({"__getitem__": lambda self, i: None}, 300),
        ({"__getitem__": lambda self, i: {"x": 200 + i}, "_getitems": lambda self, ids: [{"x": 100 + ids[0]}]}, 100),
    ],
    ids=["get_batch_at", "__getitem__", "a base's __getitem__ without records", "_getitems"],
)
def test_a_child_is_read_by_its_best_way(hooks, first):
    source = type("Hooked", (Hooks,), {})(**hooks)
    assert values(mix(source)) == list(range(first, first + 4))


@pytest.mark.alone
def test_no_thread_is_started_for_a_source():
    node = mix(*(rows(3, i) for i in range(30)))
    before = threading.active_count()
    values(node, 20)
    assert threading.active_count() <= before  # threads of earlier tests may end meanwhile


def test_filtered_records_of_grain_are_passed_over():
    data = grain.MapDataset.range(10).map(lambda i: {"x": np.int64(i)}).filter(lambda record: record["x"] % 2 == 0)
    assert values(mix(RandomAccessSource(data))) == [0, 2, 4, 6, 8]


def test_endless_data_sets_mix():
    endless = [RandomAccessSource(grain.MapDataset.range(i, i + 3).map(lambda i: {"x": i}).repeat()) for i in (0, 10)]
    node = mix(*endless)
    assert len(node) == sys.maxsize
    assert values(node, 8) == [0, 10, 1, 11, 2, 12, 0, 10]
    assert node.get_batch_at(0, 20, 1)["x"].shape == (20,)


def test_weights_that_grain_cannot_count_are_refused():
    with pytest.raises(ValueError, match="every weight must be 0 or at least 1e-300 of their sum, got 1e-307"):
        next(mix(rows(3, 0), rows(3, 10), weights=(1, 1e-307)))


def test_nodes_are_no_cycles_of_references():
    node = mix(rows(3, 0), mix(rows(3, 10)))
    next(node)
    gone = [weakref.ref(node), weakref.ref(node.clone())]
    gc.collect()
    gc.disable()
    try:
        del node
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


class InMemory(nnx.Module):
    """A Flax NNX module of the reference's protocol."""

    def __init__(self):
        self.values = nnx.data(np.arange(100, 120))

    def __len__(self):
        return 20

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int64)}

    def get_batch_at(self, start, size, key=None):
        return {"x": jnp.take(jnp.asarray(self.values), start + jnp.arange(size, dtype=jnp.int32))}


class Flaky:
    """Its record 5 cannot be read at the first attempt."""

    def __init__(self):
        self.failures = 1

    def __len__(self):
        return 10

    def element_spec(self):
        raise ValueError("no numbers")

    def get_batch_at(self, start, size, key=None):
        if start == 5 and self.failures:
            self.failures -= 1
            raise OSError("the disk is away")
        return {"x": np.array([start])}


def test_no_record_is_lost_when_a_read_fails():
    node = mix(mix(Flaky()))
    iterator = iter(node)
    assert values(iterator, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="the disk is away"):
        next(iterator)
    assert values(iterator) == [5, 6, 7, 8, 9]


def test_no_record_is_lost_when_a_read_fails_on_the_way_to_an_index():
    for look in (lambda node: node, lambda node: node.clone(), lambda node: pickle.loads(pickle.dumps(node))):
        node = mix(Flaky())
        node.index.set_value(7)
        with pytest.raises(OSError, match="the disk is away"):
            next(node)
        assert values(iter_from_here(look(node))) == [7, 8, 9]
        assert json.loads(node.get_state()["iterator"]) in (
            {"parents": [{"next_index": 7}], "index": 7, "stop": False},
            {"parents": [{"next_index": 10}], "index": 10, "stop": False},
        )


def test_a_failed_read_after_a_restore_does_not_start_from_the_beginning():
    node = mix(Computed())
    values(node, 700)
    node.set_state(node.get_state())
    Computed.failures, Computed.reads = 1, 0
    with pytest.raises(OSError, match="away"):
        next(node)
    assert int(next(node)["x"]) == 700
    assert Computed.reads == 2


class Counter(DataSourceModule):
    """A child with a state of its own."""

    def __init__(self):
        super().__init__(MixDataSourcesConfig(num_sources=1, weights=(1,)), name="counter")
        self.reads = nnx.Variable(0)

    def __len__(self):
        return 4

    def element_spec(self):
        raise ValueError("no numbers")

    def get_batch_at(self, start, size, key=None):
        return {"x": np.array([start])}

    def reset(self):
        self.reads.set_value(0)


def test_reset_reaches_the_children():
    counter, inner = Counter(), mix(rows(5, 0))
    node = mix(inner, counter, rows(5, 10))
    values(inner, 2)
    values(node, 2)
    counter.reads.set_value(7)
    node.reset()
    places = [(int(n.epoch.get_value()), int(n.index.get_value())) for n in (node, inner)]
    assert places == [(0, 0), (0, 0)]
    assert counter.reads.get_value() == 0
    assert values(node, 2) == [0, 0]


@settings(max_examples=examples(15), deadline=None)
@given(taken=st.integers(0, 900), ahead=st.integers(0, 50))
def test_a_state_goes_on_at_exactly_the_next_record(taken, ahead):
    whole = list(whole_epoch())
    taken = min(taken, len(whole))
    node = make_nested()
    assert values(iter(node), taken) == whole[:taken] if taken else iter(node)
    state = json.loads(json.dumps(node.get_state()))
    values(iter_from_here(node), ahead)  # later reads do not matter
    for other in (node, make_nested()):
        other.set_state(state)
        assert other.get_state() == state
        assert values(iter_from_here(other), 100) == whole[taken : taken + 100]


def test_a_state_is_plain_and_holds_no_data():
    node = make_nested()
    state = node.get_state()
    assert isinstance(state["iterator"], str)  # set from construction on
    assert state["index"] == state["epoch"] == 0
    values(node, 100)
    assert len(json.dumps(node.get_state())) < 2000
    assert json.loads(node.get_state()["iterator"])["index"] == 100
    assert set(node.get_state()["sources"]) == {"1"}  # the nested mixture, by name


def test_the_states_of_children_are_part_of_it():
    def make():
        return mix(mix(rows(9, 0)), Counter(), weights=(1, 0))

    node = make()
    inner, counter = node.sources
    assert values(inner, 3) == [0, 1, 2]
    counter.reads.set_value(5)
    state = node.get_state()
    other = make()
    other.set_state(state)
    assert int(next(other.sources[0])["x"]) == 3
    assert other.sources[1].reads.get_value() == 5


BROKEN = {
    "no dict": (lambda s: [s], TypeError, "state must be a dict"),
    "missing": (lambda s: without(s, "epoch"), ValueError, "^epoch is missing"),
    "missing iterator": (lambda s: without(s, "iterator"), ValueError, "^iterator is missing"),
    "missing below": (lambda s: s | {"rngs": {"default": {"count": 0}}}, ValueError, r"^rngs\.default\.key is missing"),
    "missing child": (lambda s: s | {"sources": {}}, ValueError, r"^sources\.inner is missing"),
    "of a child": (
        lambda s: s | {"sources": {"inner": without(s["sources"]["inner"], "index")}},
        ValueError,
        r"^sources\.inner\.index is missing",
    ),
    "extra": (lambda s: s | {"more": 1}, ValueError, "^more does not belong here"),
    "extra child": (lambda s: s | {"sources": s["sources"] | {"b": {}}}, ValueError, r"^sources\.b does not belong"),
    "mistyped": (lambda s: s | {"index": "7"}, ValueError, "^index must be int"),
    "mistyped float": (lambda s: s | {"index": 7.0}, ValueError, "^index must be int"),
    "negative": (lambda s: s | {"index": -1}, ValueError, "index"),
    "mistyped iterator": (lambda s: s | {"iterator": 3}, ValueError, "^iterator must be of the type str"),
    "no dict below": (lambda s: s | {"rngs": 3}, ValueError, "^rngs must be a dict"),
    "misshaped": (
        lambda s: s | {"rngs": {"default": {"count": 0, "key": np.zeros(3, np.uint32)}}},
        ValueError,
        r"^rngs\.default\.key must be an array uint32\[2\], got an array uint32\[3\]",
    ),
    "of another dtype": (
        lambda s: s | {"rngs": {"default": {"count": 0, "key": np.zeros(2, np.int64)}}},
        ValueError,
        r"^rngs\.default\.key must be an array uint32\[2\], got an array int64\[2\]",
    ),
    "statistics": (lambda s: s | {"statistics": {"known": True, "reset": False}}, ValueError, "^statistics.values"),
    "statistics of another kind": (
        lambda s: s | {"statistics": {"known": True, "reset": False, "values": [1]}},
        ValueError,
        "^statistics.values must be a dict",
    ),
    "no JSON": (lambda s: s | {"iterator": "{"}, ValueError, "^iterator: .* is not a state of Grain's iterator"),
    "of other sources": (
        lambda s: s | {"iterator": mix(rows(4, 0)).get_state()["iterator"]},
        ValueError,
        "^iterator: .* is not a state of Grain's iterator",
    ),
    "beyond a source": (
        lambda s: s | {"iterator": s["iterator"].replace('"next_index": 4', '"next_index": 4000')},
        ValueError,
        "^iterator: .* is not a state of Grain's iterator",
    ),
    "of another order": (
        lambda s: s | {"order": mix(rows(9, 0), rows(8, 0)).get_state()["order"]},
        ValueError,
        "^order must be '[0-9a-f]{16}'.* mixture with other sources, lengths or weights",
    ),
    "beyond the end": (lambda s: s | {"index": 19}, ValueError, r"^index must be in 0\.\.18, got 19"),
    "negative epoch": (lambda s: s | {"epoch": -1}, ValueError, r"^epoch must be in 0\.\."),
    "negative count": (lambda s: s | {"_applied_count": -1}, ValueError, "^_applied_count must be at least 0, got -1"),
    "too large": (lambda s: s | {"_applied_count": 2**40}, ValueError, "^_applied_count must fit into int32"),
    "unknown statistics": (
        lambda s: s | {"statistics": {"known": False, "reset": False, "values": {"a": 1}}},
        ValueError,
        "^statistics.values must be empty if known is False",
    ),
    "odd statistics": (
        lambda s: s | {"statistics": {"known": True, "reset": False, "values": {"a": {1, 2}}}},
        ValueError,
        "statistics.values.a is set",
    ),
    "of another place": (
        lambda s: s | {"index": 8},
        ValueError,
        "^iterator: .* is not the state of Grain's iterator before the record 8",
    ),
}


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("case", BROKEN)
def test_a_state_that_does_not_fit_changes_nothing(case):
    break_, error, said = BROKEN[case]
    inner = MixDataSourcesNode(
        MixDataSourcesConfig(num_sources=1, weights=(1,)), [rows(9, 100)], name="inner", rngs=nnx.Rngs(1)
    )
    config = MixDataSourcesConfig(num_sources=2, weights=(1, 1))
    node = MixDataSourcesNode(config, [rows(9, 0), inner], rngs=nnx.Rngs(2))
    values(node, 7)
    values(inner, 2)
    before = copy.deepcopy(node.get_state())
    broken = break_(before)
    assert "next_index" in before["iterator"]
    with pytest.raises(error, match=said):
        node.set_state(broken)
    np.testing.assert_equal(node.get_state(), before)
    assert int(next(node)["x"]) == 103


def test_a_state_comes_back_from_checkpoints_that_turn_numbers_into_arrays():
    node = make_nested()
    whole = values(node)
    values(node, 50)
    state = node.get_state()
    arrays = state | {"index": np.asarray(state["index"]), "epoch": np.int64(state["epoch"])}
    other = make_nested()
    other.set_state(arrays)
    assert values(iter_from_here(other), 5) == whole[50:55]
    assert other.get_state()["epoch"] == 2


def test_a_restore_reads_no_record_on_its_way(monkeypatch):
    def node_at(index: int) -> tuple[MixDataSourcesNode, dict]:
        node = mix(Computed(), mix(Computed(), Computed()))
        mixed = {"parents": [{"next_index": index // 2}, {"parents": [{"next_index": index // 4}] * 2}]}
        mixed["parents"][1] |= {"index": index // 2, "stop": False}
        return node, node.get_state() | {
            "epoch": 1,
            "index": index,
            "iterator": json.dumps(mixed | {"index": index, "stop": False}),
        }

    for index in (8, 10**7, 10**12):
        node, state = node_at(index)
        Computed.reads = 0
        node.set_state(state)
        assert Computed.reads == 0
        assert int(next(node)["x"]) == index // 2
        assert Computed.reads == 1


class Computed:
    """2^40 records that are their own numbers; it counts its reads."""

    reads = failures = 0

    def __len__(self):
        return 2**40

    def element_spec(self):
        raise ValueError("no numbers")

    def get_batch_at(self, start, size, key=None):
        Computed.reads += 1
        if Computed.failures:
            Computed.failures -= 1
            raise OSError("the disk is away")
        return {"x": np.array([start])}


def test_no_place_is_far_from_a_kept_state():
    node = mix(Computed())
    step = record_stream._CHECKPOINT_EVERY
    values(node, 3 * step + 10)
    Computed.reads = 0
    node.index.set_value(3 * step + 5)
    assert int(next(node)["x"]) == 3 * step + 5
    assert Computed.reads == 6


def train(folder: Path) -> None:
    """Write down every record, and save a state now and then, like a trainer that may be killed at any moment."""
    saved, node = folder / "state.json", make_nested()
    if saved.exists():
        node.set_state(json.loads(saved.read_text()))
    else:
        iter(node)
    with (folder / "seen.txt").open("a") as seen:
        for record in iter_from_here(node):
            print(int(node.index.get_value()) - 1, int(record["x"]), file=seen, flush=True)
            if node.index.get_value() % 7 == 0:
                (folder / "new.json").write_text(json.dumps(node.get_state()))
                (folder / "new.json").replace(saved)
        print("end", file=seen, flush=True)


def test_a_killed_process_goes_on_at_exactly_the_next_record(tmp_path):
    whole = whole_epoch()
    for at in sorted(random.Random(0).sample(range(1, len(whole) - 20), 8)):
        process = Forked(train, tmp_path, log=tmp_path / f"{at}.log")
        wait_for_record(tmp_path / "seen.txt", at, process)
        process.kill(DEADLINE_S)
        assert process.poll() == -signal.SIGKILL
    code = "import sys, pathlib, tests.test_iteration as t; t.train(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[1], check=True)
    lines = (tmp_path / "seen.txt").read_text().split("\n")
    assert lines[-2] == "end"
    stream = {}
    for line in lines[:-2]:
        index, value = map(int, line.split())
        assert stream.setdefault(index, value) == value  # a record that was seen twice was the same
    assert [stream[index] for index in range(len(whole))] == list(whole)


def wait_for_record(seen: Path, index: int, process: Forked) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        lines = seen.read_text().splitlines()[:-1] if seen.exists() else []
        if any(line != "end" and int(line.split()[0]) >= index for line in lines):
            return
        assert process.poll() is None, "the process came to its end before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
