"""Requests and replies of version 0.1.0, byte for byte: today's server answers the same, and today's client reads them.

tests/golden/wire.json has calls of every method, with and without checksums, in the order in which a client made them.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from mixserve.servicer.services import Services
from mixserve_client.errors import MixserveError
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2, state_pb2
from mixserve_client.wire.batch import decode_batch
from mixserve_client.wire.checksum import ReplyTo, open_reply, open_request
from mixserve_client.wire.mixture import decode_mixture, decode_names
from mixserve_client.wire.schedule import decode_schedule
from mixserve_client.wire.server import decode_server
from mixserve_client.wire.session import decode_call_reply, decode_opened, decode_sessions
from tests.conftest import make_node
from tests.versions.fields import wire_fields

GOLDEN = Path(__file__).parents[1] / "golden"
CALLS = json.loads((GOLDEN / "wire.json").read_text())
NAMES = [f"{number}-{call['method'].rpartition('/')[2]}" for number, call in enumerate(CALLS)]
MESSAGES = {
    methods.LIST_MIXTURES: (mix_pb2.ListMixturesReply, decode_names),
    methods.GET_MIXTURE: (mix_pb2.Mixture, decode_mixture),
    methods.GET_BATCH_AT: (mix_pb2.Batch, decode_batch),
    methods.STREAM_BATCHES: (mix_pb2.Batch, decode_batch),
    methods.STREAM_POSITIONS: (mix_pb2.Batch, decode_batch),
    methods.DEFINE_SCHEDULE: (mix_pb2.Schedule, decode_schedule),
    methods.GET_SERVER: (mix_pb2.Server, decode_server),
    methods.OPEN_SESSION: (state_pb2.Session, decode_opened),
    methods.RENEW_SESSIONS: (state_pb2.Done, bytes),
    methods.RELEASE_SESSIONS: (state_pb2.Done, bytes),
    methods.LIST_SESSIONS: (state_pb2.Sessions, decode_sessions),
    methods.CALL_SESSION: (state_pb2.CallSessionReply, decode_call_reply),
}
# What differs from run to run or from version to version: times, the load, and in checkpoints their size and who wrote
# them.
VARY = {"idle_s", "saved_at", "bytes", "version", "load"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[list[bytes | str]]]:
    """Today's replies to all calls, in their order; of a call that fails the name of its error comes last."""
    nodes = {"train": make_node(), "epochs": make_node(sampling="epoch")}
    services = Services(nodes, state_dir=tmp_path_factory.mktemp("state"))
    try:
        yield [list(ask(services, call["method"], base64.b64decode(call["request"]))) for call in CALLS]
    finally:
        services.close()


def ask(services: Services, method: str, request: bytes) -> Iterator[bytes | str]:
    streamed = method in (methods.STREAM_BATCHES, methods.STREAM_POSITIONS)
    try:
        replies = services.stream(method, request) if streamed else [services.handle(method, request)]
        for reply in replies:
            yield bytes(reply)
    except MixserveError as error:
        yield type(error).__name__


def replies_of(call: dict[str, Any]) -> list[bytes | str]:
    return [base64.b64decode(reply) for reply in call.get("replies", ())] + ([call["error"]] if "error" in call else [])


@pytest.mark.parametrize("number", range(len(CALLS)), ids=NAMES)
def test_todays_server_answers_what_it_answered(answers: list[list[bytes | str]], number: int):
    """Fields may have been added: a client of before finds all that it knows, with the same values."""
    call = CALLS[number]
    kind = MESSAGES[call["method"]][0]
    for old, new in zip_longest(replies_of(call), answers[number]):
        if isinstance(old, str):
            assert new == old
        else:
            assert isinstance(new, bytes), new
            require_all_of(kind.FromString(old), kind.FromString(new), kind.__name__)


@pytest.mark.parametrize("number", range(len(CALLS)), ids=NAMES)
def test_todays_client_reads_the_replies_of_before(answers: list[list[bytes | str]], number: int):
    call = CALLS[number]
    decode = MESSAGES[call["method"]][1]
    _, checksum = open_request(base64.b64decode(call["request"]))
    for at, (old, new) in enumerate(zip(replies_of(call), answers[number], strict=True)):
        if isinstance(old, str):
            continue
        if checksum is not None:
            old, new = (bytes(open_reply(reply, ReplyTo(checksum, at))) for reply in (old, new))
        assert comparable(decode(old)) == comparable(decode(new))


def test_there_are_calls_of_all_methods_of_that_time():
    assert {call["method"] for call in CALLS} == set(MESSAGES)
    assert {call["error"] for call in CALLS if "error" in call} >= {
        "InvalidRequest",
        "UnknownMixture",
        "UnknownSchedule",
    }


def test_fields_and_methods_keep_their_numbers_and_types():
    """The wire is only added to: what was there means the same, for clients and servers of all versions."""
    old, new = json.loads((GOLDEN / "wire-fields.json").read_text()), wire_fields()
    assert len(old) > 150
    assert {name: new.get(name) for name in old} == old


def require_all_of(old: Message, new: Message, where: str) -> None:
    """Require that `new` has each field of `old`, with the same value."""
    for field, value in old.ListFields():
        at, other = f"{where}.{field.name}", getattr(new, field.name)
        if field.name == "checksum" or field.name in VARY:
            assert new.HasField(field.name) if field.has_presence else other, at  # added fields change a checksum
        elif field.message_type is None:
            assert other == value, at
        elif field.name == "entries":
            require_entries(value, other, at)
        elif not field.is_repeated:
            require_all_of(value, other, at)
        else:
            assert len(other) == len(value), at
            for mine, its in zip(value, other, strict=True):
                require_all_of(mine, its, at)


def require_entries(old: Any, new: Any, where: str) -> None:
    """As `require_all_of`, for the entries of a dict."""
    found = {entry.name: entry.value for entry in new}
    for entry in old:
        assert entry.name in found, where
        if entry.name not in VARY:
            require_all_of(entry.value, found[entry.name], f"{where}.{entry.name}")


def comparable(value: Any) -> Any:
    """`value` in plain Python, without what varies."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {name: comparable(item) for name, item in value.items() if name not in VARY}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: comparable(getattr(value, name)) for name in value.__dataclass_fields__ if name not in VARY}
    return value
