"""A reader's weight schedules <-> bytes."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from mixserve_client.errors import CorruptReply, InvalidRequest
from mixserve_client.schema.schedule import DefinedSchedule, ScheduleEntry, ScheduleRequest
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.reply import parse_reply
from mixserve_client.wire.request import unreadable_request

_MOST_ENTRIES = 1 << 16


def entry_message(entry: ScheduleEntry) -> mix_pb2.ScheduleEntry:
    """The ScheduleEntry message."""
    return mix_pb2.ScheduleEntry(start=entry.start, weights=entry.weights)


def entry_of(message: mix_pb2.ScheduleEntry) -> ScheduleEntry:
    """The entry in a message."""
    return ScheduleEntry(message.start, tuple(message.weights))


def encode_schedule_request(request: ScheduleRequest) -> bytes:
    """The DefineScheduleRequest message."""
    return mix_pb2.DefineScheduleRequest(
        mixture=request.mixture,
        expected_fingerprint=request.expected_fingerprint,
        parent=request.parent,
        entries=map(entry_message, request.entries),
    ).SerializeToString()


def decode_schedule_request(data: bytes) -> ScheduleRequest:
    """The request in `data`; the caller checks that it suits the mixture. Raises InvalidRequest."""
    try:
        message = mix_pb2.DefineScheduleRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("DefineScheduleRequest", data) from error
    if len(message.entries) > _MOST_ENTRIES:
        raise InvalidRequest(f"one request may have at most {_MOST_ENTRIES} entries, got {len(message.entries)}")
    entries: Sequence[ScheduleEntry] = [entry_of(entry) for entry in message.entries]
    return ScheduleRequest(message.mixture, message.expected_fingerprint, message.parent, tuple(entries))


def encode_schedule(schedule: DefinedSchedule) -> bytes:
    """The Schedule message."""
    return mix_pb2.Schedule(id=schedule.id, end=schedule.end or 0).SerializeToString()


def decode_schedule(data: bytes) -> DefinedSchedule:
    """The schedule in `data`. Raises CorruptReply."""
    message = parse_reply(mix_pb2.Schedule, data)
    if message.end < 0:
        raise CorruptReply(f"the end of the server's schedule must be a position, got {message.end}")
    return DefinedSchedule(message.id, message.end or None)
