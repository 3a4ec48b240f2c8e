"""An iterator is for one thread at a time: a second one gets an error, and nothing hangs."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from mixserve import local_client
from mixserve.servicer import Services
from mixserve_client import BatchIterator, InvalidRequest, MixClient, Unavailable
from mixserve_client.reading.batches import Batches
from mixserve_client.transport.in_process import InProcessTransport
from tests.conftest import assert_batches_equal

DEADLINE_S = 20


class Gated(Services):
    """Services whose streams wait while their gate is shut."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.open, self.held = threading.Event(), threading.Event()

    def copies_rows(self, method: str, request: bytes) -> bool:
        return False  # streams may wait

    def stream(self, method: str, request: bytes, *more: Any) -> Iterator[bytes]:
        self.held.set()
        assert self.open.wait(DEADLINE_S)
        yield from super().stream(method, request, *more)


@pytest.fixture
def gate(node) -> Iterator[Gated]:
    services = Gated({"train": node})
    yield services
    services.open.set()


@pytest.fixture
def batches(gate) -> Iterator[BatchIterator]:
    with MixClient([InProcessTransport(gate)]) as client:
        yield client.batches(8, 7, stop=10_000)
        gate.open.set()


class Waiting:
    """A thread that waits for the first batch."""

    def __init__(self, gate: Gated, batches: BatchIterator):
        self._batches = batches
        self.found: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert gate.held.wait(DEADLINE_S)

    def _run(self) -> None:
        try:
            self.found.append(next(self._batches))
        except Exception as error:
            self.found.append(error)

    def result(self) -> Any:
        self._thread.join(DEADLINE_S)
        return self.found[0]


CALLS: dict[str, Callable[[BatchIterator], Any]] = {
    "next": next,
    "get_state": lambda it: it.get_state(),
    "state_dict": lambda it: it.state_dict(),
    "set_state": lambda it: it.set_state({}),
    "load_state_dict": lambda it: it.load_state_dict({}),
    "skip": lambda it: it.skip(100, 200),
    "schedule_weights": lambda it: it.schedule_weights((1, 1, 1)),
    "reset": lambda it: it.reset(),
    "start_prefetch": lambda it: it.start_prefetch(),
    "element_spec": lambda it: it.element_spec(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_beside_that_of_another_thread_is_refused_and_changes_nothing(gate, batches, node, call):
    waiting = Waiting(gate, batches)
    with pytest.raises(
        InvalidRequest, match=r"one thread at a time may use: make one for each thread .* or hold a lock"
    ):
        CALLS[call](batches)
    gate.open.set()
    with local_client({"train": node}) as client:
        assert_batches_equal(waiting.result(), client.get_batch_at(0, 8, 7))
        assert_batches_equal(next(batches), client.get_batch_at(8, 8, 7))  # one after another is allowed


def test_threads_that_take_batches_at_once_never_stand_still(gate, batches):
    gate.open.set()
    begin, found = threading.Barrier(4), list[Any]()

    def read() -> None:
        begin.wait(DEADLINE_S)
        while True:
            try:
                found.append(next(batches)["id"])
            except StopIteration:
                return
            except InvalidRequest:
                continue

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert len(found) == 10_000 // 8


def test_closing_ends_the_wait_of_another_thread_and_all_that_is_in_flight(gate, batches):
    waiting = Waiting(gate, batches)
    batches.close()
    gate.open.set()
    assert isinstance(waiting.result(), Unavailable)
    assert batches.batches._in_flight.count == 0
    with pytest.raises(InvalidRequest, match="closed"):
        next(batches)
    assert batches.get_state()["position"] == 0


def test_closing_while_another_thread_asks_for_more_leaves_nothing_in_flight(gate, batches, monkeypatch):
    """The other thread has its batch and requests the next ones when the iterator is closed."""
    gate.open.set()
    next(batches)
    ask, asking, go_on = Batches.refill, threading.Event(), threading.Event()

    def slow(self: BatchIterator, *arguments: Any, **options: Any) -> None:
        asking.set()
        assert go_on.wait(DEADLINE_S)
        ask(self, *arguments, **options)

    monkeypatch.setattr(Batches, "refill", slow)
    taken = list[Any]()

    def take() -> None:
        with suppress(InvalidRequest):  # the iterator is closed
            taken.extend(batches)

    thread = threading.Thread(target=take)
    thread.start()
    assert asking.wait(DEADLINE_S)
    batches.close()
    go_on.set()
    thread.join(DEADLINE_S)
    assert batches.batches._in_flight.count == 0


def test_a_signal_handler_may_take_the_state_while_its_thread_waits(gate, batches):
    states = list[Any]()

    def handle(number: int, frame: object) -> None:
        states.append(batches.get_state())
        gate.open.set()

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            assert gate.held.wait(DEADLINE_S)
            time.sleep(0.01)  # any moment of the wait will do
            signal.pthread_kill(main, signal.SIGUSR1)

        thread = threading.Thread(target=interrupt)
        thread.start()
        next(batches)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [state["position"] for state in states] == [0]
