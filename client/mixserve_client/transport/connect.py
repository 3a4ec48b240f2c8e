"""How a client connects, as its options say."""

import grpc

from mixserve_client.options import ConnectOptions
from mixserve_client.transport.base import Transport
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES

# The limit on replies admits one row of the largest size; what reads a smaller kind of reply checks its own limit.
# gRPC pings no peer by default, so a call to one that froze, or whose host is gone, would wait forever.
_OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also the time limit of one attempt to connect
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),  # gRPC obeys http_proxy by default; web proxies seldom reach data servers
]


def plain_channel(target: str) -> grpc.Channel:
    """An unencrypted channel that connects at its first call."""
    return grpc.insecure_channel(target, options=_OPTIONS)


def transports_of(options: ConnectOptions) -> list[Transport]:
    """One transport per server; each connects at its first call."""
    transports: list[Transport] = [GrpcTransport(address, plain_channel) for address in options.addresses]
    if options.shared_memory is False:
        return transports
    folder = DEFAULT_FOLDER if options.shared_memory is True else options.shared_memory
    return [SharedMemoryTransport(transport, folder) for transport in transports]
