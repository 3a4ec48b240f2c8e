"""Bulk channels on bare sockets, as a client in another language would use them."""

import socket
import ssl
from collections.abc import Iterator
from typing import Any

import grpc

from mixserve import MixServer
from mixserve_client.errors import MixserveError
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import (
    HEADER_BYTES,
    HELLO,
    WELCOME,
    Kind,
    decode_bulk_error,
    decode_reply_header,
    encode_bulk_request,
)
from mixserve_client.wire.server import decode_server

DEADLINE_S = 20


def bulk_token(server: MixServer, metadata: Any = None, channel: grpc.Channel | None = None) -> bytes:
    """A new token, from `GetServer`."""
    with channel or grpc.insecure_channel(server.address) as made:
        reply = made.unary_unary(methods.GET_SERVER)(b"", metadata=metadata, timeout=DEADLINE_S)
    offer = decode_server(reply).bulk
    assert offer is not None
    assert (offer.host, offer.port) == ("", server.bulk_port)
    return offer.token


def connect_bulk(server: MixServer, context: ssl.SSLContext | None = None) -> socket.socket:
    """A connection to the port of bulk channels, with TLS if there is a context."""
    plain = socket.create_connection(("127.0.0.1", server.bulk_port), DEADLINE_S)
    if context is None:
        return plain
    with plain:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")


def receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer at the end of the connection."""
    came = b""
    while len(came) < count and (more := connection.recv(count - len(came))):
        came += more
    return came


def is_let_in(connection: socket.socket, token: bytes) -> bool:
    """Whether a hello with that token is followed by an answer to a request; else the connection has ended."""
    try:
        connection.sendall(HELLO + token)
        if receive(connection, len(WELCOME)) != WELCOME:
            return False
        connection.sendall(encode_bulk_request(1, "/of/no/method", b""))
        return len(receive(connection, HEADER_BYTES)) == HEADER_BYTES
    except (ConnectionError, ssl.SSLError):
        return False


def open_bulk(server: MixServer, metadata: Any = None) -> socket.socket:
    """A channel that has been opened."""
    connection = connect_bulk(server)
    connection.sendall(HELLO + bulk_token(server, metadata))
    assert receive(connection, len(WELCOME)) == WELCOME
    return connection


def stream_over_bulk(connection: socket.socket, number: int, method: str, request: bytes) -> Iterator[bytes]:
    """The payloads of the replies. Raises the error with which the stream ends."""
    connection.sendall(encode_bulk_request(number, method, request))
    while True:
        header = decode_reply_header(receive(connection, HEADER_BYTES))
        assert header.stream == number
        payload = receive(connection, header.length)
        if header.kind == Kind.ERROR:
            raise decode_bulk_error(payload)
        if header.kind == Kind.END:
            return
        yield payload


def error_over_bulk(connection: socket.socket, number: int, method: str, request: bytes) -> MixserveError | None:
    """The error with which a stream ends; None if it ends well."""
    try:
        for _ in stream_over_bulk(connection, number, method, request):
            pass
    except MixserveError as error:
        return error
    return None
