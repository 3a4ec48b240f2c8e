"""What a server offers <-> bytes."""

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from mixserve_client.errors import CorruptReply
from mixserve_client.wire._generated import mix_pb2


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """`shared_memory` is the path of the Unix socket where memory is handed in, empty where none is taken."""

    shared_memory: str = ""


def encode_server(description: ServerDescription) -> bytes:
    """The Server message."""
    return mix_pb2.Server(shared_memory=description.shared_memory).SerializeToString()


def decode_server(data: bytes) -> ServerDescription:
    """The description in `data`. Raises CorruptReply."""
    try:
        return ServerDescription(mix_pb2.Server.FromString(data).shared_memory)
    except DecodeError as error:
        raise CorruptReply(f"the server's description of {len(data)} bytes cannot be read: {error}") from error
