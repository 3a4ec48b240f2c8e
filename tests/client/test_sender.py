"""Who sends requests: the client's name and the iterator's number, as a server is told."""

import os
import pickle
import secrets
import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import local_client, serve
from mixserve.access.entries import new_token
from mixserve.servicer import Services
from mixserve_client import AsyncMixClient, InvalidRequest, MixClient
from mixserve_client.schema.client_name import own_name
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, Sender
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from mixserve_client.wire.request import (
    decode_batch_request,
    decode_positions_request,
    decode_stream_request,
    encode_batch_request,
    encode_positions_request,
    with_batches,
    with_rows,
)
from mixserve_client.wire.sender import with_sender
from mixserve_client.wire.stats import decode_stats, encode_stats_request
from tests.conftest import ROUTES, assert_batches_equal, make_node

DEADLINE_S = 20
_NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), max_size=64)
_SENDERS = st.builds(
    Sender,
    _NAMES,
    st.integers(0, 2**64 - 1),
    st.none() | st.floats(0, 1, width=32),
    st.sampled_from(["", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"]),
)


class Seen:
    """Services that keep the senders of the requests that they get."""

    def __init__(self, services: Services):
        self.senders = list[Sender]()
        self._services = services
        self._lock = threading.Lock()

    def _see(self, method: str, request: bytes) -> None:
        found = {
            methods.GET_BATCH_AT: decode_batch_request,
            methods.STREAM_BATCHES: lambda data: decode_stream_request(data).first,
            methods.STREAM_POSITIONS: decode_positions_request,
        }.get(method)
        if found is not None:
            with self._lock:
                self.senders.append(found(request).sender)

    def handle(self, method: str, request: bytes) -> bytes:
        self._see(method, request)
        return self._services.handle(method, request)

    def stream(self, method: str, request: bytes):
        self._see(method, request)
        return self._services.stream(method, request)

    def copies_rows(self, method: str, request: bytes) -> bool:
        return self._services.copies_rows(method, request)


@pytest.fixture
def seen():
    services = Services({"train": make_node()})
    yield Seen(services)
    services.close()


@given(_SENDERS)
def test_what_is_added_by_hand_is_the_message(sender):
    request = BatchRequest("train", 0, 0, key_words(3), "f")
    whole = BatchRequest("train", 5, 6, key_words(3), "f", sender=sender)
    added = with_sender(encode_batch_request(request), sender)
    for data in (with_rows(added, 5, 6), encode_batch_request(whole)):
        assert decode_batch_request(data).sender == sender
    assert decode_stream_request(with_batches(added, 5, 6, 6, 4, 6)).first.sender == sender
    positions = PositionsRequest("train", np.array([1, 5]), key_words(3), 2, sender=sender)
    assert decode_positions_request(encode_positions_request(positions)).sender == sender


def test_every_request_for_batches_says_who_sends_it(seen):
    with MixClient([InProcessTransport(seen)], name="trainer-3") as client:
        client.get_batch_at(0, 4, 7)
        client.get_batch_by_positions([5, 1, 3], 7)
        client.get_plan_at(3, 4, 7)
        assert seen.senders == [Sender("trainer-3")] * 3
        numbers = list[int]()
        for _ in range(2):
            seen.senders.clear()
            for _ in zip(range(40), client.batches(64, 7), strict=False):
                pass
            (number,) = {sender.reader for sender in seen.senders}
            assert {sender.client for sender in seen.senders} == {"trainer-3"}
            numbers.append(number)
        assert 0 not in numbers
        assert len(set(numbers)) == 2
        # A scattered batch is read by positions, which says the same.
        seen.senders.clear()
        next(client.batches(64, 7, skip=[(at, at + 1) for at in range(1, 40, 3)]))
        assert {sender.client for sender in seen.senders} == {"trainer-3"}
        assert 0 not in {sender.reader for sender in seen.senders}


def test_without_a_name_it_is_host_and_process(server):
    assert own_name() == f"{socket.gethostname()}/{os.getpid()}"[-64:]
    with MixClient.connect(server.address, patience_s=DEADLINE_S) as client:
        next(client.batches(8, 3))
        assert own_name() in _readers(client)


def test_long_names_of_hosts_keep_the_process(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "h" * 80)
    assert own_name() == "h" * (63 - len(str(os.getpid()))) + f"/{os.getpid()}"


def test_copies_of_an_iterator_are_readers_of_their_own(server):
    with MixClient.connect(server.address, patience_s=DEADLINE_S, name="one") as client:
        batches = client.batches(8, 3)
        next(batches)
        copy = pickle.loads(pickle.dumps(batches))
        assert_batches_equal(next(copy), next(batches))
        assert copy.batches.figures.number != batches.batches.figures.number
        assert "one" in _readers(client)
        copy.close()


@pytest.mark.parametrize("route", ROUTES)
def test_the_server_shows_the_name(route):
    with (
        serve({"train": make_node()}) as server,
        MixClient.connect(server.address, patience_s=DEADLINE_S, name="job 7/β", **ROUTES[route]) as client,
    ):
        list(client.batches(16, 3, stop=160))
        records = decode_stats(client._caller.call(methods.GET_STATS, encode_stats_request()))[
            "mixserve_client_records_total"
        ]
        assert records.value(mixture="train", client="job 7/β") == 160 == records.value()


@pytest.mark.parametrize("name", ["", "x" * 65, "two\nlines", 7, b"name"])
def test_wrong_names_are_refused(name):
    for make in (
        lambda: MixClient.connect("127.0.0.1:1", name=name),
        lambda: AsyncMixClient.connect("127.0.0.1:1", name=name),
        lambda: local_client({"train": make_node()}, name=name),
    ):
        with pytest.raises(InvalidRequest, match="name must be 1 to 64 printable characters"):
            make()


def test_a_name_must_not_be_a_token():
    with pytest.raises(InvalidRequest, match="a token was given"):
        MixClient.connect("127.0.0.1:1", name=new_token())


def _readers(client: MixClient) -> set[str]:
    found = decode_stats(client._caller.call(methods.GET_STATS, encode_stats_request()))
    return {labels[1] for labels in (sample.labels for sample in found["mixserve_readers"].samples)}
