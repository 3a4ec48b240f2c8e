"""Servers whose bulk channels answer anything: clients end them soon, with an error of ours, or go on over gRPC."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixserve_client import CorruptReply, DeadlineExceeded, MixClient, MixserveError, Unavailable
from mixserve_client.errors import ServerFault, UnknownMixture
from mixserve_client.schema.server import BulkOffer
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.batch import encode_slot_reply
from mixserve_client.wire.bulk import HELLO, WELCOME, Kind, decode_bulk_request
from tests.bulk.peers import SIZE, TOKEN, drain, exactly, frame, header, hostile_bulk, let_in, until

SOON_S = 3.0
ROWS = 8 * SIZE


def connect(address: str, **options: float) -> MixClient:
    return MixClient.connect(address, **{"shared_memory": False, "patience_s": 0.3} | options)


# Channels that do not open


def never_answers(connection: socket.socket) -> None:
    drain(connection)


def closes(connection: socket.socket) -> None:
    exactly(connection, len(HELLO) + len(TOKEN))


def says(data: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        drain(connection)

    return behave


def trickles(connection: socket.socket) -> None:
    """Half of a welcome, byte by byte, for longer than a client waits."""
    for byte in WELCOME[: len(WELCOME) // 2]:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)
    drain(connection)


CLOSED: dict[str, Callable[[socket.socket], None]] = {
    "nothing": never_answers,
    "an end": closes,
    "http": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "half a welcome": says(WELCOME[:5]),
    "noise": says(bytes(range(256)) * 1000),
    "byte by byte": trickles,
}


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_no_bulk_channel_is_left_alone_within_a_second(big_node, name):
    with hostile_bulk(big_node, CLOSED[name]) as (address, made), connect(address) as client:
        client.mixtures()
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches:
            came = [next(batches)["tokens"] for _ in range(40)]
        assert time.monotonic() - begun < 1.7
        assert client.transport == f"grpc {address}"
        assert made.streams
        np.testing.assert_array_equal(np.concatenate(came[:2]), client.get_batch_at(0, 2 * SIZE, 3)["tokens"])


OFFERS: dict[str, BulkOffer] = {
    "a port that nobody listens at": BulkOffer("", 1, TOKEN),
    "a name that cannot be": BulkOffer("a" * 100, 7, TOKEN),
    "a name of dots": BulkOffer("..", 7, TOKEN),
    "a name with odd letters": BulkOffer("ä" * 40, 7, TOKEN),
    "a name that nobody has": BulkOffer("nowhere.invalid", 7, TOKEN),
    "a host that has no such address": BulkOffer("::ffff:300.1.1.1", 7, TOKEN),
    "no port": BulkOffer("", 0, TOKEN),
}


@pytest.mark.parametrize("name", OFFERS)
def test_an_offer_that_leads_nowhere_is_left_alone_within_a_second(big_node, name):
    with hostile_bulk(big_node, never_answers) as (address, made), connect(address) as client:
        made.offer = OFFERS[name]
        client.mixtures()
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches:
            for _ in range(40):
                next(batches)
        assert time.monotonic() - begun < 2.2  # with no port, the listener is that of the fixture
        assert client.transport == f"grpc {address}"


# Channels that open


def after_a_request(answer: Callable[[socket.socket, int], None]) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        let_in(connection)
        while True:
            found, _ = frame(connection)
            if found.kind == Kind.REQUEST:
                answer(connection, found.stream)

    return behave


def send(*parts: Callable[[int], bytes]) -> Callable[[socket.socket, int], None]:
    return lambda connection, number: connection.sendall(b"".join(part(number) for part in parts))


def error_frame(code: str, text: str, **metadata: str) -> Callable[[int], bytes]:
    payload = mix_pb2.BulkError(code=code, text=text, metadata=metadata).SerializeToString()
    return lambda number: header(Kind.ERROR, number, len(payload)) + payload


REPLY: dict[str, tuple[Callable[[socket.socket, int], None], type[MixserveError]]] = {
    "another stream": (send(lambda n: header(Kind.END, n + 1)), CorruptReply),
    "stream 0": (send(lambda n: header(Kind.END, 0)), CorruptReply),
    "kind 0": (send(lambda n: header(0, n)), CorruptReply),
    "kind 99": (send(lambda n: header(99, n)), CorruptReply),
    "a request": (send(lambda n: header(Kind.REQUEST, n, 3) + b"abc"), CorruptReply),
    "a cancel": (send(lambda n: header(Kind.CANCEL, n)), CorruptReply),
    "flags": (send(lambda n: header(Kind.END, n, flags=1)), CorruptReply),
    "reserved": (send(lambda n: header(Kind.END, n, reserved=7)), CorruptReply),
    "an end with a payload": (send(lambda n: header(Kind.END, n, 1) + b"a"), CorruptReply),
    "a reply of 2^64 - 1 bytes": (send(lambda n: header(Kind.REPLY, n, (1 << 64) - 1)), CorruptReply),
    "an error of a gigabyte": (send(lambda n: header(Kind.ERROR, n, 1 << 30)), CorruptReply),
    "an error that is no message": (send(lambda n: header(Kind.ERROR, n, 4) + b"\xff\xff\xff\xff"), CorruptReply),
    "an empty error": (send(lambda n: header(Kind.ERROR, n)), MixserveError),
    "an error of no class": (send(error_frame("NOPE", "x\x1b[31m" * 100, **{"mixserve-error": "Nope"})), ServerFault),
    "an error of a class": (
        send(error_frame("NOT_FOUND", "it is not here", **{"mixserve-error": "UnknownMixture"})),
        UnknownMixture,
    ),
    "a long error": (
        send(error_frame("NOT_FOUND", "x" * 60_000, **{"mixserve-error": "UnknownMixture"})),
        UnknownMixture,
    ),
    "an empty reply": (send(lambda n: header(Kind.REPLY, n)), MixserveError),
    "noise in a reply": (send(lambda n: header(Kind.REPLY, n, 5000) + bytes(range(250)) * 20), CorruptReply),
    "a slot that was not named": (
        send(lambda n: header(Kind.REPLY, n, len(encode_slot_reply(7, 1 << 17))) + encode_slot_reply(7, 1 << 17)),
        CorruptReply,
    ),
    "an end before rows": (send(lambda n: header(Kind.END, n)), Unavailable),
    "noise": (lambda connection, _: connection.sendall(b"\x03" * 100_000), CorruptReply),
}


@pytest.mark.parametrize("name", REPLY)
def test_wrong_answers_are_errors_of_ours_soon(big_node, name):
    answer, kind = REPLY[name]
    with hostile_bulk(big_node, after_a_request(answer)) as (address, _), connect(address) as client:
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches, pytest.raises(kind) as caught:
            next(batches)
        assert time.monotonic() - begun < SOON_S
        assert len(str(caught.value)) < 70_000
        assert "\x1b" not in str(caught.value)


def test_a_claim_of_a_gigabyte_costs_nothing_until_it_comes(big_node):
    def claim(connection: socket.socket, number: int) -> None:
        connection.sendall(header(Kind.REPLY, number, (1 << 30) + 5) + bytes(1000))
        drain(connection)

    with hostile_bulk(big_node, after_a_request(claim)) as (address, _), connect(address, patience_s=20) as client:
        client.mixtures()
        before = resident()
        begun = time.monotonic()
        with client.batches(SIZE, 3, timeout_s=0.5) as batches, pytest.raises(DeadlineExceeded):
            next(batches)
        assert time.monotonic() - begun < SOON_S
        assert resident() - before < 32 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_stream_that_never_ends_is_ended(big_node):
    """Rows after the last one that was requested are an error, and so is a stream of replies without rows."""

    def behave(connection: socket.socket) -> None:
        let_in(connection)
        found, payload = frame(connection)
        method, request = decode_bulk_request(payload)
        whole = list(made.services.stream(method, request))
        while True:
            for reply in whole:
                connection.sendall(header(Kind.REPLY, found.stream, len(reply)) + reply)

    with hostile_bulk(big_node, behave) as (address, made), connect(address) as client:
        begun = time.monotonic()
        with pytest.raises(CorruptReply):
            client.get_batch_at(0, ROWS, 3)
        assert time.monotonic() - begun < SOON_S


def test_an_error_that_was_read_ahead_is_raised_once(big_node):
    """Not again for each batch that a thread read before it: its traceback would grow."""

    def behave(connection: socket.socket) -> None:
        let_in(connection)
        while True:
            found, payload = frame(connection)
            if found.kind != Kind.REQUEST:
                continue
            replies = list(made.services.stream(*decode_bulk_request(payload)))
            sizes.append(len(replies))
            is_broken = len(sizes) > 1 and len(replies) > 10
            for reply in replies[: 10 if is_broken else None]:
                connection.sendall(header(Kind.REPLY, found.stream, len(reply)) + reply)
            # An error for which the client does not ask again.
            gone = error_frame("NOT_FOUND", "it is gone", **{"mixserve-error": "UnknownMixture"})
            connection.sendall(gone(found.stream) if is_broken else header(Kind.END, found.stream))

    sizes = list[int]()  # of the streams that were requested
    with hostile_bulk(big_node, behave) as (address, made), connect(address) as client:
        client.get_batch_at(0, ROWS, 3)  # from now on iterators read by themselves
        with client.batches(64, 3) as batches, pytest.raises(UnknownMixture) as caught:
            for _ in range(100):
                next(batches)
                time.sleep(0.01)  # as a trainer that computes: a thread reads ahead
    assert len(caught.traceback) < 20


def test_a_server_that_trickles_a_reply_byte_by_byte_meets_the_deadline(big_node):
    def slowly(connection: socket.socket, number: int) -> None:
        connection.sendall(header(Kind.REPLY, number, 1 << 17))
        while True:
            connection.sendall(b"\0")
            time.sleep(0.01)

    with hostile_bulk(big_node, after_a_request(slowly)) as (address, _), connect(address, patience_s=20) as client:
        client.mixtures()
        with client.batches(SIZE, 3, timeout_s=0.5) as batches:
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="before the batch arrived"):
                    next(batches)
                assert 0.4 < time.monotonic() - begun < SOON_S


def test_a_server_that_takes_no_requests_is_left_in_time(big_node):
    """Whose window stays closed."""

    def behave(connection: socket.socket) -> None:
        let_in(connection)
        until(over.is_set)

    over = threading.Event()
    with hostile_bulk(big_node, behave) as (address, _), connect(address, patience_s=20) as client:
        try:
            client.mixtures()
            begun = time.monotonic()
            with client.batches(SIZE, 3, timeout_s=0.5) as batches, pytest.raises(DeadlineExceeded):
                next(batches)
            assert time.monotonic() - begun < SOON_S
        finally:
            over.set()
