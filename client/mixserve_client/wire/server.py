"""Descriptions of servers <-> bytes."""

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.server import BulkOffer, ServerDescription
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.bulk import TOKEN_BYTES
from mixserve_client.wire.reply import parse_reply

_PATH_LENGTH = 4096
_HOST_LENGTH = 253  # of a name in DNS
_PORTS = 1 << 16


def encode_server(description: ServerDescription) -> bytes:
    """The Server message."""
    message = mix_pb2.Server(shared_memory=description.shared_memory)
    if description.bulk is not None:
        message.bulk_host, message.bulk_port, message.bulk_token = (
            description.bulk.host,
            description.bulk.port,
            description.bulk.token,
        )
    return message.SerializeToString()


def decode_server(data: bytes) -> ServerDescription:
    """The description in `data`. Raises CorruptReply."""
    message = parse_reply(mix_pb2.Server, data)
    path, host, port = message.shared_memory, message.bulk_host, message.bulk_port
    if len(path) > _PATH_LENGTH or "\0" in path:
        raise CorruptReply(f"the server's socket for shared memory must be a path, got {path!r:.100}")
    if not message.bulk_token:
        return ServerDescription(path)
    if len(message.bulk_token) != TOKEN_BYTES or not 0 <= port < _PORTS or len(host) > _HOST_LENGTH or "\0" in host:
        raise CorruptReply(f"the server's offer of a bulk channel cannot be used: host {host!r:.100}, port {port}")
    return ServerDescription(path, BulkOffer(host, port, message.bulk_token))
