"""The options of a server's gRPC connections."""

from typing import Any

from mixserve.descriptors import connection_limit
from mixserve.limits import ServerLimits
from mixserve_client.wire.session import REQUEST_BYTES_LIMIT

AGE_GRACE_S = 60.0

# Clients send keepalive pings every 5 s, and older ones every 20 s; gRPC sends one early after a change. After three
# pings that come sooner than this one after another, with no data sent in between, gRPC ends the connection.
# Without `permit`, two hours would have to lie between the pings of a connection without calls: a ping that was sent
# just when the last call ended would count as one too many.
_PINGS = [
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
# A client that is gone without a word (its host, or the network) answers no ping: its connection, and with it its calls
# and streams, end within 30 s. `0`: gRPC would stop to ask after two pings to a reader that takes nothing. The
# timeout of keepalive is the kernel's (TCP_USER_TIMEOUT): it ends connections to hosts that are gone. That of pings is
# for processes that are stopped; without it, grpcio 1.85 waits 10 s longer.
_OWN_PINGS = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]
KEEPALIVE = [*_PINGS, *_OWN_PINGS]


def options_of(limits: ServerLimits, *, shares_port: bool) -> list[tuple[str, Any]]:
    """The options of a server; with `shares_port`, other processes may listen at its port too."""
    options = [
        *KEEPALIVE,
        # gRPC has one limit for all methods. Only states and statistics come near it.
        ("grpc.max_receive_message_length", REQUEST_BYTES_LIMIT),
        # Strangers must not keep connections that say nothing (gRPC's limit is 120 s), nor open calls without end.
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_allowed_incoming_connections", connection_limit()),
        # More calls wait at the client, without a word: so this is for those who ignore that streams are refused, and
        # for those who open calls and reset them. It leaves as many single calls as there may be streams.
        ("grpc.max_concurrent_streams", 2 * limits.streams_per_connection),
        # A port in use is an error: gRPC's default would share it with the other server. Workers share theirs.
        ("grpc.so_reuseport", int(shares_port)),
    ]
    if limits.max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", _milliseconds(limits.max_connection_age_s)))
        options.append(("grpc.max_connection_age_grace_ms", _milliseconds(AGE_GRACE_S)))
    return options


def _milliseconds(seconds: float) -> int:
    return max(1, min((1 << 31) - 1, round(seconds * 1000)))
