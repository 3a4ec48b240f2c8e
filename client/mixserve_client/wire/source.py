"""Sources whose records are read by their ids <-> bytes."""

import re

from google.protobuf.message import DecodeError

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.checks import check_mixture, check_source
from mixserve_client.schema.records import RecordSource
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.mixture import field_messages, read_fields
from mixserve_client.wire.reply import parse_reply
from mixserve_client.wire.request import unreadable_request

_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.ASCII)


def encode_source_request(mixture: str, source: str) -> bytes:
    """The GetSourceRequest message. Raises InvalidRequest unless both are printable text."""
    return mix_pb2.GetSourceRequest(mixture=check_mixture(mixture), source=check_source(source)).SerializeToString()


def decode_source_request(data: bytes) -> tuple[str, str]:
    """The names of mixture and source in `data`, each empty if there is none. Raises InvalidRequest."""
    try:
        message = mix_pb2.GetSourceRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("GetSourceRequest", data) from error
    return message.mixture, message.source


def encode_source(source: RecordSource) -> bytes:
    """The RecordSource message."""
    return mix_pb2.RecordSource(
        mixture=source.mixture,
        name=source.name,
        fields=field_messages(source.fields),
        length=source.length,
        content=source.content,
        fingerprint=source.fingerprint,
        content_sampled=source.content_sampled,
    ).SerializeToString()


def decode_source(data: bytes) -> RecordSource:
    """The source in a RecordSource message. Raises CorruptReply if it describes no source that can exist."""
    message = parse_reply(mix_pb2.RecordSource, data)
    try:
        if not message.mixture or not _FINGERPRINT.fullmatch(message.fingerprint):
            raise ValueError(f"it must have a mixture and a fingerprint, got {message.fingerprint!r:.100}")
        if message.length < 0:
            raise ValueError(f"its length must be at least 0, got {message.length}")
        fields = read_fields(message.fields)
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's description of the source is invalid: {error!s:.500}") from error
    return RecordSource(
        message.mixture,
        message.name,
        fields,
        message.length,
        message.content,
        message.fingerprint,
        message.content_sampled,
    )
