"""Meaningless arguments are refused at once, by name: never taken for true, and never an error from inside."""

import pickle
import re
from collections.abc import Iterator

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, local_client, serve
from mixserve_client import AsyncMixClient, InvalidRequest, MixClient
from mixserve_client.jax import device_batches
from tests.processes import ONE_SIZE


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000)})])


@pytest.fixture(scope="module")
def server(node) -> Iterator[MixServer]:
    with serve({"train": node}) as running:
        yield running


@pytest.fixture
def client(server) -> Iterator[MixClient]:
    with MixClient.connect(server.address, patience_s=20) as made:
        yield made


TRUTHS = {
    "get_batch_at provenance": lambda client, value: client.get_batch_at(0, 2, 1, provenance=value),
    "get_batch_at allow_short": lambda client, value: client.get_batch_at(0, 2, 1, allow_short=value),
    "get_plan_at allow_short": lambda client, value: client.get_plan_at(0, 2, 1, allow_short=value),
    "get_batch_by_positions provenance": lambda client, value: client.get_batch_by_positions([1], 1, provenance=value),
    "batches provenance": lambda client, value: client.batches(2, 1, provenance=value),
    "batches drop_remainder": lambda client, value: client.batches(2, 1, drop_remainder=value),
    "batches strict": lambda client, value: client.batches(2, 1, strict=value),
    "session fresh": lambda client, value: client.session("truths", fresh=value).close(),
    "session take_over": lambda client, value: client.session("truths", take_over=value).close(),
    "session strict": lambda client, value: client.session("truths", strict=value).close(),
}


@pytest.mark.parametrize("call", TRUTHS)
def test_what_is_neither_true_nor_false(client, call):
    for value in ("no", 5, None, [], np.array([True])):
        with pytest.raises(InvalidRequest, match=rf"{call.rpartition(' ')[2]} must be True or False, got "):
            TRUTHS[call](client, value)
    for value in (True, False, np.True_):
        TRUTHS[call](client, value)


def test_what_equals_a_known_key_or_mixture_is_refused_as_before(client):
    """A client keeps the selections of single batches, by key and mixture; True equals 1, and lists have no hash."""
    client.get_batch_at(0, 2, 1, mixture="train")
    for key in (True, 1.0, np.True_, -1, 2**32, "1"):
        with pytest.raises(InvalidRequest, match="key must be an integer seed"):
            client.get_batch_at(0, 2, key, mixture="train")
    for mixture in (["train"], b"train", {}):
        with pytest.raises(InvalidRequest, match="mixture must be the name of a mixture, got "):
            client.get_batch_at(0, 2, 1, mixture=mixture)


REFUSED = {
    "a mixture's number": (lambda client: client.sessions(mixture=5), "mixture must be the name of a mixture, got 5"),
    "bytes": (lambda client: client.sessions(mixture=b"x"), "mixture must be the name of a mixture, got b'x'"),
    "half a letter": (lambda client: client.sessions(mixture="\ud800"), "mixture must be the name of a mixture, got "),
    "a described number": (lambda client: client.mixture(5), "mixture must be the name of a mixture, got 5"),
    "an asyncio client of an address": (lambda _: AsyncMixClient("host:1"), r"AsyncMixClient\.connect"),
    "an asyncio client of nothing": (lambda _: AsyncMixClient(None), "got None"),
    "a client of an address": (lambda _: MixClient("host:1"), r"MixClient\.connect\('host:1'\)"),
    "a client of addresses": (lambda _: MixClient(["host:1"]), r"MixClient\.connect\(\['host:1'\]\)"),
    "batches of nothing": (lambda _: device_batches(None), r"client\.batches\(\.\.\.\), got None"),
    "batches of a list": (lambda _: device_batches([{"x": np.zeros(2)}]), r"client\.batches\(\.\.\.\), got \["),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant(client, case):
    call, said = REFUSED[case]
    with pytest.raises(InvalidRequest, match=said):
        call(client)


def test_a_batch_that_no_memory_can_hold(client):
    with pytest.raises(MemoryError, match="no memory for a batch of 80000000000000 bytes: request fewer rows"):
        client.get_batch_at(0, 10**13, 1)
    assert client.get_batch_at(0, 2, 1)["x"].shape == (2,)


def test_what_of_asyncio_can_be_pickled(client, node):
    asynchronous = AsyncMixClient(client)
    again = pickle.loads(pickle.dumps(asynchronous))
    assert type(again) is AsyncMixClient
    assert again.transport.endswith(asynchronous.transport.rpartition(" ")[2])
    with pytest.raises(TypeError, match=r"keep its get_state\(\)"):
        pickle.dumps(asynchronous.batches(2, 1))
    with local_client({"train": node}) as local, pytest.raises(TypeError, match=r"use MixClient\.connect"):
        pickle.dumps(AsyncMixClient(local))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shared_memory": 5}, "shared_memory must be True, False or a folder, got 5"),
        ({"shared_memory": ""}, "shared_memory must be True, False or a folder, got ''"),
        ({"state_dir": 5}, "state_dir must be a folder, or None for none, got 5"),
        ({"session_ttl_s": "a"}, "session_ttl_s must be a positive, finite number of seconds, got 'a'"),
        ({"session_ttl_s": True}, "session_ttl_s must be a positive, finite number of seconds, got True"),
        ({"journal_days": "a"}, "journal_days must be a positive, finite number of days, got 'a'"),
        ({"journal_days": float("nan")}, "journal_days must be a positive, finite number of days, got nan"),
    ],
)
def test_what_a_server_cannot_be_told(node, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        serve({"train": node}, **options)


def test_a_server_cannot_listen_at_a_file_or_folder(node, tmp_path):
    (tmp_path / "file").write_text("kept")
    for path, what in ((tmp_path / "file", "a file that is not a socket"), (tmp_path, "a folder")):
        with pytest.raises(FileExistsError, match=f"this path is {what}; choose another path"):
            serve({"train": node}, f"unix:{path}")
    assert (tmp_path / "file").read_text() == "kept"
