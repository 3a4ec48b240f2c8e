"""Any exception of a source ends the call with an error, on every route, and the server continues."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, RandomAccessSource, local_client, serve
from mixserve.servicer.reply_cache import ReplyCache
from mixserve_client import MixClient, ServerFault, Unavailable
from tests.processes import ONE_SIZE

ENOUGH_S = 20
ROW = 4096
keys = count()  # replies are cached for a second under what they answer, so every call needs a new key


class Own(BaseException):
    """A user's own exception."""


class Source:
    """Raises the given exceptions, once each."""

    content_id = "is not read for the fingerprint"

    def __init__(self):
        self.raises: list[BaseException] = []

    def __len__(self):
        return 100

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((ROW,), np.int32)}

    def take(self, record_ids):
        if self.raises:
            raise self.raises.pop()
        return {"x": np.repeat(record_ids.astype(np.int32)[:, None], ROW, 1)}

    def __getitem__(self, index):
        return {"x": self.take(np.array([index]))["x"][0]}


def statistics(batch):
    raise SystemExit("of statistics")


def node_of(source, **options) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, [source])


@pytest.fixture(scope="module")
def log() -> Iterator[list[logging.LogRecord]]:
    """The faults of all tests here."""

    class Records(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                records.append(record)

    records, handler, logger = list[logging.LogRecord](), Records(), logging.getLogger("mixserve")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


@pytest.fixture(scope="module")
def items() -> Source:
    return Source()


@pytest.fixture(scope="module")
def nodes(source, items) -> dict[str, MixDataSourcesNode]:
    read = RandomAccessSource(items)
    return {"train": node_of(source), "items": node_of(read), "stats": node_of(Source(), batch_stats_fn=statistics)}


@pytest.fixture(scope="module")
def server(nodes) -> Iterator[MixServer]:
    with serve(nodes) as running:
        yield running


def single(client: MixClient, mixture: str):
    return client.get_batch_at(0, 1, next(keys), mixture=mixture, timeout_s=ENOUGH_S)


def large(client: MixClient, mixture: str, key: int | None = None):
    return client.get_batch_at(0, 40, next(keys) if key is None else key, mixture=mixture, timeout_s=ENOUGH_S)


def stream(client: MixClient, mixture: str):
    with client.batches(40, next(keys), mixture=mixture, prefetch=0, timeout_s=ENOUGH_S) as batches:
        return next(batches)


def positions(client: MixClient, mixture: str):
    return client.get_batch_by_positions([3, 1, 2], next(keys), mixture=mixture, timeout_s=ENOUGH_S)


def session(client: MixClient, mixture: str):
    with client.session("run", mixture=mixture, fresh=True, timeout_s=ENOUGH_S) as opened:
        return opened.next_batch(4)


def process(client: MixClient, mixture: str):
    with client.session("run", mixture=mixture, fresh=True, timeout_s=ENOUGH_S) as opened:
        try:
            return opened.process(0, 4, next(keys))
        finally:
            counts = opened.get_operation_stats()
            assert sum(counts.values()) == 1


WAYS = [single, large, stream, positions, session, process]


def in_thread(task: Callable[[], object]) -> BaseException | None:
    """What `task` raised in another thread than the main one."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            task()
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENOUGH_S * 2)
    assert raised, "the call never ended"
    return raised[0]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, Own])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("transport", ["grpc", "shared memory", "in process"])
def test_whatever_a_source_raises_is_a_fault_of_the_server(nodes, server, source, items, transport, way, error, log):
    def made() -> MixClient:
        if transport == "in process":
            return local_client(nodes)
        return MixClient.connect(server.address, shared_memory=transport == "shared memory")

    with made() as client:
        for mixture, broken in (("train", source), ("items", items)):
            broken.raises = [error("of a source")]
            raised = in_thread(lambda mixture=mixture: way(client, mixture))
            assert type(raised) is ServerFault, (mixture, raised)
            fault = str(raised).split()[-1]
            assert raised.request_id == fault
            # One line a second for each kind, so that it may be that of an earlier fault.
            (logged,) = [record for record in log if record.levelname == "ERROR" and record.request == fault]
            assert fault in logged.getMessage()
            assert "of a source" in logged.exc_text or "of a source" in str(logged.exc_info[1])
            assert way(client, mixture)["x"].shape[1:] == (ROW,)


def test_statistics_that_raise_what_is_no_exception_are_a_fault(nodes, server):
    for client in (MixClient.connect(server.address), local_client(nodes)):
        with client, client.session("stats", mixture="stats", fresh=True, timeout_s=ENOUGH_S) as opened:
            raised = in_thread(lambda opened=opened: opened.compute_statistics(0, 4, 0))
            assert type(raised) is ServerFault
            assert opened.get_statistics() is None


def test_readers_who_wait_for_the_same_reply_all_get_an_error_or_their_batch(server, source):
    source.raises = [SystemExit(f"number {number}") for number in range(2)]
    ended, key = list[type](), next(keys)

    def read() -> None:
        with MixClient.connect(server.address, shared_memory=False) as client:
            try:
                large(client, "train", key)
                ended.append(dict)
            except ServerFault:
                ended.append(ServerFault)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH_S * 2)
    assert len(ended) == 4
    assert ServerFault in ended


def pending(finish: Callable[[], bytes]) -> Any:
    """A reply that `finish` makes."""
    return SimpleNamespace(result=finish, leaf_ids=None, take_times=lambda: None)


def test_a_cached_reply_that_ends_with_what_is_no_exception_is_begun_anew():
    cache, raises = ReplyCache(), [SystemExit("of a source")]

    def finish() -> bytes:
        if raises:
            raise raises.pop()
        return b"made"

    first, second = (cache.get("reader", 0, 4, lambda: pending(finish)) for _ in range(2))
    assert type(in_thread(first.result)) is SystemExit
    with pytest.raises(RuntimeError, match="raised SystemExit") as caught:
        second.result()
    assert type(caught.value.__cause__) is SystemExit
    assert cache.get("reader", 0, 4, lambda: pending(finish)).result() == b"made"

    raises.append(KeyboardInterrupt())
    first, second = (cache.get("other", 0, 4, lambda: pending(finish)) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        first.result()
    assert type(in_thread(second.result)) is Unavailable  # clients retry it
    assert cache.get("other", 0, 4, lambda: pending(finish)).result() == b"made"


class Pressed(Source):
    """A user presses Ctrl-C while it is read."""

    def __init__(self):
        super().__init__()
        self.presses = 0

    def take(self, record_ids):
        if self.presses:
            self.presses -= 1
            signal.raise_signal(signal.SIGINT)
        return super().take(record_ids)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Handle Ctrl-C: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("way", [single, large, positions, session])
def test_ctrl_c_in_the_callers_own_thread_stays_what_it_is(way):
    source = Pressed()
    with local_client({"train": node_of(source)}) as client:
        source.presses = 1
        with pytest.raises(KeyboardInterrupt):
            way(client, "train")
        assert way(client, "train")["x"].shape[1:] == (ROW,)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("is_kept", [False, True])
def test_a_session_that_ctrl_c_interrupts_goes_on_where_it_stood(tmp_path, is_kept):
    source = Pressed()
    node = node_of(source)
    with local_client({"train": node}, state_dir=tmp_path if is_kept else None) as client:
        session = client.session("run")
        found = [session.next_batch(3)["x"][:, 0].tolist()]
        source.presses = 1
        with pytest.raises(KeyboardInterrupt):
            session.next_batch(3)
        found += [session.next_batch(3)["x"][:, 0].tolist() for _ in range(2)]
    whole = node.clone()
    assert found == [whole.next_batch(3)["x"][:, 0].tolist() for _ in range(3)]


@pytest.mark.parametrize(
    ("error", "expected"), [(SystemExit, SystemExit), (Own, Own), (GeneratorExit, ServerFault), (OSError, ServerFault)]
)
def test_what_a_signal_handler_may_raise_goes_through_in_the_main_thread_alone(nodes, source, error, expected):
    with local_client(nodes) as client:
        for way in (single, large, positions):
            source.raises = [error("of a source or a signal handler")]
            with pytest.raises(expected):
                way(client, "train")


def test_a_program_that_calls_back_to_a_source_ends_whatever_it_raises():
    source = Source()
    node = node_of(source)
    read = jax.jit(lambda start: node.get_batch_at(start, 4, jax.random.key(0)))
    for error in (SystemExit, GeneratorExit, Own):
        source.raises = [error("of a source")]
        raised = in_thread(lambda: jax.block_until_ready(read(0)))
        assert isinstance(raised, Exception), error
    assert read(0)["x"].shape == (4, ROW)
