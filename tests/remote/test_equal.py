"""A mixture with sources of other servers is the mixture with the sources themselves: fingerprint, batches, states."""

import gc
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from mixserve import (
    ArraySource,
    FieldSpec,
    HfSource,
    MixDataSourcesNode,
    RandomAccessSource,
    RemoteSource,
    TokenSource,
    local_client,
    serve,
)
from mixserve.sources.without import SourceWithout
from mixserve_client import MixClient
from mixserve_client.reading import records
from tests.arrow_files import batches_of, save_to_disk
from tests.conftest import arrays
from tests.remote.serving import NAMES, array_sources, digests, mixed, rows, serve_sources

WAYS: dict[str, dict[str, Any]] = {
    "shared memory": {},
    "bulk": {"shared_memory": False},
    "grpc": {"shared_memory": False, "bulk": False},
}


class Nested:
    """Records that are read by code of their own: nested, with a tuple."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return {"x": np.full(3, index, np.int16), "more": (np.float32(index), {"deep": np.arange(index, index + 2)})}


def kind_of_sources(kind: str, tmp_path) -> list[Any]:
    """Three sources with the same fields."""
    if kind == "arrays":
        return [ArraySource(arrays(20 + 10 * number, number)) for number in range(3)]
    if kind == "tokens":
        files = [tmp_path / f"{name}.bin" for name in NAMES]
        for number, file in enumerate(files):
            np.random.default_rng(number).integers(0, 1 << 16, 800 + 160 * number).astype(np.uint16).tofile(file)
        return [TokenSource(file, dtype="uint16", sequence_length=16, as_dtype="int32") for file in files]
    if kind == "nested":
        return [RandomAccessSource(Nested(), content_id=f"nested {name}") for name in NAMES]
    if kind == "sampled":
        return [RandomAccessSource([{"x": np.full(5, number + 7 * i)} for i in range(90)]) for number in range(3)]
    folders = [tmp_path / name for name in NAMES]
    for number, folder in enumerate(folders):
        lengths = np.random.default_rng(number).integers(0, 12, 60).tolist()
        table = pa.table({"ids": pa.array([list(range(length)) for length in lengths], pa.list_(pa.int64()))})
        save_to_disk(folder, [batches_of(table, 25)])
    fields = [FieldSpec("ids", "ids", length=8, long="cut", lengths="ids_length")]
    return [HfSource(folder, fields) for folder in folders]


@pytest.mark.parametrize("kind", ["arrays", "tokens", "ragged", "nested", "sampled"])
def test_a_mixture_of_remote_sources_is_that_of_the_sources(tmp_path, kind):
    sources = kind_of_sources(kind, tmp_path)
    here = mixed(sources)
    with serve_sources(sources[1:], NAMES[1:]) as data:
        there = mixed([sources[0], *[RemoteSource(data.address, source=name) for name in NAMES[1:]]])
        with serve({"train": there}, address="127.0.0.1:0") as server, MixClient.connect(server.address) as remote:
            local = local_client({"train": here})
            assert remote.mixture() == local.mixture()
            assert digests(remote) == digests(local)
            assert digests(remote, provenance=True, stop=64) == digests(local, provenance=True, stop=64)


@pytest.mark.parametrize("way", WAYS)
def test_records_come_on_every_way(way):
    sources = array_sources()
    with serve_sources(sources, NAMES, **WAYS[way]) as data:
        remote = RemoteSource(data.address, mixture="data", source="b")
        ids = np.random.default_rng(0).integers(0, len(sources[1]), 1000)
        np.testing.assert_array_equal(remote.take(ids)["x"], sources[1].take(ids)["x"])
        assert remote.take(np.empty(0, np.int64))["x"].shape == (0, 9)
        name = remote._reader._resources.here.caller.transport.name
        assert name.startswith({"shared memory": "shared memory", "bulk": "bulk", "grpc": "grpc"}[way])


def test_more_records_than_a_request_may_have_come_in_order():
    source = ArraySource({"x": np.arange(1000, dtype=np.int32)})
    with serve_sources([source], ["a"]) as data:
        ids = np.random.default_rng(0).integers(0, 1000, (1 << 16) + 10)
        np.testing.assert_array_equal(RemoteSource(data.address).take(ids)["x"], ids)


@pytest.fixture
def pair() -> Iterator[tuple[MixDataSourcesNode, MixDataSourcesNode]]:
    """The mixture with all sources here, and with two on another server."""
    sources = array_sources()
    with serve_sources(sources[1:], NAMES[1:]) as data:
        remote = [RemoteSource(data.address, source=name) for name in NAMES[1:]]
        yield mixed(sources), mixed([sources[0], *remote])


def test_states_can_be_exchanged(pair):
    local, remote = (local_client({"train": node}) for node in pair)
    before, after = local.batches(16, 3), remote.batches(16, 3)
    for _ in range(5):
        next(before)
    after.set_state(before.get_state())
    np.testing.assert_array_equal(next(after)["x"], next(before)["x"])
    before.set_state(after.get_state())
    np.testing.assert_array_equal(next(after)["x"], next(before)["x"])


def test_weights_may_change(pair):
    schedule = [(64, [0.1, 0.1, 0.8])]
    local, remote = (local_client({"train": node}) for node in pair)
    assert digests(remote, schedule=schedule) == digests(local, schedule=schedule)


def test_the_nodes_own_batches_and_records_are_equal(pair):
    local, remote = pair
    key = jax.random.key(1)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(remote.get_batch_at(3, 20, key)["x"], local.get_batch_at(3, 20, key)["x"])
    for mine, its in zip(iter(local), iter(remote), strict=True):
        np.testing.assert_array_equal(mine["x"], its["x"])


def test_a_pickled_source_reads_and_expects_the_same(pair):
    source = pair[1].sources[1]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.take(np.array([3]))["x"], source.take(np.array([3]))["x"])
    assert (len(copy), copy.content_digest()) == (len(source), source.content_digest())


def test_a_source_of_a_nested_mixture_has_a_path():
    sources = array_sources()
    inner = mixed(sources[:2], ("a", "b"))
    with serve({"outer": mixed([inner, sources[2]], ("inner", "c"))}, address="127.0.0.1:0") as data:
        remote = RemoteSource(data.address, source="inner/b")
        np.testing.assert_array_equal(remote.take(np.array([7, 2]))["x"], sources[1].take(np.array([7, 2]))["x"])
        assert remote.content_digest() == sources[1].content_digest()


def test_a_remote_source_may_be_remote_there():
    (source, *_) = array_sources()
    with serve_sources([source], ["a"]) as first:
        between = RemoteSource(first.address)
        with serve_sources([between], ["b"]) as second:
            last = RemoteSource(second.address, source="b")
            assert last.content_digest() == source.content_digest()
            np.testing.assert_array_equal(last.take(np.arange(9))["x"], source.take(np.arange(9))["x"])


def test_records_that_are_left_out_there_are_left_out_here():
    without = SourceWithout(array_sources()[0], np.array([0, 7]), hint="")
    with serve_sources([without], ["a"]) as data:
        remote = RemoteSource(data.address)
        assert (len(remote), remote.content_digest()) == (48, without.content_digest())
        np.testing.assert_array_equal(remote.take(np.arange(48))["x"], without.take(np.arange(48))["x"])


def test_a_sample_there_is_a_sample_here():
    sampled, whole = RandomAccessSource([{"x": np.full(2, i)} for i in range(99)]), ArraySource(rows(30, 0, 2))
    with serve_sources([sampled, whole], ["a", "b"]) as data:
        node = mixed([RemoteSource(data.address, source=name) for name in ("a", "b")], ("a", "b"))
    assert node.mixture.sampled_contents() == [True, False]
    assert node.mixture.unknown_contents() == [False, False]


class Waiting:
    """A source whose reads wait until both of two are read."""

    def __init__(self, barrier: threading.Barrier, seed: int):
        self._rows, self._barrier = ArraySource(rows(40, seed)), barrier
        self.element_spec, self.content_digest = self._rows.element_spec, self._rows.content_digest

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, record_ids: np.ndarray) -> Any:
        self._barrier.wait(20)
        return self._rows.take(record_ids)


def test_sources_are_asked_at_the_same_time():
    barrier = threading.Barrier(2)
    with (
        serve_sources([Waiting(barrier, 0)], ["a"]) as first,
        serve_sources([Waiting(barrier, 1)], ["b"]) as second,
    ):
        node = mixed([RemoteSource(first.address), RemoteSource(second.address)], ("a", "b"))
        with serve({"train": node}, address="127.0.0.1:0") as server, MixClient.connect(server.address) as client:
            assert client.get_batch_at(0, 64, 0)["x"].shape == (64, 9)


class Announcing:
    """A source that counts its reads."""

    def __init__(self) -> None:
        self._rows, self.reads = ArraySource(rows(40, 0, 1 << 16)), 0
        self.element_spec, self.content_digest = self._rows.element_spec, self._rows.content_digest

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, record_ids: np.ndarray) -> Any:
        self.reads += 1
        return self._rows.take(record_ids)


def test_the_next_reply_is_asked_for_before_this_one_is_sent():
    counting = Announcing()
    with serve_sources([counting], ["a"]) as data:
        node = mixed([RemoteSource(data.address)], ["a"])
        with serve({"train": node}, address="127.0.0.1:0", shared_memory=False) as server:
            client = MixClient.connect(server.address)
            before = counting.reads
            batches = client.batches(32, 0, prefetch=2)  # 16 MiB each: a reply of its own
            next(batches)
            asked = counting.reads - before
            batches.close()
            client.close()
    assert asked >= 2


def test_reads_that_nobody_waits_for_are_cancelled(pair):
    source = pair[1].sources[1]
    pending = [source.begin_take(np.arange(40)) for _ in range(50)]
    streams = [function.args[-1]._stream for function in pending]
    del pending
    assert all(stream._replies.is_cancelled for stream in streams)
    np.testing.assert_array_equal(source.take(np.array([1]))["x"], pair[0].sources[1].take(np.array([1]))["x"])


def test_dtypes_of_all_sizes_are_kept():
    source = ArraySource({"half": np.ones((9, 3), ml_dtypes.bfloat16), "flag": np.ones(9, bool)})
    with serve_sources([source], ["a"]) as data:
        taken = RemoteSource(data.address).take(np.array([1, 2]))
    assert {name: (array.dtype.name, array.shape) for name, array in taken.items()} == {
        "half": ("bfloat16", (2, 3)),
        "flag": ("bool", (2,)),
    }


def test_sources_of_one_server_share_their_connections():
    known = set(records._resources)
    with serve_sources(array_sources()[:2], ["a", "b"]) as data:
        sources = [RemoteSource(data.address, source=name) for name in ("a", "b")]
        sources.append(pickle.loads(pickle.dumps(sources[0])))
        other = RemoteSource(data.address, source="a", patience_s=3)
        assert len({id(source._reader._resources) for source in sources}) == 1
        assert other._reader._resources is not sources[0]._reader._resources
        assert len(set(records._resources) - known) == 2
        del sources, other
        gc.collect()
    assert set(records._resources) <= known


def test_what_a_device_holds_is_given_out_from_the_host():
    source = ArraySource({"x": np.arange(90, dtype=np.int32).reshape(30, 3)})
    node = mixed([source], ["a"], sampling="categorical", placement="device")
    with serve({"data": node}, address="127.0.0.1:0") as data:
        remote = RemoteSource(data.address)
        assert MixClient.connect(data.address).mixture().placement == "device"
        np.testing.assert_array_equal(remote.take(np.array([7, 2]))["x"], source.take(np.array([7, 2]))["x"])
        with pytest.raises(ValueError, match="device"):
            mixed([remote], ["a"], sampling="categorical", placement="device")


def test_taken_records_are_counted_as_asked_for_and_as_given():
    with serve_sources(array_sources()[:2], ["a", "b"]) as data, MixClient.connect(data.address) as client:
        RemoteSource(data.address, source="b").take(np.arange(50))
        found = client.server_stats()
        where = {"mixture": "data", "source": "b", "server": data.address}
        for name in ("mixserve_records_total", "mixserve_requested_records_total"):
            assert found[name].value(**where) == 50
            assert found[name].value(**where | {"source": "a"}) == 0
        assert found["mixserve_source_bytes_total"].value(**where) == 50 * 72
        calls = found["mixserve_calls_total"]
        assert calls.value(method="TakeRecords", mixture="data", server=data.address) == 1
