"""docs/wire.md: its bytes are those that the code writes, and those that a server answers on a bare socket."""

import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerTls, serve
from mixserve.serving import bulk as channels
from mixserve.serving import bulk_connection, bulk_door, bulk_threads
from mixserve_client.errors import UnknownMixture
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.transport import bulk, handshake, pipes
from mixserve_client.wire import bulk as frames
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.bulk import ALPN, HEADER_BYTES, HELLO, WELCOME, Kind, encode_header
from mixserve_client.wire.checksum import ReplyTo, open_reply, open_request, seal_reply, seal_request
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES
from mixserve_client.wire.request import SMALL_REQUEST_BYTES, encode_stream_request
from mixserve_client.wire.server import decode_server
from tests.bulk_calls import DEADLINE_S, bulk_token, connect_bulk, open_bulk, receive
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.processes import ONE_SIZE

PAGE = (Path(__file__).parents[1] / "docs" / "wire.md").read_text()
LINE = re.compile(r"(client|server|      ) {2}((?:[0-9a-f]{2} ?)+)(?: {2}.*)?")
Piece = tuple[str, bytes]


def pieces_of(heading: str) -> list[Piece]:
    """Who sends what, of the block of bytes below a heading."""
    block = PAGE.partition(f"## {heading}\n")[2].partition("```\n")[2].partition("```")[0]
    found = list[Piece]()
    for line in block.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        who, data = match[1].strip(), bytes.fromhex(match[2])
        if who:
            found.append((who, data))
        else:
            found[-1] = found[-1][0], found[-1][1] + data
    return found


EXCHANGE = pieces_of("A whole exchange")
CHECKED = pieces_of("Checksums")
TOKEN = bytes(range(32))
NO_FINGERPRINT, NO_ID = b"0" * 64, b"0" * 8


def request(number: int, mixture: str, count: int = 1) -> bytes:
    first = BatchRequest(mixture=mixture, start=0, size=2, key=np.array([0, 7], np.uint32))
    asked = encode_stream_request(StreamRequest(first, stride=2, count=count, reply_rows=2))
    return frames.encode_bulk_request(number, methods.STREAM_BATCHES, asked)


def rows_of_the_page() -> bytes:
    """The Batch of two rows."""
    rows = mix_pb2.Array(name="x", dtype="uint8", shape=[2, 4], padding=bytes(42), data=bytes([1, 2, 3, 4] * 2))
    return mix_pb2.Batch(fingerprint=NO_FINGERPRINT.decode(), arrays=[rows]).SerializeToString()


def test_the_exchange_is_what_the_code_writes() -> None:
    batch, error = rows_of_the_page(), UnknownMixture("mixture must be one of 'm', got 'z'")
    error.request_id = NO_ID.decode()
    expected = [
        ("client", HELLO + TOKEN),
        ("server", WELCOME),
        ("client", request(1, "m")),
        ("server", encode_header(Kind.REPLY, 1, len(batch)) + batch + encode_header(Kind.END, 1)),
        ("client", request(2, "z")),
        ("server", frames.encode_bulk_error(2, error)),
        ("client", request(3, "m", 1000) + encode_header(Kind.CANCEL, 3)),
        ("server", encode_header(Kind.END, 3)),
    ]
    assert joined(EXCHANGE) == expected


def test_the_exchange_with_checksums_is_what_the_code_writes() -> None:
    first = BatchRequest(mixture="m", start=0, size=2, key=np.array([0, 7], np.uint32))
    asked, checksum = seal_request(encode_stream_request(StreamRequest(first, stride=2, count=1, reply_rows=2)))
    batch = seal_reply(rows_of_the_page(), ReplyTo(checksum, 0))
    assert joined(CHECKED) == [
        ("client", frames.encode_bulk_request(1, methods.STREAM_BATCHES, asked, is_checked=True)),
        (
            "server",
            encode_header(Kind.REPLY, 1, len(batch), is_checked=True)
            + batch
            + encode_header(Kind.END, 1, is_checked=True),
        ),
    ]


def test_a_server_answers_a_checked_request_with_checked_frames(server: MixServer) -> None:
    asked, expected = (data for _, data in joined(CHECKED))
    (sealed,) = re.findall(rb"\x75.{4}\x0a\x19.*", asked, re.DOTALL)
    _, checksum = open_request(sealed)
    assert checksum is not None
    with connect_bulk(server) as connection:
        connection.sendall(HELLO + bulk_token(server))
        assert receive(connection, len(WELCOME)) == WELCOME
        connection.sendall(asked)
        reply = receive(connection, len(expected))
        assert reply[:HEADER_BYTES] == expected[:HEADER_BYTES]
        assert reply[-HEADER_BYTES:] == expected[-HEADER_BYTES:]
        rows = open_reply(reply[HEADER_BYTES:-HEADER_BYTES], ReplyTo(checksum, 0))
        assert bytes(rows[-8:]) == bytes([1, 2, 3, 4] * 2)
        damaged = bytearray(asked)
        damaged[40] ^= 1
        connection.sendall(damaged)
        assert ends(connection)


def joined(pieces: list[Piece]) -> list[Piece]:
    """What one end sends before the other one does, as one piece."""
    found = list[Piece]()
    for who, data in pieces:
        if found and found[-1][0] == who:
            found[-1] = who, found[-1][1] + data
        else:
            found.append((who, data))
    return found


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    source = ArraySource({"x": np.full((10, 4), [1, 2, 3, 4], np.uint8)})
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE), [source])


@pytest.fixture(scope="module")
def server(node: MixDataSourcesNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixServer]:
    with serve({"m": node}, shared_memory=str(tmp_path_factory.mktemp("memory"))) as running:
        yield running


def play(connection: socket.socket, token: bytes) -> None:
    """Be the client of the exchange, and require the server's part of it."""
    for who, data in joined(EXCHANGE):
        if who == "client":
            connection.sendall(data.replace(TOKEN, token))
            continue
        found = receive(connection, len(data))
        while found[0] == Kind.REPLY and data[0] == Kind.END:  # before the CANCEL: the page says that some may come
            rest = receive(connection, int.from_bytes(found[8:16], "little"))
            assert rest
            found = receive(connection, len(data))
        found = re.sub(rb"(?<=mixserve-request\x12\x08)[0-9a-f]{8}", NO_ID, found)
        assert re.sub(rb"(?<=\x0a\x40)[0-9a-f]{64}", NO_FINGERPRINT, found) == data


def test_a_server_answers_as_the_page_says(server: MixServer) -> None:
    with connect_bulk(server) as connection:
        play(connection, bulk_token(server))


@NEEDS_OPENSSL
def test_a_server_with_tls_answers_so_to_the_right_protocol(node: MixDataSourcesNode, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("server")
    with serve({"m": node}, tls=ServerTls(pair.certificate, pair.key), shared_memory=False) as server:
        for protocol in (None, "h2", ALPN):
            context = ssl.create_default_context(cafile=str(authority.ca))
            if protocol is not None:
                context.set_alpn_protocols([protocol])
            credentials = grpc.ssl_channel_credentials(authority.ca.read_bytes())
            token = bulk_token(server, channel=grpc.secure_channel(server.address, credentials))
            with connect_bulk(server, context) as connection:
                if protocol == ALPN:
                    play(connection, token)
                else:
                    connection.sendall(HELLO + token)
                    assert ends(connection)


def ends(connection: socket.socket) -> bool:
    """Whether the connection ends without a byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_the_socket_of_shared_memory_takes_the_packet_of_the_page(server: MixServer) -> None:
    (_, packet), (_, answer) = pieces_of("Through shared memory")
    assert packet == handshake.SLOT_PACKET.pack(handshake.CHANNEL_SIZE, 0)
    with grpc.insecure_channel(server.address) as channel:
        path = decode_server(channel.unary_unary(methods.GET_SERVER)(b"", timeout=DEADLINE_S)).shared_memory
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with mine, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        connection.settimeout(DEADLINE_S)
        mine.settimeout(DEADLINE_S)
        socket.send_fds(connection, [packet], [theirs.fileno()])
        assert connection.recv(100) == answer
        play(mine, bulk_token(server))
        socket.send_fds(connection, [packet], [connection.fileno()])
        refused = connection.recv(300)
        assert refused[:8] == bytes(8)
        assert b"SOCK_STREAM" in refused


@pytest.mark.parametrize(
    "wrong",
    [
        encode_header(Kind.REPLY, 1),
        encode_header(Kind.CANCEL, 1, 1) + b"x",
        b"\x09" + bytes(15),
        b"\x02\x01" + bytes(14),
        b"\x02\x00\x01" + bytes(13),
        encode_header(Kind.REQUEST, 1, 4) + b"\xff\xff\xff\xff",
        encode_header(Kind.REQUEST, 1, SMALL_REQUEST_BYTES + 1),
    ],
)
def test_other_frames_end_the_connection(server: MixServer, wrong: bytes) -> None:
    with open_bulk(server) as connection:
        connection.sendall(wrong)
        assert ends(connection)


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n\r\n", b"mixserve-bulk/2\n" + TOKEN])
def test_other_hellos_end_it_too(server: MixServer, wrong: bytes) -> None:
    with connect_bulk(server) as connection:
        connection.sendall(wrong)
        assert ends(connection)


def test_a_cancel_of_a_stream_that_has_ended_means_nothing(server: MixServer) -> None:
    with open_bulk(server) as connection:
        connection.sendall(encode_header(Kind.CANCEL, 7) + request(8, "m"))
        assert receive(connection, HEADER_BYTES)[:8] == encode_header(Kind.REPLY, 8)[:8]


@pytest.mark.parametrize(
    "said",
    [
        f"| {bulk_door._HELLO_S:g} s | the connection ends |",
        f"| {bulk_door._MOST_STRANGERS} | the oldest ends |",
        f"| {channels._TOKEN_S:g} s; {channels._MOST_TOKENS_OF_ONE:,} for a caller's token and "
        f"{channels._MOST_TOKENS:,} in all |",
        f"once, within {channels._TOKEN_S:g} s.",
        f"({SMALL_REQUEST_BYTES:,} bytes) | the connection ends |",
        f"| {bulk_connection._MOST_WAITING:,}; after 2 MiB of them",
        f"| {bulk_threads.STALLED_S:g} s | the connection ends |",
        f"{LARGEST_REPLY_BYTES:,} in all | clients should refuse it |",
        f"({frames._ERROR_BYTES:,} bytes) | clients should refuse it |",
        f"keepalive, after {pipes._IDLE_S} s and four times {pipes._INTERVAL_S} s",
        f"again after {bulk._FIRST_DELAY_S} s, then 1 s, and so on up to {bulk._LONGEST_DELAY_S:g} s",
        f"the ALPN protocol `{ALPN}`",
        f"a header of {HEADER_BYTES} bytes",
        *(f"| {kind} {kind.name} | " for kind in Kind),
    ],
)
def test_the_page_has_the_limits_of_the_code(said: str) -> None:
    assert said in " ".join(PAGE.split())
