"""Descriptions of servers, and requests for them <-> bytes."""

import math

from google.protobuf.message import DecodeError

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.addresses import is_host_and_port
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.server import BulkOffer, FleetList, Load, ServerDescription, ServerRequest
from mixserve_client.schema.zone import is_zone
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.bulk import TOKEN_BYTES
from mixserve_client.wire.reply import parse_reply
from mixserve_client.wire.request import unreadable_request
from mixserve_client.wire.sender import sender_message, sender_of

_PATH_LENGTH = 4096
_HOST_LENGTH = 253  # of a name in DNS
_WORKERS_LIMIT, _REPLICAS_LIMIT, _ADDRESS_LENGTH, _PORTS = 1024, 10_000, 300, 1 << 16


def ask_load(reader: Sender | None = None, *, leaves: bool = False) -> bytes:
    """The request for the load of a server, without an offer of a bulk channel, which would be kept for a while.

    It says that `reader` comes to that server, or `leaves` it.
    """
    message = None if reader is None else sender_message(reader)
    return mix_pb2.GetServerRequest(without_bulk=True, reader=message, leaves=leaves).SerializeToString()


def decode_server_request(data: bytes) -> ServerRequest:
    """What the caller of GetServer wants, and says. Raises InvalidRequest."""
    try:
        message = mix_pb2.GetServerRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("GetServerRequest", data) from error
    reader = sender_of(message.reader) if message.HasField("reader") else None
    return ServerRequest(message.without_bulk, reader, message.leaves)


def encode_server(description: ServerDescription) -> bytes:
    """The Server message."""
    message = mix_pb2.Server(
        shared_memory=description.shared_memory,
        workers=description.workers,
        checksums=description.checksums,
        zone=description.zone,
        replicas=description.fleet.addresses,
        replicas_version=description.fleet.version,
    )
    if description.bulk is not None:
        message.bulk_host, message.bulk_port, message.bulk_token = (
            description.bulk.host,
            description.bulk.port,
            description.bulk.token,
        )
    if description.load is not None:
        message.readers, message.reply_s = description.load
    return message.SerializeToString()


def decode_server(data: bytes) -> ServerDescription:
    """The description in `data`. Raises CorruptReply."""
    message = parse_reply(mix_pb2.Server, data)
    path = message.shared_memory
    if len(path) > _PATH_LENGTH or "\0" in path:
        raise CorruptReply(f"the server's socket for shared memory must be a path, got {path!r:.100}")
    if len(message.workers) > _WORKERS_LIMIT:
        raise CorruptReply(f"a server has at most {_WORKERS_LIMIT} workers, got {len(message.workers)}")
    workers = tuple(_check_worker(address) for address in message.workers)
    if message.zone and not is_zone(message.zone):
        raise CorruptReply(f"the zone of a server must be a short name, got {message.zone!r:.100}")
    bulk = _check_bulk(message) if message.bulk_token else None
    return ServerDescription(
        path, bulk, workers, message.checksums, message.zone, _load(message), _check_fleet(message)
    )


def _check_bulk(message: mix_pb2.Server) -> BulkOffer:
    """The offer of bulk channels. Raises CorruptReply."""
    host, port, token = message.bulk_host, message.bulk_port, message.bulk_token
    if len(token) != TOKEN_BYTES or not 0 <= port < _PORTS or len(host) > _HOST_LENGTH or "\0" in host:
        raise CorruptReply(f"the server's offer of a bulk channel cannot be used: host {host!r:.100}, port {port}")
    return BulkOffer(host, port, token)


def _load(message: mix_pb2.Server) -> Load | None:
    """The load; None if it is not told, or makes no sense: no reply depends on it."""
    if not message.HasField("readers") or message.readers < 0 or not 0 <= message.reply_s < math.inf:
        return None
    return Load(message.readers, message.reply_s)


def _check_fleet(message: mix_pb2.Server) -> FleetList:
    """The list of replicas. Raises CorruptReply."""
    if len(message.replicas) > _REPLICAS_LIMIT or message.replicas_version < 0:
        raise CorruptReply(f"a list of replicas has up to {_REPLICAS_LIMIT:,} of them, got {len(message.replicas):,}")
    for address in message.replicas:
        if len(address) > _ADDRESS_LENGTH or not is_host_and_port(address):
            raise CorruptReply(f"the address of a replica must be host:port, got {address!r:.100}")
    return FleetList(message.replicas_version, tuple(message.replicas))


def _check_worker(address: str) -> str:
    """`address` itself. Raises CorruptReply unless it is `host:port` or `:port`."""
    host, colon, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < _PORTS
    if not (colon and is_port and len(host) <= _ADDRESS_LENGTH and host.isprintable()) or set(host) & set(" /,"):
        raise CorruptReply(f"the address of a server's worker must be host:port or :port, got {address!r:.100}")
    return address
