"""Findings of an attack on the client: batches that depended on the prefetch, and calls that hung."""

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.grain import RemoteIterDataset, RemoteMapDataset
from mixserve_client.jax import device_batches, global_batches
from tests.conftest import assert_batches_equal
from tests.processes import ONE_SIZE

DEADLINE_S = 30


def node(**options: Any) -> MixDataSourcesNode:
    sources = [ArraySource({"x": np.arange(1000 * i, 1000 * i + 40)}, name=f"{i}") for i in range(2)]
    return MixDataSourcesNode(
        MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, **options), sources
    )


@pytest.fixture(scope="module")
def client():
    with local_client({"train": node()}) as made:
        yield made


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_was_cut_by_an_end_that_is_another_now_is_asked_for_again(workers):
    with local_client({"train": node(sampling="epoch", stop="first_exhausted", block_size=16)}) as client:
        end = client.end()
        assert end is not None
        found = []
        for prefetch in (0, 1, 4):
            options = {"skip": [(end - 10, end)], "prefetch": prefetch}
            made = [client.batches(4, 7, worker=(w, workers), **options) for w in range(workers)]
            came = [next(made[number % workers])["x"].tolist() for number in range(2)]
            for batches in made:
                batches.schedule_weights((0.9, 0.1), 64)
            for number in range(2, 60):
                batch = next(made[number % workers], None)
                if batch is None:
                    break
                came.append(batch["x"].tolist())
            found.append(came)
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.uint64])
def test_numbers_of_batches_are_integers_whatever_their_dtype(client, kind):
    dataset = RemoteMapDataset(client, batch_size=4, key=7, num_batches=200)
    assert_batches_equal(dataset[kind(120)], client.get_batch_at(480, 4, 7))
    assert_batches_equal(dataset._getitems([kind(100), kind(101)])[1], client.get_batch_at(404, 4, 7))
    for wrong in ("a", None, 1.5):
        with pytest.raises(InvalidRequest, match="index must be an integer"):
            dataset[wrong]


def test_schedules_and_skips_that_can_be_read_once_and_are_changed_later(client):
    weights = np.array([0.0, 1.0])
    batches = client.batches(8, 7, schedule=zip([0], [weights], strict=True), skip=zip([0], [4], strict=True))
    expected = client.get_batch_at(4, 8, 7, schedule=[(0, (0.0, 1.0))])
    weights[:] = (1.0, 0.0)
    assert_batches_equal(next(batches), expected)
    batches.reset()
    assert_batches_equal(next(batches), expected)
    dataset = RemoteIterDataset(client, batch_size=8, key=7, skip=zip([0], [4], strict=True))
    for _ in range(2):
        assert_batches_equal(next(iter(dataset)), client.get_batch_at(4, 8, 7))


def test_device_batches_are_for_one_thread_at_a_time(client):
    batches, errors, numbers = (
        device_batches(client.batches(1, 7, prefetch=0), buffer=1),
        list[Exception](),
        list[int](),
    )
    lock = threading.Lock()

    def read() -> None:
        for _ in range(100):
            try:
                batch = next(batches)
                with lock:
                    numbers.append(int(batch["x"][0]))
            except InvalidRequest as error:
                errors.append(error)
            except BaseException as error:
                errors.append(AssertionError(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert all(isinstance(error, InvalidRequest) for error in errors)
    assert sorted(numbers) == sorted(client.get_batch_at(0, len(numbers), 7)["x"].tolist())


def test_device_batches_say_why_they_cannot_be_pickled(client):
    with pytest.raises(TypeError, match=r"keep get_state\(\)"):
        pickle.dumps(device_batches(client.batches(1, 7)))


def test_a_batch_that_is_interrupted_comes_next(client, monkeypatch):
    from mixserve_client.reading import selection

    batches = client.batches(4, 7)
    first = next(batches)
    with monkeypatch.context() as patch:
        patch.setattr(selection, "unflatten", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    assert batches.get_state()["position"] == 4
    assert_batches_equal(next(batches), client.get_batch_at(4, 4, 7))
    assert len(first["x"]) == 4


def in_time(task: Callable[[], Any]) -> None:
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it hangs"


def test_a_signal_handler_may_take_the_state_of_the_session_that_it_interrupts(client, monkeypatch):
    session = client.session("interrupted")
    sent, seen = session._send, []

    def interrupted(*args: Any) -> Any:
        if not seen:
            seen.append(None)
            seen.append(session.get_state()["index"])
            with pytest.raises(InvalidRequest, match="in a signal handler take its state"):
                session.next_batch(3)
        return sent(*args)

    monkeypatch.setattr(session, "_send", interrupted)
    in_time(lambda: session.next_batch(2))
    assert seen == [None, 0]
    assert session.index == 2
    session.close()


def test_closing_in_a_handler_while_closing_does_not_hang(client, monkeypatch):
    made = MixClient.connect("127.0.0.1:9")
    workers, ended = made.catalog.resources.here.threads, []

    def closes_again() -> None:
        ended.append(None)
        made.close()

    workers._finish.detach()
    import weakref

    workers._finish = weakref.finalize(workers, lambda *_: closes_again())
    in_time(made.close)
    assert ended == [None]


def test_rows_of_a_process_are_not_listed_one_by_one(client):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    began = time.monotonic()
    batches = global_batches(client, 2**40, 7, sharding)
    assert time.monotonic() - began < 5
    batches.close()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _: MixClient("127.0.0.1:1"), "MixClient.connect"),  # type: ignore[arg-type]
        (
            lambda _: MixClient.connect("127.0.0.1:1", shared_memory=None),
            "shared_memory must be True, False or a folder",
        ),  # type: ignore[arg-type]
        (lambda c: c.get_batch_at(0, 1, 7, mixture=["train"]), "mixture must be the name"),
        (lambda c: c.get_batch_at(0, 1, 7, mixture=0), "mixture must be the name"),
        (lambda c: c.batches(1, 7, provenance=np.array([1, 2])), "provenance must be True or False"),
        (lambda c: c.mixtures(timeout_s=10**400), "positive number of seconds"),
        (lambda c: c.session("x", fresh=True).set_statistics({"a": 10**400}), "integer of 64 bits"),
        (lambda c: c.get_batch_at(10**5000, 1, 7), "an integer of|at most"),
    ],
)
def test_arguments_that_are_wrong(client, call, said):
    with pytest.raises((InvalidRequest, ValueError), match=said):
        call(client)
