"""Work that several readers ask for is done once, and memory is used again when nobody has it any more."""

import gc
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.mixture import plan
from mixserve.servicer.kept_replies import KeptReplies
from mixserve.servicer.reused_bytes import ReusedBytes
from mixserve_client import MixClient, ServerFault

DEADLINE_S = 60
ROW = 4096
RECORDS = 50


class Counting:
    """A source that counts the rows that are read, waits where it is told to, and fails as often as it is told to."""

    def __init__(self):
        self.rows, self.failures = 0, 0
        self.reading, self.go = threading.Event(), threading.Event()
        self.go.set()
        self._lock = threading.Lock()

    def __len__(self):
        return RECORDS

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((ROW,), np.int32)}

    def take(self, record_ids):
        self.reading.set()
        assert self.go.wait(DEADLINE_S)
        with self._lock:
            self.rows += len(record_ids)
            if self.failures:
                self.failures -= 1
                raise ZeroDivisionError("told to fail")
        return {"x": np.repeat(record_ids.astype(np.int32)[:, None], ROW, axis=1)}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    source = Counting()
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])
    folder = str(tmp_path_factory.mktemp("shm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "RUNGS", (4096,))  # one program to compile
        with serve({"x": node}, shared_memory=folder) as server:
            yield source, server, folder


@pytest.fixture
def source(served) -> Counting:
    source, *_ = served
    source.rows, source.failures = 0, 0
    source.go.set()
    source.reading.clear()
    return source


def in_threads(tasks: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("shared_memory", [False, True], ids=["grpc", "shared memory"])
def test_clients_that_iterate_together_cost_about_one(served, source, shared_memory):
    _, server, folder = served
    size, count, clients, key = 8, 150, 6, 10 + shared_memory  # nothing is kept of the other route
    together, digests = threading.Barrier(clients), list[list[bytes]]()
    route = folder if shared_memory else False

    def read() -> None:
        with MixClient.connect(server.address, shared_memory=route) as client:
            client.mixture()
            together.wait(DEADLINE_S)
            digests.append([batch["x"][:, 0].tobytes() for batch in client.batches(size, key, stop=size * count)])

    joined(in_threads([read] * clients))
    assert len(digests) == clients
    assert all(digest == digests[0] for digest in digests)
    assert len(digests[0]) == count
    assert size * count <= source.rows <= 1.5 * size * count


def test_what_is_asked_for_at_the_very_same_time_is_read_once(served, source):
    _, server, _ = served
    source.go.clear()
    found: list[bytes] = []

    def read() -> None:
        with MixClient.connect(server.address, shared_memory=False) as client:
            found.append(client.get_batch_at(100, 7, 3)["x"].tobytes())

    threads = in_threads([read] * 6)
    assert source.reading.wait(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while server._calls._running < 6:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    source.go.set()
    joined(threads)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert source.rows == 7


def test_other_keys_and_positions_are_not_mixed_up(served, source):
    _, server, _ = served
    source.go.clear()
    asked = [(start, size, key) for start in (0, 8) for size in (8, 16) for key in (3, 4, [3, 4])]
    found: dict[str, list[np.ndarray]] = {str(one): [] for one in asked}

    def read(one: Any) -> None:
        with MixClient.connect(server.address, shared_memory=False) as client:
            found[str(one)].append(client.get_batch_at(*one)["x"][:, 0].copy())

    threads = in_threads([lambda one=one: read(one) for one in asked])
    assert source.reading.wait(DEADLINE_S)
    source.go.set()
    joined(threads)
    with MixClient.connect(server.address, shared_memory=False) as client:
        for start, size, key in asked:
            rows = client.get_batch_at(0, 64, key)["x"][:, 0]  # another reply altogether
            np.testing.assert_array_equal(found[str((start, size, key))], [rows[start : start + size]])


def test_an_error_is_nobody_elses(served, source):
    _, server, _ = served
    source.failures = 1
    with MixClient.connect(server.address, shared_memory=False) as client:
        with pytest.raises(ServerFault):
            client.get_batch_at(200, 5, 3)
        assert client.get_batch_at(200, 5, 3)["x"].shape == (5, ROW)


def test_an_error_while_others_wait_fails_one_of_them(served, source):
    _, server, _ = served
    source.failures = 1
    source.go.clear()
    ended: list[str] = []

    def read() -> None:
        with MixClient.connect(server.address, shared_memory=False) as client:
            try:
                ended.append(str(client.get_batch_at(300, 5, 3)["x"].shape))
            except ServerFault:
                ended.append("fault")

    threads = in_threads([read] * 4)
    assert source.reading.wait(DEADLINE_S)
    source.go.set()
    joined(threads)
    assert sorted(ended) == [str((5, ROW))] * 3 + ["fault"]


class Maker:
    """Makes replies, and counts how often."""

    def __init__(self, size: int = 100):
        self.size, self.begun, self.made = size, 0, 0

    def begin(self) -> Callable[[], bytes]:
        self.begun += 1
        return self._finish

    def _finish(self) -> bytes:
        self.made += 1
        return bytes(self.size)


def test_a_reply_that_several_ask_for_at_once_is_made_once():
    kept, maker = KeptReplies(), Maker()
    replies = [kept.get("reader", 1, 100, maker.begin) for _ in range(5)]
    found = {id(reply.result()) for reply in replies}
    assert (maker.begun, maker.made, len(found)) == (1, 1, 1)


def test_replies_that_nobody_shares_are_not_kept():
    kept, maker = KeptReplies(), Maker(1 << 20)
    reply = kept.get("reader", 1, 1 << 20, maker.begin).result()
    assert sys.getrefcount(reply) == 2


def test_what_is_begun_is_tried_again_after_an_error():
    kept, maker = KeptReplies(), Maker()

    def fails() -> Callable[[], bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kept.get("reader", 1, 100, fails)
    assert kept.get("reader", 1, 100, maker.begin).result() == bytes(100)


def test_memory_of_kept_replies_is_bounded():
    kept, size, replies = KeptReplies(), 1 << 20, list[bytes]()
    for rows in range(200):
        made = [kept.get("reader", rows, size, Maker(size).begin) for _ in range(2)]
        replies.append(made[0].result())
        assert made[1].result() is replies[-1]
    del made
    held = sum(sys.getrefcount(replies[i]) > 2 for i in range(len(replies)))
    assert 0 < held <= 64


def test_what_is_kept_goes_after_a_while():
    kept, maker = KeptReplies(), Maker(1 << 20)
    reply = [kept.get("reader", 1, 1 << 20, maker.begin) for _ in range(2)][1].result()
    assert sys.getrefcount(reply) > 2
    deadline = time.monotonic() + DEADLINE_S
    while sys.getrefcount(reply) > 2:
        assert time.monotonic() < deadline
        kept.get("another", time.monotonic(), 1, Maker(1).begin)
        time.sleep(0.05)


def test_a_reader_that_has_nobody_to_share_with_any_more_is_forgotten():
    kept = KeptReplies()

    def share(reader: str) -> None:
        for _ in range(2):
            kept.get(reader, time.monotonic_ns() // 10**9, 1, Maker(1).begin)

    share("goes on")
    share("stopped")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline - 3:  # two seconds: more than what is kept is kept for
        share("goes on")
        time.sleep(0.02)
    assert not kept.get("stopped", "new rows", 1, Maker(1).begin).is_shared


HOLDERS: list[Callable[[bytes], Any]] = [
    lambda reply: reply,
    memoryview,
    lambda reply: memoryview(reply)[10:][:50],
    lambda reply: np.frombuffer(reply, np.uint8)[7:80],
    lambda reply: np.frombuffer(memoryview(reply)[8:], np.int16),
    lambda reply: {"x": [reply]},
    lambda reply: iter(reply),
]


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_somebody_has_are_never_handed_out_again(seed):
    rng, reused = random.Random(seed), ReusedBytes()
    held, seen = list[tuple[int, int, int, Any]](), set[int]()

    def check(how: int, size: int, fill: int, kept: Any) -> None:
        whole = bytes([fill]) * size
        if how == len(HOLDERS) - 1:
            assert bytes(kept) == whole
        elif how == len(HOLDERS) - 2:
            assert kept["x"] == [whole]
        else:
            assert bytes(kept) == bytes(HOLDERS[how](whole))

    for number in range(1500):
        size, fill, how = rng.choice([1000, 1002, 70_000]), number % 251, rng.randrange(len(HOLDERS))
        reply, memory = reused.take(size)
        assert len(reply) == len(memory) == size
        memory[:] = fill
        seen.add(id(reply))
        held.append((how, size, fill, HOLDERS[how](reply)))
        del reply, memory
        while len(held) > rng.randrange(40):
            check(*held.pop(rng.randrange(len(held))))
    for kept in held:
        check(*kept)
    assert len(seen) < 500  # they were used again


def test_bytes_are_used_again_when_they_are_free():
    reused = ReusedBytes()
    reply, memory = reused.take(5000)
    first = id(reply)
    assert id(reused.take(5000)[0]) != first
    view = memoryview(reply)
    del reply
    assert all(id(reused.take(5000)[0]) != first for _ in range(5))
    del view
    assert all(id(reused.take(5000)[0]) != first for _ in range(5))  # somebody may write to them still
    del memory
    gc.collect()
    assert first in {id(reused.take(5000)[0]) for _ in range(5)}


def test_threads_never_get_the_same_bytes_at_once():
    reused, together, failed = ReusedBytes(), threading.Barrier(6), list[int]()

    def work(fill: int) -> None:
        rng, mine = random.Random(fill), list[bytes]()
        together.wait(DEADLINE_S)
        for _ in range(500):
            reply, memory = reused.take(rng.choice([300, 5000]))
            memory[:] = fill
            mine.append(reply)
            del reply, memory
            failed.extend(fill for reply in mine if reply != bytes([fill]) * len(reply))
            while len(mine) > rng.randrange(6):
                mine.pop(rng.randrange(len(mine)))

    joined(in_threads([lambda fill=fill: work(fill) for fill in range(6)]))
    assert failed == []


def test_memory_that_waits_to_be_used_again_is_bounded():
    reused, replies = ReusedBytes(), list[bytes]()
    for number in range(100):
        replies.append(reused.take((1 << 20) + number)[0])
    assert sum(sys.getrefcount(replies[i]) > 2 for i in range(100)) <= 64
