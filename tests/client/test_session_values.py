"""Answers to a session that contradict its mixture: the client refuses them at once, with the field's name."""

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from mixserve.servicer import Services
from mixserve_client import AsyncMixClient, CorruptReply, Field, MixClient
from mixserve_client.nnx import RemoteMixDataSourcesNode
from mixserve_client.schema.sessions import CallReply
from mixserve_client.schema.tree import flatten
from mixserve_client.sessions.values import check_record, check_records, check_rows
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_call_reply, encode_call_reply, encode_sessions
from tests.hostile import Answers
from tests.processes import ONE_SIZE


def make_node():
    half = np.arange(12, dtype=np.float16).reshape(6, 2)
    records = {"id": np.arange(6, dtype=np.int32), "of": {"pair": (half, np.arange(6, dtype=np.int64))}}
    config = MixDataSourcesConfig(
        num_sources=1, weights=(1.0,), batch_stats_fn=lambda batch: {"n": len(batch["id"])}, plan_sizes=ONE_SIZE
    )
    return MixDataSourcesNode(config, [ArraySource(records)])


class Tampering:
    """Real services; `change`, if set, alters and counts the answers to session calls."""

    def __init__(self, state_dir: Path):
        self.services = Services({"train": make_node()}, state_dir=state_dir)
        self.change: Any = None
        self.calls = 0

    def __call__(self, method: str, request: bytes):
        reply = self.services.handle(method, request)
        if method == methods.CALL_SESSION:
            self.calls += 1
            if self.change is not None:
                return [self.changed(decode_call_reply(reply))]
        return [reply]

    def changed(self, reply: CallReply) -> bytes:
        return encode_call_reply(CallReply(self.change(reply.value), reply.ended, reply.index, reply.epoch))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tampering = Tampering(tmp_path_factory.mktemp("state"))
    yield tampering
    tampering.services.close()


@pytest.fixture
def client(server):
    server.change = None
    with MixClient([InProcessTransport(Answers(server))], patience_s=30) as client:
        yield client


@pytest.fixture
def session(client):
    with client.session("run", fresh=True) as session:
        yield session


def pair_with(value: dict[str, Any], first: Any) -> dict[str, Any]:
    return value | {"of": {"pair": (first, value["of"]["pair"][1])}}


# How the value is altered, the field that the error names, and what it says was received.
RECORD = {
    "another name": (lambda v: {"ids": v["id"], "of": v["of"]}, "'id'", "no such array"),
    "one more": (lambda v: v | {"more": v["id"]}, "'more'", "expected in 'more' no such array, got int32"),
    "one less": (lambda v: {"id": v["id"]}, "'of/pair/~t0'", "no such array"),
    "another dtype": (lambda v: v | {"id": v["id"].astype(np.float32)}, "'id'", "got float32"),
    "another dtype of as many bits": (lambda v: v | {"id": v["id"].view(np.uint32)}, "'id'", "got uint32"),
    "another shape": (lambda v: pair_with(v, v["of"]["pair"][0][..., :1]), "'of/pair/~t0'", "got float16"),
    "one more dimension": (lambda v: v | {"id": v["id"][..., None]}, "'id'", "got int32"),
    "a list in place of a tuple": (lambda v: v | {"of": {"pair": list(v["of"]["pair"])}}, "'of/pair/~t0'", "no such"),
    "text in place of an array": (lambda v: v | {"id": "x" * 9999}, "'id'", "got str 'xxx"),
    "None in place of an array": (lambda v: v | {"id": None}, "'id'", "got NoneType"),
    "nothing": (lambda v: None, "'id'", "no such array"),
    "a number": (lambda v: 7, "'id'", "no such array"),
    "keys that are numbers": (lambda v: {1: v["id"]}, "1", "cannot be a record"),
    "an empty dict": (lambda v: v | {"id": {}}, "'id'", "cannot be a record"),
}
BATCH = RECORD | {
    "more rows": (lambda v: resized(v, 3), "'id'", r"got int32\[3\]"),
    "no rows": (lambda v: resized(v, 0), "'id'", r"got int32\[0\]"),
    "fields of other numbers of rows": (lambda v: v | {"id": v["id"][:1]}, "'of/pair/~t0'|'id'", r"\["),
    "numbers in place of rows": (lambda v: v | {"id": 7}, "'id'", "got int 7"),
}
ROWS = BATCH | {
    "fewer rows": (lambda v: resized(v, 1), "'id'", r"expected in 'id' int32\[2\], got int32\[1\]"),
    "narrowed": (lambda v: v | {"id": v["id"].astype(np.int64)}, "'id'", "got int64"),
}


def resized(value: Any, rows: int) -> Any:
    if isinstance(value, dict):
        return {key: resized(child, rows) for key, child in value.items()}
    return (
        tuple(resized(child, rows) for child in value)
        if isinstance(value, tuple)
        else np.resize(value, (rows, *value.shape[1:]))
    )


CALLS = {
    "next": (next, RECORD),
    "next_batch": (lambda session: session.next_batch(2), BATCH),
    "process": (lambda session: session.process(0, 2, 7), ROWS),
}
CASES = [(call, case) for call, (_, cases) in CALLS.items() for case in cases]


def same(left: Any, right: Any) -> bool:
    a, b = flatten(left), flatten(right)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("call", "case"), CASES)
def test_values_that_were_not_promised_are_refused_at_once_and_lose_no_record(server, client, session, call, case):
    do, cases = CALLS[call]
    server.change, names, said = cases[case]
    server.calls = 0
    with pytest.raises(CorruptReply, match=names) as caught:
        do(session)
    assert server.calls == 1
    assert re.search(said, str(caught.value))
    assert len(str(caught.value)) < 700
    assert session.index == 0
    server.change = None
    with client.session("beside", fresh=True) as other:
        assert same(do(session), do(other))  # the repeated call gives what the first one would have given
        assert (session.index, session.get_operation_stats()) == (other.index, other.get_operation_stats())


def test_fewer_records_at_the_end_of_an_epoch_are_right(session):
    assert session.next_batch(4)["id"].shape == (4,)
    assert session.next_batch(4)["id"].shape == (2,)
    with pytest.raises(StopIteration):
        session.next_batch(4)


def test_the_end_of_an_epoch_is_no_answer_to_process(server, session, monkeypatch):
    def ended(reply: CallReply) -> bytes:
        return encode_call_reply(CallReply(None, True, reply.index, reply.epoch))

    monkeypatch.setattr(server, "changed", ended)
    server.change = ended
    with pytest.raises(CorruptReply, match="'id'"):
        session.process(0, 2, 7)
    with pytest.raises(StopIteration):
        session.next_batch(2)


ANSWERS = {
    "statistics": (lambda s: s.compute_statistics(0, 2, 7), [3.5], "statistics must be a dict"),
    "known statistics": (lambda s: s.get_statistics(), "x", "statistics must be a dict"),
    "a state": (lambda s: s.get_state(), None, "state must be a dict"),
    "counts": (lambda s: s.get_operation_stats(), {"applied_count": 1}, "skipped_count must be a int, got None"),
    "flags for counts": (
        lambda s: s.get_operation_stats(),
        {"applied_count": True, "skipped_count": 0},
        "applied_count must be a int, got True",
    ),
    "a flag for a number": (lambda s: s.list_checkpoints(), [{"name": "a", "index": True}], "index must be a int"),
    "a flag for a time": (lambda s: s.list_checkpoints(), [{"name": "a", "saved_at": True}], "saved_at must be a fl"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_other_answers_than_were_promised_are_refused(server, session, case):
    do, value, said = ANSWERS[case]
    server.change = lambda _: value
    with pytest.raises(CorruptReply, match=said):
        do(session)


def test_an_answer_about_another_checkpoint_is_refused(server, session):
    server.change = lambda value: value | {"name": "other"}
    for call in (session.save_checkpoint, session.delete_checkpoint):
        with pytest.raises(CorruptReply, match="about the checkpoint 'other', not about 'mine'"):
            call("mine")
    server.change = None
    assert session.list_checkpoints() == ()


def test_sessions_of_another_mixture_than_was_asked_for_are_refused(client, session):
    listed = client.sessions(mixture="train")
    assert "run" in [found.name for found in listed]
    with MixClient([InProcessTransport(Answers(lambda method, _: [encode_sessions(listed)]))]) as other:
        with pytest.raises(CorruptReply, match="sessions of the mixture 'train', not of 'valid'"):
            other.sessions(mixture="valid")
        assert other.sessions() == listed


def test_the_session_for_asyncio_refuses_them_too(server):
    async def read() -> None:
        client = AsyncMixClient(MixClient([InProcessTransport(Answers(server))]))
        session = await client.session("awaited", fresh=True)
        server.change = lambda value: value | {"id": value["id"].astype(np.float32)}
        for call in (session.next_record, lambda: session.next_batch(2), lambda: session.process(0, 2, 7)):
            with pytest.raises(CorruptReply, match=r"expected in 'id' int32.* got float32"):
                await call()
        server.change = None
        assert (await session.next_batch(2))["id"].dtype == np.int32
        await session.close()
        await client.close()

    asyncio.run(read())


def test_the_remote_node_refuses_them_too(server, client):
    node = RemoteMixDataSourcesNode(client, session="remote", fresh=True)
    with ExitStack() as stack:
        stack.callback(lambda: node.session.close())
        server.change = lambda value: value | {"id": value["id"].astype(np.float32)}
        for call in (lambda: next(node), lambda: node.next_batch(2), lambda: node.process(0, 2, 7)):
            with pytest.raises(CorruptReply, match=r"expected in 'id' int32.* got float32"):
                call()
        server.change = None


def test_what_a_source_that_reads_through_jax_gives_is_right():
    """Without x64 JAX's 64-bit fields have 32 bits on a server; a server may send Python's numbers as records."""
    fields = (Field("x", np.dtype(np.int64), ()), Field("y", np.dtype(np.float32), (2,)))
    right = {"x": np.zeros((), np.int32), "y": np.zeros(2, np.float64)}
    check_record(right, fields)
    check_record(right | {"x": 7}, fields)
    batch = {name: np.stack([array] * 3) for name, array in right.items()}
    check_records(batch, fields, 3)
    for wrong in (right | {"x": np.zeros((), np.int16)}, right | {"x": 7.5}, right | {"x": True}):
        with pytest.raises(CorruptReply, match="'x'"):
            check_record(wrong, fields)
    with pytest.raises(CorruptReply, match="'x'"):
        check_rows(batch, fields, 3)


def test_a_key_that_looks_like_a_path_is_not_that_path():
    for name in ("a/b", "", "~t0"):
        with pytest.raises(CorruptReply, match=r"in '|keys of records"):
            check_records({name: np.zeros((3, 2), np.int32)}, (Field(name, np.dtype(np.int32), (2,)),), 3)


def test_flat_records_are_held_to_their_fields_too():
    fields = (Field("x", np.dtype(np.int32), (2,)), Field("y", np.dtype(np.int8), ()))
    right = {"x": np.zeros((3, 2), np.int32), "y": np.zeros(3, np.int8)}
    check_records(right, fields, 4)
    for change in (
        {"x": np.zeros((3, 1), np.int32)},
        {"x": np.zeros((3, 2), np.uint32)},
        {"y": np.zeros(2, np.int8)},
        {"y": np.zeros((), np.int8)},
        {"z": np.zeros(3, np.int8)},
        {"y": 7},
    ):
        with pytest.raises(CorruptReply, match=f"'{next(iter(change))}'"):
            check_records(right | change, fields, 4)
    for rows in (0, 5):
        with pytest.raises(CorruptReply, match=rf"expected in 'x' int32\[4, 2\], got int32\[{rows}, 2\]"):
            check_records(resized(right, rows), fields, 4)


def test_a_record_that_is_one_array_is_checked_too():
    fields = (Field("", np.dtype(np.int32), (2,)),)
    check_record(np.zeros(2, np.int32), fields)
    check_records(np.zeros((3, 2), np.int32), fields, 3)
    with pytest.raises(CorruptReply, match=r"expected in '' int32\[3, 2\], got int32\[4, 2\]"):
        check_records(np.zeros((4, 2), np.int32), fields, 3)
