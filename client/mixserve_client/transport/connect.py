"""The transports of a client, as its options say."""

from mixserve_client.options import ConnectOptions
from mixserve_client.transport.base import Transport
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport


def transports_of(options: ConnectOptions) -> list[Transport]:
    """One for each server; none connects before its first call."""
    transports: list[Transport] = [GrpcTransport(address) for address in options.addresses]
    if options.shared_memory is False:
        return transports
    folder = DEFAULT_FOLDER if options.shared_memory is True else options.shared_memory
    return [SharedMemoryTransport(transport, folder) for transport in transports]
