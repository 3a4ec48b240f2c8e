"""Descriptions of servers <-> bytes."""

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.server import ServerDescription
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.reply import parse_reply

_PATH_LENGTH = 4096


def encode_server(description: ServerDescription) -> bytes:
    """The Server message."""
    return mix_pb2.Server(shared_memory=description.shared_memory).SerializeToString()


def decode_server(data: bytes) -> ServerDescription:
    """The description in `data`. Raises CorruptReply."""
    path = parse_reply(mix_pb2.Server, data).shared_memory
    if len(path) > _PATH_LENGTH or "\0" in path:
        raise CorruptReply(f"the server's socket for shared memory must be a path, got {path!r:.100}")
    return ServerDescription(path)
