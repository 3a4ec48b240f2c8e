"""The decoders of both ends: of requests, replies, frames of bulk channels, errors, states and certificates."""

import json
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mixserve_client.errors import CorruptReply, InvalidRequest, OutOfRange, Overloaded, UnknownMixture
from mixserve_client.reading.source_list import describe_sources, read_sources
from mixserve_client.reading.state import ReaderState
from mixserve_client.schema.certificate import decode as decode_certificate
from mixserve_client.schema.certificate import key_kind
from mixserve_client.schema.fields import Content, Field
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.schema.records import RecordSource
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, RecordsRequest, Sender, StreamRequest
from mixserve_client.schema.schedule import DefinedSchedule, ScheduleEntry, ScheduleRequest
from mixserve_client.schema.server import BulkOffer, FleetList, Load, ServerDescription
from mixserve_client.schema.sessions import (
    CallReply,
    CallRequest,
    HeldSession,
    OpenedSession,
    OpenRequest,
    SessionDescription,
)
from mixserve_client.schema.stats import Metric, MetricKind, Sample, counter, gauge
from mixserve_client.wire import (
    batch,
    bulk,
    checksum,
    error,
    health,
    methods,
    mixture,
    request,
    schedule,
    server,
    session,
    source,
    standard_request,
    stats,
    value,
)
from tests.fuzz.handshake_target import HANDSHAKE
from tests.fuzz.target import Target

FINGERPRINT = "ab" * 32
FIELDS = (
    Field("tokens", np.dtype(np.uint16), (5,)),
    Field("deep/id", np.dtype(np.int64), ()),
    Field("none", np.dtype(np.float32), (0, 4)),
)
_KEY = key_words(7)
_LEASE = "0f" * 16
_CORRUPT, _INVALID = (CorruptReply,), (InvalidRequest, OutOfRange)
_ERROR = b"RESOURCE_EXHAUSTED\0busy\0mixserve-error\0Overloaded\0mixserve-retry-after-s\0001.500"
_VALUE: dict[str, Any] = {
    "a": [1, -2.5, "x", None, True, (1, 2)],
    3: {"array": np.arange(6, dtype=np.int16).reshape(2, 3), "empty": {}},
}


def filled_batch(size: int) -> bytes:
    memory = np.zeros(batch.batch_bytes(FINGERPRINT, FIELDS, size), np.uint8)
    for array in batch.frame_batch(memory, FINGERPRINT, FIELDS, size).values():
        array[...] = 3
    return memory.tobytes()


def _description() -> MixtureDescription:
    sources = (SourceDescription("web", 1000, 0.75, 2000, False, True), SourceDescription("code", 10, 0.25, None))
    return MixtureDescription(
        name="train",
        fingerprint=FINGERPRINT,
        fields=FIELDS,
        sources=sources,
        limits=Limits(4096, 1 << 22),
        placement="host",
        sampling="epoch",
        block_size=2048,
        stop="never",
        end=123456,
        schedule=(ScheduleEntry(0, (0.5, 0.5)), ScheduleEntry(4096, (1.0, 0.0))),
        leaves=("web", "code"),
    )


def _metrics() -> list[Metric]:
    buckets = Sample(("train",), 1.5, (1, 0, 2))
    return [
        gauge("mixserve_serving", "1 while it serves.", {(): 1}),
        counter("mixserve_rows_total", "Rows.", {("train", "web"): 5, ("train", "code"): 7}, ("mixture", "source")),
        Metric("mixserve_wait_seconds", "Waits.", MetricKind.HISTOGRAM, ("mixture",), (buckets,), (0.1, 1.0)),
    ]


def _requests() -> list[bytes]:
    sender = Sender("run-17 ü", 3, 0.25, f"00-{'ab' * 16}-{'cd' * 8}-01")
    made = BatchRequest("train", 5, 7, _KEY, FINGERPRINT, "cd" * 32, Content.RECORDS_AND_PROVENANCE, (), sender)
    return [request.encode_batch_request(made), request.with_slots(request.encode_batch_request(made), [1, 1 << 62])]


def _streams() -> list[bytes]:
    made = request.encode_stream_request(StreamRequest(BatchRequest("train", 5, 7, _KEY), 14, 100, 7))
    return [made, request.with_slots(made, [5, 6])]


def _positions() -> list[bytes]:
    wanted = np.array([5, 1, 1 << 40, 5])
    return [request.encode_positions_request(PositionsRequest("train", wanted, _KEY, 2, FINGERPRINT))]


def _sources() -> list[bytes]:
    return [source.encode_source(RecordSource("train", "web", FIELDS, 1 << 40, b"content", FINGERPRINT, True))]


def _records() -> list[bytes]:
    wanted = RecordsRequest("train", "web", np.array([5, 1, 1 << 40, 5]), 2, FINGERPRINT, 3)
    return [request.encode_records_request(wanted), request.with_slots(request.encode_records_request(wanted), [7])]


def _calls() -> list[bytes]:
    made = [
        CallRequest("train", "run-17", "next_batch", {"size": 5}, _LEASE, 3),
        CallRequest("train", "run-17", "set_statistics", {"statistics": _VALUE}, _LEASE, 4),
        CallRequest("train", "run-17", "get_state"),
    ]
    return [session.encode_call_request(one) for one in made]


def _bulk_errors() -> list[bytes]:
    errors = [Overloaded("busy", retry_after_s=2.5), UnknownMixture("no mixture 'x'")]
    return [bulk.encode_bulk_error(3, one)[bulk.HEADER_BYTES :] for one in errors]


def _read_error(data: bytes) -> object:
    code, text, *more = (data.decode(errors="replace").split("\0") + ["", ""])[:12]
    pairs = list(zip(more[::2], more[1::2], strict=False))
    return error.error_of(code, text, [*pairs, ("binary-bin", data)])


def _read_certificate(data: bytes) -> object:
    return decode_certificate(data), key_kind(data)


def _read_state(data: bytes) -> object:
    """A state that a trainer has read as JSON."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return ReaderState.of(given)


def _states() -> list[bytes]:
    sources = describe_sources(_description().sources)
    whole = {
        "version": 1,
        "mixture": "train",
        "fingerprint": FINGERPRINT,
        "key": [0, 7],
        "position": 1024,
        "sources": sources,
        "schedule": [[0, [0.5, 0.5]], [4096, [1.0, 0.0]]],
        "skip": [[5, 10], [20, 30]],
        "worker": [1, 4],
        "read": True,
        "batch_size": 32,
        "short": None,
    }
    few = {name: whole[name] for name in ("version", "mixture", "fingerprint", "key", "position")}
    return [json.dumps(one).encode() for one in (whole, few)]


def _read_header(decode: Callable[[bytes], object], data: bytes) -> object:
    return decode(data[: bulk.HEADER_BYTES].ljust(bulk.HEADER_BYTES, b"\0"))  # the reader always has so many


def _der() -> list[bytes]:
    """A certificate's outline: as much of X.509 as the reader looks at."""

    def item(tag: int, *parts: bytes) -> bytes:
        content = b"".join(parts)
        size = bytes([len(content)]) if len(content) < 128 else struct.pack(">BH", 0x82, len(content))
        return bytes([tag]) + size + content

    name = item(0x30, item(0x31, item(0x30, item(6, b"\x55\x04\x03"), item(12, b"localhost"))))
    dates = item(0x30, item(0x17, b"000101000000Z"), item(0x17, b"900101000000Z"))
    key = item(0x30, item(0x30, item(6, bytes.fromhex("2a8648ce3d0201")), item(6, bytes.fromhex("2a8648ce3d030107"))))
    names = item(0x30, item(0x82, b"localhost"), item(0x87, bytes([127, 0, 0, 1])))
    extensions = item(0xA3, item(0x30, item(0x30, item(6, b"\x55\x1d\x11"), item(4, names))))
    algorithm = item(0x30, item(6, b"\x2a"))
    body = item(
        0x30, item(0xA0, item(2, b"\2")), item(2, b"\1"), algorithm, name, dates, name, key, extensions
    )  # fmt: skip
    return [item(0x30, body, algorithm, item(3, b"\0" * 8))]


def _open_reply(data: bytes) -> object:
    """A reply that passes is the one that was sent."""
    opened = bytes(checksum.open_reply(data, _TO))
    assert opened in _sealed_replies.messages, "a damaged reply has a right checksum"
    return opened


class _Sealed:
    """Replies with checksums."""

    def __init__(self) -> None:
        self.messages = (filled_batch(1), b"", server.encode_server(ServerDescription("/x")))

    def __call__(self) -> list[bytes]:
        return [checksum.seal_reply(message, _TO) for message in self.messages]


_TO = checksum.ReplyTo(7, 1)
_sealed_replies = _Sealed()


def _checked() -> list[Target]:
    """What has checksums."""
    bulk_errors = [
        bulk.encode_bulk_error(3, UnknownMixture("no"), is_checked=True)[bulk.HEADER_BYTES :],
    ]
    bulk_requests = [
        bulk.encode_bulk_request(1, methods.STREAM_BATCHES, _streams()[0], is_checked=True)[bulk.HEADER_BYTES :]
    ]
    headers = [bulk.encode_header(kind, 3, 0, is_checked=True) for kind in (bulk.Kind.REPLY, bulk.Kind.END)]
    return [
        Target("client: reply with a checksum", _open_reply, _CORRUPT, _sealed_replies),
        Target(
            "server: request with a checksum",
            checksum.open_request,
            (CorruptReply,),
            lambda: [checksum.seal_request(one)[0] for one in (b"", *_requests())],
        ),
        Target(
            "client: frame with a checksum",
            partial(_read_header, partial(bulk.decode_reply_header, is_checked=True)),
            _CORRUPT,
            lambda: headers,
        ),
        Target(
            "client: error with a checksum",
            partial(bulk.decode_bulk_error, is_checked=True),
            _CORRUPT,
            lambda: bulk_errors,
        ),
        Target(
            "server: request of a bulk channel with a checksum",
            partial(bulk.decode_bulk_request, is_checked=True),
            (InvalidRequest, CorruptReply),
            lambda: bulk_requests,
        ),
    ]


def _replies() -> list[Target]:
    sessions = [SessionDescription("train", name, "me", 1.5, 7, 1, ("a", "b")) for name in ("run-17", "x")]
    offers = [
        ServerDescription("/dev/shm/x/y.sock", BulkOffer("", 50052, bytes(32)), (":50053", "host:1")),
        ServerDescription(load=Load(3, 0.02), fleet=FleetList(7, ("host:1", "host:2"))),
    ]
    slots = [batch.encode_slot_reply(1 << 62, 4096), filled_batch(2)]
    seeds: dict[str, tuple[Callable[[bytes], object], Sequence[bytes]]] = {
        "batch": (batch.decode_batch, [filled_batch(1), filled_batch(9)]),
        "slot reply": (batch.decode_slot_reply, slots),
        "mixture": (mixture.decode_mixture, [mixture.encode_mixture(_description())]),
        "source": (source.decode_source, _sources()),
        "names": (mixture.decode_names, [mixture.encode_names(("a", "b"))]),
        "server": (server.decode_server, [server.encode_server(one) for one in offers]),
        "schedule": (schedule.decode_schedule, [schedule.encode_schedule(DefinedSchedule("ab" * 32, 5))]),
        "sessions": (session.decode_sessions, [session.encode_sessions(sessions)]),
        "statistics": (stats.decode_stats, [stats.encode_stats(_metrics())]),
        "opened session": (session.decode_opened, [session.encode_opened(OpenedSession(900, 3, 7, 1, True))]),
        "reply of a session": (session.decode_call_reply, [session.encode_call_reply(CallReply(_VALUE, True, 5, 1))]),
        "health": (health.decode_status, [b"\x08\x01"]),
        "error of a bulk channel": (bulk.decode_bulk_error, _bulk_errors()),
        "frame of a server": (
            partial(_read_header, bulk.decode_reply_header),
            [bulk.encode_header(kind, 3, 0) for kind in (bulk.Kind.REPLY, bulk.Kind.END, bulk.Kind.ERROR)],
        ),
    }
    found = [Target(f"client: {name}", decode, _CORRUPT, partial(list, of)) for name, (decode, of) in seeds.items()]
    known = partial(batch.view_batch, fingerprint=FINGERPRINT, fields=FIELDS, size=2)
    return [
        *found,
        Target("client: batch as expected", known, (), lambda: [filled_batch(2)]),
        Target("client: metadata of an error", _read_error, (), lambda: [_ERROR, b"INTERNAL\0x"], largest=64 << 10),
        Target("client: state", _read_state, (InvalidRequest, OutOfRange), _states),
        Target(
            "client: sources of a state",
            lambda data: read_sources(data.decode(errors="replace")),
            (),
            lambda: [describe_sources(_description().sources).encode()],
        ),
        # OpenSSL takes 100 KiB of certificates of a peer.
        Target("client: certificate", _read_certificate, (ValueError, IndexError), _der, largest=100 << 10),
        Target("client: value", value.decode_value, (ValueError,), lambda: [value.encode_value(_VALUE)]),
    ]


def _of_requests() -> list[Target]:
    opened = OpenRequest("train", "run-17", _LEASE, "me", True, False, True, FINGERPRINT)
    defined = ScheduleRequest("train", FINGERPRINT, "cd" * 32, (ScheduleEntry(4096, (1.0, 0.0)),))
    held = [HeldSession("train", f"run-{number}", _LEASE) for number in range(3)]
    streamed = bulk.encode_bulk_request(1, methods.STREAM_BATCHES, _streams()[0])[bulk.HEADER_BYTES :]
    seeds: dict[str, tuple[Callable[[bytes], object], Callable[[], Sequence[bytes]]]] = {
        "batch": (request.decode_batch_request, _requests),
        "stream": (request.decode_stream_request, _streams),
        "positions": (request.decode_positions_request, _positions),
        "records": (request.decode_records_request, _records),
        "server": (server.decode_server_request, lambda: [b"", server.ask_load(Sender("run-17 ü", 3), leaves=True)]),
        "source": (source.decode_source_request, lambda: [source.encode_source_request("train", "web")]),
        "mixture": (request.decode_mixture_request, lambda: [request.encode_mixture_request("train")]),
        "nothing": (partial(request.decode_empty_request, "ListMixturesRequest"), lambda: [b"", b"\x08\x01"]),
        "schedule": (schedule.decode_schedule_request, lambda: [schedule.encode_schedule_request(defined)]),
        "open session": (session.decode_open_request, lambda: [session.encode_open_request(opened)]),
        "held sessions": (session.decode_held, lambda: [session.encode_held(held)]),
        "list sessions": (session.decode_list_request, lambda: [session.encode_list_request("train")]),
        "call of a session": (session.decode_call_request, _calls),
        "request of a bulk channel": (bulk.decode_bulk_request, lambda: [streamed]),
        "health": (
            partial(standard_request.decode_standard_request, health_pb2.HealthCheckRequest),
            lambda: [health_pb2.HealthCheckRequest(service=methods.SERVICE_NAME).SerializeToString()],
        ),
        "reflection": (
            partial(standard_request.decode_standard_request, reflection_pb2.ServerReflectionRequest),
            lambda: [reflection_pb2.ServerReflectionRequest(list_services="*", host="h").SerializeToString()],
        ),
    }
    found = [Target(f"server: {name}", decode, _INVALID, of) for name, (decode, of) in seeds.items()]
    header = Target(
        "server: frame of a client",
        partial(_read_header, bulk.decode_header),
        (ValueError,),
        lambda: [bulk.encode_header(kind, 3, 5) for kind in bulk.Kind],
    )
    return [*found, header]


WIRE = [*_replies(), *_of_requests(), *_checked(), HANDSHAKE]
