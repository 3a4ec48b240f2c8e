"""Errors that calls end with are gone when nobody holds them: a call counts as open as long as its frames live."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixserve import MixServer, serve
from mixserve.error_boundary import error_boundary
from mixserve.servicer.reply_cache import ReplyCache
from mixserve.servicer.thread_share import ThreadShare
from mixserve.serving.unread import UnreadReplies
from mixserve_client import MixClient, Unavailable
from tests.logs.faulty import FaultySource
from tests.logs.test_request_ids import DEADLINE_S, keys, node_of


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    return tmp_path / "fails"


@pytest.fixture
def server(switch: Path) -> Iterator[MixServer]:
    with serve({"train": node_of(FaultySource(switch))}) as running:
        yield running


@pytest.fixture(autouse=True)
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def let_go(task: Callable[[], object]) -> bool:
    """Whether what `task` raises is gone when it was caught."""
    try:
        task()
    except Exception as error:
        found = weakref.ref(error)
    else:
        raise AssertionError("nothing was raised")
    return found() is None


def test_of_a_mixture_with_too_many_calls() -> None:
    share = ThreadShare(2, 1, ["a"], {}, room=0)
    with share.work("a"):
        assert let_go(lambda: share.enter("a"))


def test_of_replies_without_room() -> None:
    unread = UnreadReplies(100, 100)
    account = unread.open("peer", lambda: None)
    account.reserve(100)
    assert let_go(lambda: unread.open("peer", lambda: None).reserve(100))


def test_of_faults() -> None:
    def fail() -> None:
        with error_boundary("test_of_faults"):
            raise ValueError

    assert let_go(fail)


def test_of_replies_in_the_cache() -> None:
    class Failing:
        def result(self) -> bytes:
            raise Unavailable("no")

    cache = ReplyCache()

    def read() -> object:
        return cache.get("reader", "rows", 8, Failing).result()  # pyright: ignore[reportArgumentType]

    assert let_go(read)
    assert let_go(read)


@pytest.mark.parametrize("route", [{}, {"shared_memory": False}, {"shared_memory": False, "bulk": False}])
def test_of_clients(server: MixServer, switch: Path, route: dict[str, bool]) -> None:
    with MixClient.connect(server.address, **route) as client:
        client.get_batch_at(0, 1, next(keys))
        assert let_go(lambda: client.get_batch_at(0, 1, 0, mixture="other", timeout_s=DEADLINE_S))
        switch.touch()
        assert let_go(lambda: client.get_batch_at(0, 1, next(keys), timeout_s=DEADLINE_S))
        assert let_go(lambda: next(client.batches(4, next(keys), prefetch=0)))
