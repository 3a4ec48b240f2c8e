"""How a client connects, as its options say."""

from functools import partial

from mixserve_client.options import ConnectOptions
from mixserve_client.transport.base import Transport
from mixserve_client.transport.bulk import BulkTransport
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport
from mixserve_client.transport.workers import WorkersTransport


def transports_of(options: ConnectOptions) -> list[Transport]:
    """One transport per server; each connects at its first call."""
    credentials = Credentials(options.tls_options, options.token_options)
    folder = DEFAULT_FOLDER if options.shared_memory is True else options.shared_memory
    open_one = partial(_open, credentials, folder, options.bulk)
    return [WorkersTransport(address, open_one) for address in options.addresses]


def _open(credentials: Credentials, folder: str | bool, has_bulk: bool, target: str) -> Transport:
    """The transport to one process, through shared memory if it has a `folder`."""
    transport: Transport = GrpcTransport(target, credentials)
    bulk = None
    if has_bulk:
        transport = bulk = BulkTransport(transport, target, credentials)
    return SharedMemoryTransport(transport, folder, bulk) if isinstance(folder, str) else transport
