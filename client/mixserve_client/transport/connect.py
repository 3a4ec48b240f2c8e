"""How a client connects, as its options say."""

from functools import partial

from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.options import ConnectOptions
from mixserve_client.schema.addresses import FleetAddress, fleet_of
from mixserve_client.transport.base import Transport
from mixserve_client.transport.bulk import OPEN_S, BulkTransport
from mixserve_client.transport.checksums import ChecksumTransport
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.names import DnsLookUp, NameTransport, name_in
from mixserve_client.transport.ray_controller import RayController
from mixserve_client.transport.shared_memory import SharedMemoryTransport
from mixserve_client.transport.told_fleet import AnyOfFleet, ToldLookUp, ask_replica
from mixserve_client.transport.workers import PATIENCE_S, WorkersTransport

_HASTE = 0.4


def transports_of(options: ConnectOptions, figures: RequestFigures) -> list[Transport]:
    """One transport per address; each connects at its first call, and counts its connections in `figures`."""
    credentials = Credentials(options.tls_options, options.token_options)
    folder = DEFAULT_FOLDER if options.shared_memory is True else options.shared_memory
    # Who asks another replica after a third of a second does not wait longer than that for a better way to one.
    haste = _HASTE if options.hedge else 1.0
    open_as = partial(_open, options, figures, folder, OPEN_S * haste)

    def server(credentials: Credentials, target: str) -> Transport:
        return WorkersTransport(target, partial(open_as, credentials), PATIENCE_S * haste)

    def replicas(target: str, fleet: FleetAddress) -> Transport:
        open_at = partial(server, credentials)
        if fleet.replicas:
            as_one = AnyOfFleet(target, lambda: fleet.replicas, open_at)
            return NameTransport(target, ToldLookUp(partial(ask_replica, as_one)), as_one, open_at)
        controller = RayController(fleet)
        as_one = AnyOfFleet(target, lambda: controller().addresses, open_at)
        return NameTransport(target, ToldLookUp(controller), as_one, open_at)

    def at(target: str) -> Transport:
        if (fleet := fleet_of(target)) is not None:
            return replicas(target, fleet)
        as_one, name = server(credentials, target), name_in(target)
        if name is None:
            return as_one
        return NameTransport(target, DnsLookUp(name), as_one, partial(server, credentials.of(name.host)))

    return [at(address) for address in options.addresses]


def _open(
    options: ConnectOptions,
    figures: RequestFigures,
    folder: str | bool,
    open_s: float,
    credentials: Credentials,
    target: str,
) -> Transport:
    """The transport to one process, through shared memory if it has a `folder`."""
    transport: Transport = GrpcTransport(target, credentials, figures)
    bulk = None
    if options.bulk:
        transport = bulk = BulkTransport(
            transport, target, credentials, open_s, checksum=bool(options.checksum), figures=figures
        )
    if options.checksum:
        transport = ChecksumTransport(transport)
    return SharedMemoryTransport(transport, folder, bulk, figures) if isinstance(folder, str) else transport
