"""Requests and replies of sessions <-> bytes."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from mixserve_client.errors import CorruptReply, InvalidRequest
from mixserve_client.schema.sessions import (
    HELD_LIMIT,
    HOLDER_LIMIT,
    CallReply,
    CallRequest,
    HeldSession,
    OpenedSession,
    OpenRequest,
    SessionDescription,
    check_name,
    is_lease,
)
from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.frame import fields
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES, parse_reply
from mixserve_client.wire.request import unreadable_request
from mixserve_client.wire.value import STATE_LEVELS, value_message, value_of
from mixserve_client.wire.value_count import check_values

REQUEST_BYTES_LIMIT = 16 << 20
# In the arguments of one call; each value takes about a hundred bytes of memory, even if it took two on the wire.
_VALUES_LIMIT = 1 << 18
# Arguments up to here cost little, however many values they hold.
FEW_BYTES = 128 << 10
_CALL_FIELDS = 64  # a call has six
_SEQUENCE_LIMIT = (1 << 63) - 1
_SESSIONS_LIMIT = 1 << 20
# Answers of sessions may be any tree of values. What is larger is looked at before protobuf makes an object of each.
_COUNTED_FROM = 2 << 20

M = TypeVar("M", bound=Message)


def encode_open_request(request: OpenRequest) -> bytes:
    """The OpenSessionRequest message."""
    return state_pb2.OpenSessionRequest(
        mixture=request.mixture,
        expected_fingerprint=request.expected_fingerprint,
        session=request.name,
        lease=request.lease,
        holder=request.holder[:HOLDER_LIMIT],
        fresh=request.fresh,
        take_over=request.take_over,
        ignore_fingerprint=not request.strict,
    ).SerializeToString()


def decode_open_request(data: bytes) -> OpenRequest:
    """The request in `data`. Raises InvalidRequest."""
    message = _parse_request(state_pb2.OpenSessionRequest, data)
    _check_lease(message.lease)
    if len(message.holder) > HOLDER_LIMIT or not message.holder.isprintable():
        raise InvalidRequest(f"holder must be at most {HOLDER_LIMIT} printable characters, got {message.holder!r:.300}")
    return OpenRequest(
        message.mixture,
        check_name("session", message.session),
        message.lease,
        message.holder,
        message.fresh,
        message.take_over,
        not message.ignore_fingerprint,
        message.expected_fingerprint,
    )


def encode_opened(session: OpenedSession) -> bytes:
    """The Session message."""
    return state_pb2.Session(
        ttl_s=session.ttl_s,
        sequence=session.sequence,
        index=session.index,
        epoch=session.epoch,
        resumed=session.resumed,
    ).SerializeToString()


def decode_opened(data: bytes) -> OpenedSession:
    """The opened session in `data`. Raises CorruptReply."""
    message = parse_reply(state_pb2.Session, data)
    if not 0 < message.ttl_s < math.inf:
        raise CorruptReply(f"ttl_s of the server's session must be a positive number of seconds, got {message.ttl_s}")
    # Below the limit, since the next call must have the next number.
    if not (0 <= message.sequence < _SEQUENCE_LIMIT and message.index >= 0 and message.epoch >= 0):
        raise CorruptReply(
            f"sequence, index and epoch of the server's session must be at least 0, and sequence below 2^63 - 1, got "
            f"{message.sequence}, {message.index} and {message.epoch}"
        )
    return OpenedSession(message.ttl_s, message.sequence, message.index, message.epoch, message.resumed)


def encode_held(sessions: Iterable[HeldSession]) -> bytes:
    """The HeldSessions message."""
    messages = (state_pb2.HeldSession(mixture=mixture, session=name, lease=lease) for mixture, name, lease in sessions)
    return state_pb2.HeldSessions(sessions=messages).SerializeToString()


def decode_held(data: bytes) -> tuple[HeldSession, ...]:
    """The sessions in `data`, each once. Raises InvalidRequest."""
    message = _parse_request(state_pb2.HeldSessions, data)
    if len(message.sessions) > HELD_LIMIT:
        raise InvalidRequest(
            f"one request may name up to {HELD_LIMIT} sessions, got {len(message.sessions)}; send several requests"
        )
    held = (
        HeldSession(held.mixture, check_name("session", held.session), _check_lease(held.lease))
        for held in message.sessions
    )
    return tuple(dict.fromkeys(held))


def decode_list_request(data: bytes) -> str:
    """The mixture whose sessions are requested, empty for all mixtures. Raises InvalidRequest."""
    return _parse_request(state_pb2.ListSessionsRequest, data).mixture


def encode_list_request(mixture: str) -> bytes:
    """The ListSessionsRequest message."""
    return state_pb2.ListSessionsRequest(mixture=mixture).SerializeToString()


def encode_sessions(sessions: Iterable[SessionDescription]) -> bytes:
    """The Sessions message."""
    messages = (
        state_pb2.SessionDescription(
            mixture=session.mixture,
            session=session.name,
            holder=session.holder,
            idle_s=session.idle_s,
            index=session.index,
            epoch=session.epoch,
            checkpoints=session.checkpoints,
            damaged=session.damaged,
            saved_only=session.saved_only,
        )
        for session in sessions
    )
    return state_pb2.Sessions(sessions=messages).SerializeToString()


def decode_sessions(data: bytes) -> tuple[SessionDescription, ...]:
    """The sessions in `data`. Raises CorruptReply."""
    messages = parse_reply(state_pb2.Sessions, data, LARGEST_REPLY_BYTES).sessions
    if len(messages) > _SESSIONS_LIMIT:
        raise CorruptReply(f"a server has at most {_SESSIONS_LIMIT} sessions, got {len(messages)}")
    # By mixture and name. A message of two bytes takes a microsecond or two, so the first that cannot be ends it.
    found = dict[tuple[str, str], SessionDescription]()
    for message in messages:
        key = mixture, name = message.mixture, message.session
        if key in found or not mixture or not name:
            raise CorruptReply(
                "sessions have a mixture and a name, and each comes once; got "
                f"{name!r:.100} of {mixture!r:.100}{' twice' if key in found else ''}"
            )
        found[key] = SessionDescription(
            mixture,
            name,
            message.holder,
            message.idle_s,
            message.index,
            message.epoch,
            tuple(message.checkpoints),
            message.damaged,
            message.saved_only,
        )
    return tuple(found.values())


def encode_call_request(request: CallRequest) -> bytes:
    """The CallSessionRequest message. Raises InvalidRequest for arguments that cannot be encoded, or are too large."""
    try:
        arguments = value_message(request.arguments, more_levels=_more_levels(request.operation))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{request.operation}: {error}") from error
    data = state_pb2.CallSessionRequest(
        mixture=request.mixture,
        session=request.name,
        lease=request.lease,
        sequence=request.sequence,
        operation=request.operation,
        arguments=arguments,
    ).SerializeToString()
    if len(data) > REQUEST_BYTES_LIMIT:
        raise InvalidRequest(
            f"{request.operation}: the request must have at most {REQUEST_BYTES_LIMIT} bytes, got {len(data)}"
        )
    return data


@dataclass(frozen=True, slots=True)
class UnreadCall:
    """A CallRequest whose arguments are a Value message still, in one part or several of the request's own bytes."""

    mixture: str
    name: str
    operation: str
    lease: str
    sequence: int
    arguments: tuple[memoryview, ...]

    @property
    def arguments_bytes(self) -> int:
        """The size of the arguments."""
        return sum(map(len, self.arguments))

    def read(self) -> CallRequest:
        """The request. Raises InvalidRequest."""
        try:
            arguments: Any = {}
            if self.arguments:
                # Messages that come in several parts are merged, and so are parts that are joined.
                arguments = _arguments(b"".join(self.arguments), _more_levels(self.operation))
        except (ValueError, DecodeError) as error:
            raise InvalidRequest(f"arguments cannot be read: {error}") from error
        if not isinstance(arguments, dict):
            raise InvalidRequest(f"arguments must be a dict, got {type(arguments).__name__}")
        by_name = cast(dict[str, Any], arguments)
        return CallRequest(self.mixture, self.name, self.operation, by_name, self.lease, self.sequence)


def decode_call(data: bytes) -> UnreadCall:
    """The request in `data`, of which the arguments are not looked at. Raises InvalidRequest."""
    texts = {1: "", 2: "", 3: "", 5: ""}
    sequence = 0
    arguments = list[memoryview]()
    try:
        for number, value in fields(memoryview(data), _CALL_FIELDS):
            if isinstance(value, int):
                sequence = value if number == 4 else sequence
            elif number in texts:
                texts[number] = str(value, "utf-8")
            elif number == 6:
                arguments.append(value)
    except ValueError as error:
        raise unreadable_request("CallSessionRequest", data) from error
    mixture, name, lease, operation = texts.values()
    if lease:
        _check_lease(lease)
    sequence = sequence - (1 << 64) if sequence >> 63 else sequence
    if sequence < 0 or (sequence and not lease):
        raise InvalidRequest(f"sequence must be 0 without a lease, and at least 0 with one; got {sequence}")
    return UnreadCall(mixture, check_name("session", name), operation, lease, sequence, tuple(arguments))


def decode_call_request(data: bytes) -> CallRequest:
    """The request in `data`, with its arguments. Raises InvalidRequest."""
    return decode_call(data).read()


def encode_call_reply(reply: CallReply) -> bytes:
    """The CallSessionReply message. Raises TypeError or ValueError for a value that cannot be encoded."""
    return state_pb2.CallSessionReply(
        value=value_message(reply.value, more_levels=STATE_LEVELS),
        ended=reply.ended,
        index=reply.index,
        epoch=reply.epoch,
    ).SerializeToString()


def decode_call_reply(data: bytes) -> CallReply:
    """The reply in `data`. Raises CorruptReply."""
    message = parse_reply(state_pb2.CallSessionReply, data, LARGEST_REPLY_BYTES, counted_from=_COUNTED_FROM)
    if message.index < 0 or message.epoch < 0:
        raise CorruptReply(f"index and epoch must be at least 0, got {message.index} and {message.epoch}")
    try:
        value = value_of(message.value, more_levels=STATE_LEVELS)
        return CallReply(value, message.ended, message.index, message.epoch)
    except ValueError as error:
        raise CorruptReply(f"the server's answer cannot be read: {error!s:.500}") from error


def _arguments(data: bytes, more_levels: int) -> Any:
    """The tree in a Value message. Raises ValueError and DecodeError."""
    if len(data) > FEW_BYTES:
        check_values(data, _VALUES_LIMIT)
    return value_of(state_pb2.Value.FromString(data), more_levels=more_levels, most_values=_VALUES_LIMIT)


def _check_lease(lease: str) -> str:
    """`lease` itself. Raises InvalidRequest unless it is 32 hexadecimal digits."""
    if not is_lease(lease):
        raise InvalidRequest(f"lease must be 32 hexadecimal digits, got {lease!r:.100}")
    return lease


def _more_levels(operation: str) -> int:
    """How many levels the arguments may have beyond those of a value: a state contains statistics of full depth."""
    return STATE_LEVELS if operation == "set_state" else 0


def _parse_request(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise unreadable_request(kind.DESCRIPTOR.name, data) from error
