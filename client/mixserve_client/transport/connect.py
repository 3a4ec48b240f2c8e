"""How a client connects, as its options say."""

from mixserve_client.options import ConnectOptions
from mixserve_client.transport.base import Transport
from mixserve_client.transport.bulk import BulkTransport
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport


def transports_of(options: ConnectOptions) -> list[Transport]:
    """One transport per server; each connects at its first call."""
    credentials = Credentials(options.tls_options, options.token_options)
    return [_transport(address, options, credentials) for address in options.addresses]


def _transport(address: str, options: ConnectOptions, credentials: Credentials) -> Transport:
    transport: Transport = GrpcTransport(address, credentials)
    bulk = None
    if options.bulk:
        transport = bulk = BulkTransport(transport, address, credentials)
    if options.shared_memory is False:
        return transport
    folder = DEFAULT_FOLDER if options.shared_memory is True else options.shared_memory
    return SharedMemoryTransport(transport, folder, bulk)
