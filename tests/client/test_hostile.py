"""A client against a broken or malicious server: every call ends soon, with an error of ours or a right answer,
and uses no more memory than the request needs.
"""

import itertools
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixserve.servicer import Services
from mixserve_client import CorruptReply, Field, FingerprintMismatch, MixClient, MixserveError, Overloaded
from mixserve_client.sessions.session import Session
from mixserve_client.transport import channel as channel_module
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import frame, methods
from mixserve_client.wire import mixture as wire_mixture
from mixserve_client.wire._generated import mix_pb2, state_pb2
from mixserve_client.wire.batch import check_batch, decode_batch, encode_slot_reply
from mixserve_client.wire.reply import DESCRIPTION_BYTES, LARGEST_REPLY_BYTES, parse_reply
from mixserve_client.wire.request import decode_stream_request
from mixserve_client.wire.schedule import decode_schedule
from mixserve_client.wire.server import decode_server
from mixserve_client.wire.session import decode_call_reply, decode_opened, decode_sessions
from tests.conftest import make_node
from tests.hostile import Answers, hostile_server
from tests.processes import ONE_SIZE
from tests.profiles import examples

SOON_S = 5.0
SHORT = 1500
LIMIT = (1 << 63) - 1
FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def services() -> Services:
    return Services({"train": make_node(plan_sizes=ONE_SIZE)})


@pytest.fixture(scope="module")
def hostile(services) -> Iterator[tuple[Answers, str]]:
    answers = Answers(lambda method, request: [b""])
    with hostile_server(answers) as address:
        yield answers, address


def right(services: Services):
    """Answers as a server does."""

    def answer(method: str, request: bytes):
        if method in (methods.STREAM_BATCHES, methods.STREAM_POSITIONS):
            return services.stream(method, request)
        return iter([services.handle(method, request)])

    return answer


def ends_soon(call, errors: type[BaseException] | tuple[type[BaseException], ...] = CorruptReply) -> str:
    """What the call raises: soon, and with a short message."""
    began = time.monotonic()
    with pytest.raises(errors) as caught:
        call()
    assert time.monotonic() - began < SOON_S
    assert len(str(caught.value)) < SHORT
    return str(caught.value)


# Batches


def array(**changes: Any) -> mix_pb2.Array:
    return mix_pb2.Array(**({"name": "x", "dtype": "int8", "shape": [1], "data": b"1"} | changes))


def batch(*arrays: mix_pb2.Array, fingerprint: str = FINGERPRINT) -> bytes:
    return mix_pb2.Batch(fingerprint=fingerprint, arrays=arrays).SerializeToString()


UNPACKED = frame.delimited(1, b"x") + frame.delimited(2, b"int8") + (frame.number_tag(3) + b"\1") * 200_000
BATCHES = {
    "empty": b"",
    "without arrays": batch(),
    "without a fingerprint": batch(array(), fingerprint=""),
    "of 200,000 dimensions": batch(array(shape=[1] * 200_000)),
    "of 200,000 large dimensions": batch(array(shape=[LIMIT] * 200_000)),
    "of 200,000 dimensions that are not packed": frame.delimited(2, UNPACKED),
    "of 65 dimensions": batch(array(shape=[1] * 65)),
    "of a dimension beyond 63 bits": batch(array(shape=[-1, 0], data=b"")),
    "of none of a huge shape": batch(array(shape=[0, *[LIMIT] * 20], data=b"")),
    "of a name of a megabyte": batch(array(name="x" * (1 << 20), shape=[2])),
    "of a dtype of a megabyte": batch(array(dtype="x" * (1 << 20))),
    "of a million fields": (frame.number_tag(9) + b"\1") * 1_000_000,
    "of an array of a million fields": frame.delimited(2, (frame.number_tag(9) + b"\1") * 1_000_000),
}


@pytest.mark.parametrize("message", BATCHES.values(), ids=BATCHES)
def test_a_batch_that_is_none_is_corrupt_soon_and_in_a_few_words(message):
    ends_soon(lambda: decode_batch(message))


def test_a_batch_of_more_arrays_than_fields_is_not_read_to_its_end():
    message = batch(*[array(name=str(number)) for number in range(1000)])
    assert "fields" in ends_soon(lambda: decode_batch(message, most_arrays=5))


def test_a_batch_of_thousands_of_other_fields_is_refused_in_a_few_words():
    arrays = {f"field {number}": np.zeros((1, 3), np.int8) for number in range(5000)}
    fields = tuple(Field(f"other {number}", np.dtype(np.int8), (3,)) for number in range(5000))
    assert "'other 0'" in ends_soon(lambda: check_batch(arrays, fields))
    wide = {"x": np.zeros((1,) * 60, np.int8)}
    assert "expected in 'x'" in ends_soon(lambda: check_batch(wide, (Field("x", np.dtype(np.int8), (1,) * 63),)))


# Descriptions


def describe(**changes: Any) -> mix_pb2.Mixture:
    known: dict[str, Any] = {
        "name": "train",
        "fingerprint": FINGERPRINT,
        "fields": [mix_pb2.Field(name="x", dtype="int8", shape=[2])],
        "sources": [mix_pb2.Source(name="a", length=1, weight=0.5), mix_pb2.Source(name="b", length=1, weight=0.5)],
        "limits": mix_pb2.Limits(size=1, reply_bytes=1),
        "schedule": [mix_pb2.ScheduleEntry(start=0, weights=[0.5, 0.5])],
    }
    return mix_pb2.Mixture(**(known | changes))


def field(**changes: Any) -> mix_pb2.Field:
    return mix_pb2.Field(**({"name": "x", "dtype": "int8", "shape": [2]} | changes))


def sources(*weights: float, **changes: Any) -> list[mix_pb2.Source]:
    return [
        mix_pb2.Source(**({"name": str(place), "length": 1, "weight": weight} | changes))
        for place, weight in enumerate(weights)
    ]


def entries(*starts: int, weights: tuple[float, ...] = (1, 1)) -> list[mix_pb2.ScheduleEntry]:
    return [mix_pb2.ScheduleEntry(start=start, weights=weights) for start in starts]


IMPOSSIBLE = {
    "no name": {"name": ""},
    "no fingerprint": {"fingerprint": ""},
    "a fingerprint that is none": {"fingerprint": "xy" * 32},
    "a fingerprint of a megabyte": {"fingerprint": "ab" * (1 << 20)},
    "no fields": {"fields": []},
    "a field twice": {"fields": [field(), field()]},
    "a field below another": {"fields": [field(), field(name="x/y")]},
    "a step that is none": {"fields": [field(name="~t5/x")]},
    "a field of a million steps": {"fields": [field(name="a/" * 1_000_000)]},
    "a field of a thousand steps": {"fields": [field(name="/".join("a" * 1000))]},
    "an unknown dtype": {"fields": [field(dtype="x" * 1_000_000)]},
    "a negative dimension": {"fields": [field(shape=[-1])]},
    "64 dimensions": {"fields": [field(shape=[1] * 64)]},
    "200,000 dimensions": {"fields": [field(shape=[LIMIT] * 200_000)]},
    "a huge record": {"fields": [field(shape=[LIMIT, LIMIT])]},
    "a huge record of nothing": {"fields": [field(shape=[LIMIT, 0])]},
    "too many fields": {"fields": [field(name=str(number)) for number in range(70_000)]},
    "no sources": {"sources": []},
    "a negative length": {"sources": sources(1.0, length=-1)},
    "a negative pass": {"sources": sources(1.0, pass_end=-1)},
    "a weight that is no number": {"sources": sources(float("nan"), 1.0)},
    "an infinite weight": {"sources": sources(float("inf"), 1.0)},
    "a negative weight": {"sources": sources(-1.0, 2.0)},
    "weights of another sum": {"sources": sources(1.0, 1.0)},
    "a source twice": {"sources": sources(0.5, 0.5, name="a")},
    "no limits": {"limits": mix_pb2.Limits()},
    "a negative limit": {"limits": mix_pb2.Limits(size=-1)},
    "a negative limit of bytes": {"limits": mix_pb2.Limits(size=1, reply_bytes=-(1 << 63))},
    "a negative end": {"end": -1},
    "a negative block": {"block_size": -1},
    "a huge block": {"block_size": LIMIT},
    "an entry of other weights": {"schedule": entries(0, weights=(1.0,))},
    "entries that do not ascend": {"schedule": entries(5, 5)},
    "a negative start": {"schedule": entries(-1)},
    "a start beyond all": {"schedule": entries(LIMIT)},
    "weights that are no numbers": {"schedule": entries(0, weights=(float("nan"), 1))},
    "weights without a sum": {"schedule": entries(0, weights=(0, 0))},
}


def test_a_description_that_is_right_is_taken():
    mixture = wire_mixture.decode_mixture(describe(end=LIMIT, block_size=1 << 16).SerializeToString())
    assert (mixture.end, mixture.block_size, mixture.weights) == (LIMIT, 1 << 16, (0.5, 0.5))


@pytest.mark.parametrize("changes", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_description_that_cannot_be_is_corrupt_before_anything_is_made_of_it(changes):
    data = describe(**changes).SerializeToString()
    tracemalloc.start()
    try:
        ends_soon(lambda: wire_mixture.decode_mixture(data))
        assert tracemalloc.get_traced_memory()[1] < 50 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def opened(**changes: Any) -> bytes:
    return state_pb2.Session(**({"ttl_s": 900} | changes)).SerializeToString()


def called(**changes: Any) -> bytes:
    return state_pb2.CallSessionReply(**({"value": state_pb2.Value(none=True)} | changes)).SerializeToString()


OTHERS = {
    "a sequence without a next": (decode_opened, opened(sequence=LIMIT)),
    "a negative sequence": (decode_opened, opened(sequence=-1)),
    "a negative index": (decode_opened, opened(index=-1)),
    "a negative epoch": (decode_opened, opened(epoch=-1)),
    "a lease that is no number": (decode_opened, opened(ttl_s=float("nan"))),
    "an answer before the beginning": (decode_call_reply, called(index=-1)),
    "an answer before all epochs": (decode_call_reply, called(epoch=-1)),
    "an answer of no kind": (decode_call_reply, called(value=state_pb2.Value())),
    "an end before the beginning": (decode_schedule, mix_pb2.Schedule(end=-1).SerializeToString()),
    "a path with a NUL": (decode_server, mix_pb2.Server(shared_memory="/dev/shm/\0").SerializeToString()),
    "a path of a megabyte": (decode_server, mix_pb2.Server(shared_memory="x" * (1 << 20)).SerializeToString()),
    "names that are empty": (wire_mixture.decode_names, mix_pb2.ListMixturesReply(names=[""]).SerializeToString()),
    "a name twice": (wire_mixture.decode_names, mix_pb2.ListMixturesReply(names=["a", "a"]).SerializeToString()),
    "a description that is too large": (wire_mixture.decode_mixture, bytes(DESCRIPTION_BYTES + 1)),
}


@pytest.mark.parametrize(("decode", "data"), OTHERS.values(), ids=OTHERS)
def test_other_replies_that_cannot_be_are_corrupt(decode, data):
    ends_soon(lambda: decode(data))


def test_a_message_of_more_parts_than_a_client_can_bear_is_not_begun(monkeypatch):
    """Two bytes of the message make an object of a hundred."""
    monkeypatch.setattr("mixserve_client.wire.reply.DESCRIPTION_BYTES", 1 << 14)
    monkeypatch.setattr("mixserve_client.wire.session._COUNTED_FROM", 1 << 14)
    monkeypatch.setattr("mixserve_client.wire.reply._PARTS", 1 << 14)
    for kind, data in (
        (mix_pb2.Mixture, frame.delimited(4, b"") * ((1 << 14) + 8)),
        (mix_pb2.Mixture, frame.delimited(3, frame.delimited(3, b"\0" * (1 << 15)))),
        (state_pb2.CallSessionReply, frame.delimited(1, frame.delimited(7, frame.delimited(1, b"") * ((1 << 14) + 8)))),
    ):
        said = ends_soon(lambda kind=kind, data=data: parse_reply(kind, data, 1 << 30))
        assert "parts" in said or "fields" in said
    arrays = state_pb2.Value(array=state_pb2.ArrayValue(dtype="int8", shape=[2 << 14], data=bytes(2 << 14)))
    assert decode_call_reply(called(value=arrays)).value.shape == (2 << 14,)
    deep = b""
    while len(deep) < 4000:
        deep = frame.delimited(7, frame.delimited(1, deep))
    ends_soon(lambda: decode_call_reply(frame.delimited(1, deep) + frame.delimited(9, bytes(2 << 14))))


# Whole calls


def calls(client: MixClient) -> dict[str, Any]:
    """Every kind of call, with a check of its right answer."""

    def session(use):
        def call():
            with client.session("run") as held:
                return use(held)

        return call

    def read(**options):
        def call():
            with client.batches(4, 0, timeout_s=SOON_S / 2, stop=12, **options) as batches:
                return [list(batch) for batch in batches]

        return call

    def is_batch(got):
        return len(got["id"]) == 3

    return {
        "mixtures": (client.mixtures, lambda got: all(isinstance(name, str) for name in got)),
        "mixture": (lambda: client.mixture("train"), lambda got: got.name == "train"),
        "batch": (lambda: client.get_batch_at(0, 3, 0, timeout_s=1), is_batch),
        "plan": (lambda: client.get_plan_at(0, 3, 0, timeout_s=1), lambda got: len(got["record_id"]) == 3),
        "positions": (lambda: client.get_batch_by_positions([1, 5, 2], 0, timeout_s=1), is_batch),
        "batches": (read(), lambda got: len(got) == 3),
        "provenance": (read(provenance=True), lambda got: len(got) == 3),
        "sessions": (client.sessions, lambda got: isinstance(got, tuple)),
        "next_batch": (session(lambda held: held.next_batch(3)), lambda got: True),
        "state": (session(Session.get_state), lambda got: isinstance(got, dict)),
        "counts": (session(Session.get_operation_stats), lambda got: all(type(count) is int for count in got.values())),
        "checkpoints": (session(Session.list_checkpoints), lambda got: isinstance(got, tuple)),
    }


NAMES = tuple(calls(MixClient([InProcessTransport(Answers(lambda *_: []))])))


def check_answer(client: MixClient, name: str) -> None:
    """Require the right answer of the call, or an error of ours."""
    call, is_right = calls(client)[name]
    began = time.monotonic()
    try:
        assert is_right(call())
    except MixserveError as error:
        assert len(str(error)) < SHORT
    except StopIteration:
        assert name == "next_batch"
    assert time.monotonic() - began < SOON_S


def hasty(client: MixClient) -> MixClient:
    """The client, which asks again sooner: what it does then is the same."""
    client._caller._replicas.first_delay_s = 0.001
    return client


REPLY = {
    methods.LIST_MIXTURES: mix_pb2.ListMixturesReply,
    methods.GET_MIXTURE: mix_pb2.Mixture,
    methods.GET_BATCH_AT: mix_pb2.Batch,
    methods.STREAM_BATCHES: mix_pb2.Batch,
    methods.STREAM_POSITIONS: mix_pb2.Batch,
    methods.GET_SERVER: mix_pb2.Server,
    methods.DEFINE_SCHEDULE: mix_pb2.Schedule,
    methods.OPEN_SESSION: state_pb2.Session,
    methods.LIST_SESSIONS: state_pb2.Sessions,
    methods.CALL_SESSION: state_pb2.CallSessionReply,
}
NUMBERS = st.sampled_from([0, 1, 2, -1, 1 << 31, 1 << 62, LIMIT, -LIMIT - 1]) | st.integers(-LIMIT - 1, LIMIT)
WORDS = st.sampled_from(["", "a", "a/b", "~t0", "id", "int8", "train", FINGERPRINT]) | st.text(max_size=8)
LEAVES: dict[str, Any] = {
    "integer": NUMBERS,
    "number": st.floats() | st.sampled_from([0.5, 1.0]),
    "text": WORDS,
    "flag": st.booleans(),
    "bytes": st.binary(max_size=40),
}


def leaf(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    kinds = {
        "integer": (field.TYPE_INT64, field.TYPE_SINT64),
        "number": (field.TYPE_DOUBLE,),
        "text": (field.TYPE_STRING,),
        "flag": (field.TYPE_BOOL,),
        "bytes": (field.TYPE_BYTES,),
    }
    found = next((kind for kind, types in kinds.items() if field.type in types), None)
    return LEAVES[found] if found else st.integers(0, 100)


@st.composite
def message(draw: Any, kind: Any, levels: int = 4) -> Any:
    """Any message of the kind."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        if not draw(st.integers(0, 3)):
            continue
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if field.message_type is not None:
            if levels and not field.message_type.GetOptions().map_entry:
                child = message(type(getattr(made, field.name)) if not repeated else _kind(field), levels - 1)
                if repeated:
                    getattr(made, field.name).extend(draw(st.lists(child, max_size=3)))
                else:
                    getattr(made, field.name).CopyFrom(draw(child))
        elif repeated:
            getattr(made, field.name).extend(draw(st.lists(leaf(field), max_size=3)))
        else:
            setattr(made, field.name, draw(leaf(field)))
    return made


def _kind(field: Any) -> Any:
    module = mix_pb2 if hasattr(mix_pb2, field.message_type.name) else state_pb2
    return getattr(module, field.message_type.name)


@settings(max_examples=examples(600))
@given(data=st.data(), name=st.sampled_from(NAMES), broken=st.sampled_from(sorted(REPLY)))
def test_any_bytes_as_any_reply_give_an_error_of_ours_or_a_right_answer(services, data, name, broken):
    """All other replies are right; the broken method's are any bytes, any message, or damaged ones."""
    whole = right(services)

    damage = data.draw(st.sampled_from(["bytes", "message", "merged", "flipped", "cut"]))
    made = data.draw(st.binary(max_size=100) if damage == "bytes" else message(REPLY[broken]))
    more = made if isinstance(made, bytes) else made.SerializeToString()
    places = data.draw(st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4))

    def answer(method: str, request: bytes):
        replies = iter(whole(method, request))
        return map(broken_reply, replies) if method == broken else replies

    def broken_reply(reply: bytes) -> bytes:
        if damage in ("bytes", "message", "merged"):
            return reply + more if damage == "merged" else more
        if damage == "cut":
            return reply[: places[0] % (len(reply) + 1)]
        changed = bytearray(reply or b"\0")
        for place in places:
            changed[place // 8 % len(changed)] ^= 1 << place % 8
        return bytes(changed)

    with MixClient([InProcessTransport(Answers(answer))], patience_s=0.02) as client:
        check_answer(hasty(client), name)


@settings(max_examples=examples(80))
@given(reply=st.binary(max_size=80), name=st.sampled_from(NAMES), transport=st.sampled_from(["grpc", "shared memory"]))
@example(reply=b"", name="batch", transport="grpc")
@example(reply=batch(array(shape=[1] * 200_000)), name="batch", transport="grpc")
@example(reply=bytes(8 << 20), name="mixture", transport="grpc")
@example(reply=encode_slot_reply(7, 1 << 40), name="positions", transport="grpc")
@example(reply=encode_slot_reply(7, 1 << 40), name="batches", transport="shared memory")
def test_the_same_bytes_as_every_reply_of_a_real_server(hostile, services, reply, name, transport):
    answers, address = hostile
    whole = right(services)

    def answer(method: str, request: bytes):
        known = (methods.GET_MIXTURE, methods.OPEN_SESSION)
        return whole(method, request) if method in known and name not in ("mixture",) else [reply]

    answers.answer = answer
    with MixClient.connect(address, patience_s=0.02, shared_memory=transport == "shared memory") as client:
        check_answer(hasty(client), name)


# Streams


def test_streams_that_send_without_end_are_ended(hostile, services):
    answers, address = hostile
    whole = right(services)
    sent = itertools.count()

    def answer(method: str, request: bytes):
        if method != methods.STREAM_BATCHES:
            return whole(method, request)
        first = list(whole(method, request))
        return (first[next(sent) % len(first)] for _ in itertools.repeat(None))

    answers.answer = answer
    with MixClient.connect(address, patience_s=0.1) as client:
        ends_soon(lambda: client.get_batch_at(0, 5000, 0))
        with client.batches(64, 0, stop=64 * 300, timeout_s=SOON_S) as batches:
            assert len(list(batches)) == 300  # rows after the last requested one are ignored


@pytest.mark.parametrize("reply", [b"", batch(), batch(array(name="x", shape=[0, 1], data=b""))], ids=len)
def test_streams_of_empty_replies_are_ended(hostile, services, reply):
    answers, address = hostile
    whole = right(services)

    def answer(method: str, request: bytes):
        return itertools.repeat(reply) if method == methods.STREAM_POSITIONS else whole(method, request)

    answers.answer = answer
    with MixClient.connect(address, patience_s=0.1) as client:
        ends_soon(lambda: client.get_batch_by_positions([1, 2, 3], 0), (CorruptReply, FingerprintMismatch))


def test_streams_that_end_without_a_word_are_asked_for_again_until_patience_ends(hostile, services):
    answers, address = hostile
    whole = right(services)
    answers.answer = lambda method, request: [] if method == methods.STREAM_POSITIONS else whole(method, request)
    with MixClient.connect(address, patience_s=0.2) as client:
        assert "without a reply" in ends_soon(lambda: client.get_batch_by_positions([1], 0), MixserveError)


def test_a_reply_that_was_not_asked_for_is_refused(hostile, services):
    """Replies with more rows, with rows of another shape, of another mixture."""
    answers, address = hostile
    whole = right(services)

    def answer(method: str, request: bytes):
        if method != methods.STREAM_BATCHES:
            return whole(method, request)
        wanted = decode_stream_request(request)
        rows = wanted.first.size * wanted.count + 1
        more = mix_pb2.StreamBatchesRequest.FromString(request)
        more.first.size, more.stride, more.count, more.reply_rows = rows, rows, 1, rows
        return whole(method, more.SerializeToString())

    answers.answer = answer
    with MixClient.connect(address, patience_s=0.1) as client:
        assert "were requested" in ends_soon(lambda: client.get_batch_at(0, 5000, 0))


@pytest.mark.parametrize(
    "path", ["/dev/shm/../etc/passwd", "/etc/passwd", "relative", "x" * 4000, "/dev/shm/" + "x" * 300, "\n", "/"]
)
def test_a_path_for_shared_memory_that_is_none_is_not_followed(hostile, services, path):
    answers, address = hostile
    whole = right(services)
    server = mix_pb2.Server(shared_memory=path).SerializeToString()
    answers.answer = lambda method, request: [server] if method == methods.GET_SERVER else whole(method, request)
    with MixClient.connect(address, patience_s=0.1) as client:
        assert client.get_batch_at(0, 5000, 0)["id"].shape == (5000,)
        assert client.transport.startswith("grpc")


def test_a_reply_beyond_what_any_server_may_send_is_not_taken_nor_asked_for_again(hostile, monkeypatch):
    options = dict(channel_module._OPTIONS)
    assert options["grpc.max_receive_message_length"] == LARGEST_REPLY_BYTES
    options["grpc.max_receive_message_length"] = 1 << 20  # a gibibyte would take long
    monkeypatch.setattr(channel_module, "_OPTIONS", list(options.items()))
    answers, address = hostile
    answers.answer = lambda method, request: [bytes(2 << 20)]
    with MixClient.connect(address) as client:
        assert "larger than max" in ends_soon(client.mixtures, Overloaded)


def test_a_mixture_by_another_name_is_refused(hostile):
    answers, address = hostile
    answers.answer = lambda method, request: [describe().SerializeToString()]
    with MixClient.connect(address, patience_s=0.1) as client:
        assert "not 'other'" in ends_soon(lambda: client.mixture("other"))


def test_checkpoints_that_are_none_are_corrupt(hostile, services):
    answers, address = hostile
    whole = right(services)
    text = state_pb2.Value(text="x")
    named = state_pb2.Entry(name="name", value=text)
    for value in (
        text,
        state_pb2.Value(none=True),
        state_pb2.Value(list=state_pb2.Values(values=[text])),
        *(
            state_pb2.Value(
                list=state_pb2.Values(
                    values=[
                        state_pb2.Value(
                            dict=state_pb2.Entries(entries=[*known, state_pb2.Entry(name="saved_at", value=text)])
                        )
                    ]
                )
            )
            for known in ([], [named])
        ),
    ):
        reply = called(value=value)
        answers.answer = lambda method, request, reply=reply: (
            [reply] if method == methods.CALL_SESSION else whole(method, request)
        )
        with MixClient.connect(address, patience_s=0.1) as client, client.session("run", take_over=True) as held:
            ends_soon(held.list_checkpoints)
            ends_soon(held.get_state)


def test_sessions_of_thousands_are_listed_and_those_of_millions_are_not():
    ends_soon(lambda: decode_sessions(frame.delimited(1, b"") * ((1 << 20) + 1)))
    known = [state_pb2.SessionDescription(mixture="train", session=f"run-{number}") for number in range(20_000)]
    assert len(decode_sessions(state_pb2.Sessions(sessions=known).SerializeToString())) == 20_000
