"""Pickles and states of version 0.1.0, whose modules had other names, load and continue at the same batch.

tests/golden has them, with placeholders for what differs here: the server's address and the mixture's fingerprint.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve import serve
from mixserve_client import (
    AsyncMixClient,
    BatchIterator,
    InvalidRequest,
    MixClient,
    MixtureDescription,
    SessionDescription,
)
from tests.conftest import assert_batches_equal, make_node

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pickle"))
SIZE = 8
Read = Callable[[str], Any]


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[MixClient]:
    with (
        serve({"train": make_node()}, state_dir=tmp_path_factory.mktemp("state")) as server,
        MixClient.connect(server.address, patience_s=20) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def placed(client: MixClient) -> Callable[[bytes], bytes]:
    address, fingerprint = client.transport.split()[-1], client.mixture().fingerprint
    assert len(address) == len("127.0.0.1:55555")  # equal lengths keep the pickles' length fields right
    return lambda data: data.replace(b"127.0.0.1:55555", address.encode()).replace(b"f" * 64, fingerprint.encode())


@pytest.fixture
def read(placed: Callable[[bytes], bytes]) -> Read:
    return lambda name: pickle.loads(placed((GOLDEN / f"{name}.pickle").read_bytes()))


def assert_same(left: Any, right: Any) -> None:
    """Equal batches, and equally many."""
    for mine, other in zip(islice(left, 5), islice(right, 5), strict=True):
        assert_batches_equal(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_every_pickle_is_read_and_can_be_pickled_again(read, name):
    again = pickle.loads(pickle.dumps(read(name)))
    assert type(again) is type(read(name))


def test_clients_reach_their_servers_and_expect_their_mixtures(client, read):
    for name in ("client", "client-that-asked-for-nothing"):
        with read(name) as other:
            assert isinstance(other, MixClient)
            assert_batches_equal(other.get_batch_at(3, 5, 7), client.get_batch_at(3, 5, 7))
    assert "shared memory" not in read("client-that-asked-for-nothing").transport
    assert read("client").catalog.get("train", None) == client.mixture()  # known without a request
    assert isinstance(read("asyncio-client"), AsyncMixClient)


def test_descriptions_are_what_they_were(client, read):
    assert read("description") == client.mixture()
    assert isinstance(read("description"), MixtureDescription)
    (session,) = read("session-descriptions")
    assert isinstance(session, SessionDescription)
    assert (session.name, session.index) == ("golden", 5)


@pytest.mark.parametrize(
    ("name", "position", "options"),
    [
        ("iterator-that-asked-for-nothing", 5, {"stop": 100, "skip": [(10, 12)]}),
        ("iterator", 24, {}),
        ("worker", 0, {"shard": (1, 2), "worker": (1, 3)}),
        (
            "iterator-with-schedule-and-skips",
            19,
            {
                "schedule": [(16, [0.1, 0.2, 0.7]), (40, [1, 0, 0])],
                "skip": [(3, 6), (50, 60)],
                "provenance": True,
                "key": (3, 4),
            },
        ),
    ],
)
def test_iterators_go_on_at_their_places(client, read, name, position, options):
    key = options.pop("key", 7)
    new = client.batches(SIZE, key, start=position, **options)
    if name == "worker":
        next(new)
    assert_same(read(name), new)
    if name == "iterator-with-schedule-and-skips":
        old = read(name)
        old.reset()  # back to its start, without the later changes
        assert_same(old, client.batches(SIZE, key, schedule=[(16, [0.1, 0.2, 0.7])], skip=[(3, 6)], provenance=True))


def test_a_worker_knows_that_its_last_batch_was_short_and_a_closed_iterator_is_closed(read):
    old = read("worker-at-a-short-end")
    assert list(old) == []
    assert old.get_state()["short"] == 12
    with pytest.raises(InvalidRequest, match="closed"):
        next(read("closed-iterator"))


def test_states_are_taken_and_given_again(client, read, placed):
    states = json.loads(placed((GOLDEN / "states.json").read_bytes()))
    for name, state in states.items():
        # The states of before lack the sources, which only explain errors.
        assert {key: value for key, value in read(name).get_state().items() if key != "sources"} == state
    options: dict[str, Any] = {"provenance": True}
    iterator = client.batches(SIZE, 1, **options)
    iterator.set_state(states["iterator-with-schedule-and-skips"])
    assert_same(iterator, read("iterator-with-schedule-and-skips"))
    worker = client.batches(SIZE, 7, shard=(1, 2), worker=(1, 3))
    worker.set_state(states["worker"])
    assert_same(worker, read("worker"))


def test_a_state_of_a_session_is_taken(client, read):
    with client.session("from-a-golden-state") as session:
        session.set_state(read("session-state"))
        assert session.index == 5
        got = session.next_batch(3)
    with client.session("the-same") as session:
        iter(session)
        session.next_batch(5)
        assert_batches_equal(got, session.next_batch(3))


def test_data_sets_of_grain_go_on(client, read):
    assert_batches_equal(read("grain-map")[2], client.get_batch_at(2 * SIZE, SIZE, 7))
    assert_same(read("grain-iter"), client.batches(SIZE, 7, start=16))


def test_a_batch_of_them_all_is_numpy(read: Read):
    batch = next(read("iterator"))
    assert all(isinstance(array, np.ndarray) for array in batch.values())
    assert isinstance(read("iterator"), BatchIterator)
