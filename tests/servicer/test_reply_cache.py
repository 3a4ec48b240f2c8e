"""Work that several readers request is done once, and memory is reused only after its last user."""

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.servicer.reply_cache import ReplyCache
from mixserve_client import MixClient, ServerFault
from tests.processes import ONE_SIZE

DEADLINE_S = 60
ROW = 4096
RECORDS = 50


class Counting:
    """A source that counts the rows read, blocks on demand, and fails a given number of times."""

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
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])
    folder = str(tmp_path_factory.mktemp("shm"))
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


@pytest.mark.alone
@pytest.mark.parametrize("shared_memory", [False, True], ids=["grpc", "shared memory"])
def test_clients_that_iterate_together_cost_about_one(served, source, shared_memory):
    _, server, folder = served
    size, count, clients = 8, 150, 6
    route = folder if shared_memory else False

    def read(key: int, together: threading.Barrier, digests: list[list[bytes]]) -> None:
        with MixClient.connect(server.address, shared_memory=route) as client:
            client.mixture()
            together.wait(DEADLINE_S)
            digests.append([batch["x"][:, 0].tobytes() for batch in client.batches(size, key, stop=size * count)])

    costs = list[int]()
    # A client that the system's scheduler stops for a second reads the rest alone: that may happen, but not each time.
    # Each time with another key: nothing is cached from the other route.
    for key in (10 + shared_memory, 20 + shared_memory, 30 + shared_memory):
        source.rows, digests = 0, list[list[bytes]]()
        together = threading.Barrier(clients)
        joined(in_threads([partial(read, key, together, digests)] * clients))
        assert len(digests) == clients
        assert all(digest == digests[0] for digest in digests)
        assert len(digests[0]) == count
        costs.append(source.rows)
        if costs[-1] <= 1.5 * size * count:
            break
    assert size * count <= min(costs) <= 1.5 * size * count, costs


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
    while server._answers.calls._running < 6:
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
            rows = client.get_batch_at(0, 64, key)["x"][:, 0]  # a different reply
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


def others(replies: list[bytes], place: int) -> int:
    """The number of references to a reply, except the list's."""
    unshared = [bytes(1000)]
    # Indexed inside the calls: a variable would be one more reference on some versions and none on others.
    return sys.getrefcount(replies[place]) - sys.getrefcount(unshared[0])


class Maker:
    """Makes replies, and counts them."""

    leaf_ids = np.zeros(1, np.int32)

    def __init__(self, size: int = 100):
        self.size, self.begun, self.made = size, 0, 0

    def begin(self) -> "Maker":
        self.begun += 1
        return self

    def result(self) -> bytes:
        self.made += 1
        return bytes(self.size)

    def take_times(self) -> tuple[float, float, float]:
        return 1.0, 2.0, float(self.made)


def test_a_reply_that_several_ask_for_at_once_is_made_once():
    cache, maker = ReplyCache(), Maker()
    replies = [cache.get("reader", 1, 100, maker.begin) for _ in range(5)]
    found = {id(reply.result()) for reply in replies}
    assert (maker.begun, maker.made, len(found)) == (1, 1, 1)


def test_each_time_that_a_reply_was_made_is_noted_once_by_whichever_reader():
    cache, maker = ReplyCache(), Maker()
    alone = cache.get("reader", 1, 100, maker.begin)
    for _ in range(2):  # it is not kept, and made for each
        alone.result()
    shared = [cache.get("reader", 2, 100, maker.begin) for _ in range(3)]
    for reply in shared:
        reply.result()
    taken = [reply.take_times() for reply in (alone, alone, alone, *shared)]
    assert sorted(times[2] for times in taken if times is not None) == [1, 2, 3]


def test_replies_that_nobody_shares_are_not_cached():
    cache, maker = ReplyCache(), Maker(1 << 20)
    replies = [cache.get("reader", 1, 1 << 20, maker.begin).result()]
    assert others(replies, 0) == 0


def test_what_is_begun_is_tried_again_after_an_error():
    cache, maker = ReplyCache(), Maker()

    def fails() -> Maker:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get("reader", 1, 100, fails)
    assert cache.get("reader", 1, 100, maker.begin).result() == bytes(100)


def test_memory_of_reply_cache_is_bounded():
    cache, size, replies = ReplyCache(), 1 << 20, list[bytes]()
    for rows in range(200):
        made = [cache.get("reader", rows, size, Maker(size).begin) for _ in range(2)]
        replies.append(made[0].result())
        assert made[1].result() is replies[-1]
    del made
    held = sum(others(replies, i) > 0 for i in range(len(replies)))
    assert 0 < held <= 64


class Clock:
    """A clock that the test advances."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_cached_goes_after_a_second():
    clock, maker = Clock(), Maker(1 << 20)
    cache = ReplyCache(clock)
    replies = [[cache.get("reader", 1, 1 << 20, maker.begin) for _ in range(2)][1].result()]
    clock.now += 0.99
    cache.get("another", 1, 1, Maker(1).begin)
    assert others(replies, 0) > 0
    clock.now += 0.02
    cache.get("another", 2, 1, Maker(1).begin)
    assert others(replies, 0) == 0


def test_a_reader_that_has_nobody_to_share_with_any_more_is_forgotten():
    clock = Clock()
    cache = ReplyCache(clock)

    def share(reader: str) -> None:
        for _ in range(2):
            cache.get(reader, int(clock.now), 1, Maker(1).begin)

    share("goes on")
    share("stopped")
    for _ in range(50):  # two seconds: longer than a reply is kept
        clock.now += 0.04
        share("goes on")
    assert not cache.get("stopped", "new rows", 1, Maker(1).begin).is_shared
    assert cache.get("goes on", "new rows", 1, Maker(1).begin).is_shared
