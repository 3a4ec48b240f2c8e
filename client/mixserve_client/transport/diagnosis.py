"""Why TLS fails with a server: a connection of our own finds out what gRPC's error does not say."""

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from mixserve_client.credentials import TlsOptions
from mixserve_client.schema.certificate import Certificate, decode
from mixserve_client.transport.connecting import connect_tcp
from mixserve_client.transport.contexts import accepting_context, authorities_of, checking_context
from mixserve_client.transport.endpoints import Endpoint, endpoint_of

_HTTP2 = "h2"  # in ALPN
_EVERY_S = 2.0
_LONGEST_S = 5.0
_CONNECT_S = 1.0
# What gRPC says of servers that are not there, or do not answer: another connection would tell nothing new.
_NOT_THERE = ("refused", "unreachable", "timed out", "imeout", "No such file", "No route", "DNS", "esolution")
_EXPIRED, _NOT_YET_VALID = 10, 9
_SELF_SIGNED = 18
_OTHER_HOST = (62, 64)
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
# Types of records and of messages in TLS.
_HANDSHAKE, _CERTIFICATE_REQUEST, _SERVER_HELLO_DONE = 22, 13, 14
_LARGEST_FLIGHT = 1 << 16


class _Server(NamedTuple):
    """Where it listens, and the name that its certificate must have."""

    endpoint: Endpoint
    name: str


class Diagnosis:
    """Finds out why TLS fails at `target`; without `tls`, whether the server speaks TLS. Thread-safe."""

    def __init__(self, target: str, tls: TlsOptions | None, name: str | None = None):
        """`name` is the one that the server's certificate must have (None: that in `target`)."""
        endpoint = endpoint_of(target)
        self._server = None if endpoint is None else _Server(endpoint, name or endpoint.host)
        self._tls = tls
        self._lock = threading.Lock()
        self._made_at = -_EVERY_S
        self._reason: str | None = None

    def reason(self, details: str, remaining_s: float | None) -> str | None:
        """What was expected of whom, and what came; None if that is not TLS, or is not known.

        `details` are gRPC's. Connects once per 2 s at most, and takes 5 s at most, or `remaining_s`.
        """
        if self._server is None or any(word in details for word in _NOT_THERE):
            return None
        # Not two at once: the next failure of the other thread's call will find the answer.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = time.monotonic()
            if now - self._made_at >= _EVERY_S:
                limit_s = _LONGEST_S if remaining_s is None else min(_LONGEST_S, remaining_s)
                self._reason = _find(self._server, self._tls, now + limit_s)
                self._made_at = time.monotonic()
            return self._reason
        finally:
            self._lock.release()


def _find(server: _Server, tls: TlsOptions | None, until: float) -> str | None:
    try:
        return _speaks_tls(server, until) if tls is None else _what_fails(server, tls, until)
    except (OSError, ValueError):  # the server is gone, or does something that we do not know
        return None


def _speaks_tls(server: _Server, until: float) -> str | None:
    """For a client without TLS."""
    try:
        _connect(server, accepting_context(_HTTP2), until, until_it_begins=False)
    except ssl.SSLError as error:
        if "ALERT" not in str(error.reason):  # an alert is an answer in TLS
            return None
    return "the server speaks TLS, and the client does not: connect with tls=True or tls='ca.pem'"


def _what_fails(server: _Server, tls: TlsOptions, until: float) -> str | None:
    authorities, context = authorities_of(tls)[0], checking_context(_HTTP2, tls)
    try:
        is_open = _connect(server, context, until)
    except ssl.SSLCertVerificationError as error:
        return _refusal(error, _certificate(server, until), server.name, authorities)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"):
            return (
                "the client speaks TLS, and the server does not: it lacks its `tls:`, or something else answers there"
            )
        is_open = False
    except ConnectionError:
        is_open = False
    # A server that does not like our certificate ends the connection. Others may do that too, such as a proxy without
    # a server behind it: only one that asks for a certificate means ours.
    if is_open or not _asks_for_certificate(server, until):
        return None
    if tls.certificate is None:
        return (
            "the server asks for a certificate of the client's, and the client has none: connect with "
            "tls=TlsOptions(ca=…, certificate=…, key=…)"
        )
    return (
        f"the server refuses the certificate of the client's, {tls.certificate}: it is not signed by an authority of "
        f"the server's `client_ca`, or it or that authority has expired"
    )


def _refusal(error: ssl.SSLCertVerificationError, found: Certificate | None, host: str, authorities: str) -> str:
    """What is wrong with the server's certificate, of which we could read `found`."""
    who = "the server's certificate" if found is None else f"the server's certificate, of {found.subject},"
    code = error.verify_code
    if code == _EXPIRED and found is not None and found.not_after > _now():
        return f"an authority that signed {who} has expired; this machine's clock says {_now()}"
    if code == _EXPIRED:
        return f"{who} expired{'' if found is None else f' on {found.not_after}'}; this machine's clock says {_now()}"
    if code == _NOT_YET_VALID:
        from_when = "" if found is None else f" before {found.not_before}"
        return f"{who} is not valid yet{from_when}; this machine's clock says {_now()}"
    if code in _OTHER_HOST:
        names = "other names" if found is None else found.names
        return f"{who} is for {names}, not for {host}: connect to one of its names, or add {host} to the certificate"
    if code in _UNKNOWN_AUTHORITY:
        by = "by an unknown authority" if found is None else f"by {found.issuer}"
        signed = "is self-signed" if code == _SELF_SIGNED else f"is signed {by}"
        return f"{who} {signed}, and the client trusts only {authorities}: give the right file as tls='ca.pem'"
    return f"{who} is refused: {error.verify_message}; the client trusts {authorities}"


def _certificate(server: _Server, until: float) -> Certificate | None:
    """What the server's certificate says, whether or not we trust it; it does not get ours."""
    context = accepting_context(_HTTP2)
    try:
        with _socket(server, until) as plain, context.wrap_socket(plain, server_hostname=server.name) as secured:
            found = secured.getpeercert(binary_form=True)
        return None if found is None else decode(found)
    except (OSError, ValueError, IndexError):
        return None


def _connect(server: _Server, context: ssl.SSLContext, until: float, *, until_it_begins: bool = True) -> bool:
    """Whether the server keeps the connection open after the handshake. Raises OSError, also ssl.SSLError."""
    with _socket(server, until) as plain, context.wrap_socket(plain, server_hostname=server.name) as secured:
        secured.settimeout(_remaining_s(until))
        return not until_it_begins or bool(secured.recv(1))  # a gRPC server sends its settings at once


def _asks_for_certificate(server: _Server, until: float) -> bool:
    """Whether the server asks clients for a certificate, as its first messages in TLS 1.2 say in plain text."""
    context = accepting_context(_HTTP2)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing, received = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    with suppress(ssl.SSLWantReadError):  # it has written its first message, and waits for the answer
        context.wrap_bio(incoming, outgoing, server_hostname=server.name).do_handshake()
    with _socket(server, until) as plain:
        plain.sendall(outgoing.read())
        while len(received) < _LARGEST_FLIGHT and _SERVER_HELLO_DONE not in _messages(received):
            plain.settimeout(_remaining_s(until))
            chunk = plain.recv(_LARGEST_FLIGHT)
            if not chunk:
                break
            received += chunk
    return _CERTIFICATE_REQUEST in _messages(received)


def _messages(received: bytes) -> list[int]:
    """The types of the messages of a handshake, as far as they have come."""
    flight, at = b"", 0
    while at + 5 <= len(received) and received[at] == _HANDSHAKE:
        size = int.from_bytes(received[at + 3 : at + 5])
        flight += received[at + 5 : at + 5 + size]
        at += 5 + size
    types: list[int] = []
    at = 0
    while at + 4 <= len(flight):
        types.append(flight[at])
        at += 4 + int.from_bytes(flight[at + 1 : at + 4])
    return types


def _socket(server: _Server, until: float) -> socket.socket:
    made = connect_tcp(server.endpoint, min(until, time.monotonic() + _CONNECT_S))
    made.settimeout(_remaining_s(until))
    return made


def _remaining_s(until: float) -> float:
    """Raises TimeoutError."""
    remaining_s = until - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    return remaining_s


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
