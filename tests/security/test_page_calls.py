"""The second table of docs/security.md: which tokens may make which calls, of every service that a server has."""

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mixserve.access import failures
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2, state_pb2
from tests.certificates import NEEDS_OPENSSL
from tests.security.page import CALLS
from tests.security.world import World
from tests.tokens.calling import KEY, PURE, REFLECTION, STATE, STREAMS, bearer

pytestmark = NEEDS_OPENSSL

DEADLINE_S = 20
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


class Call(NamedTuple):
    """A good request for a mixture, and the type of its reply."""

    method: str
    request: Callable[[str], Any]
    reply: Any = None


class Lease:
    """Those of the sessions that these calls are about, by mixture. A released one is void, so they change."""

    now: ClassVar[dict[str, str]] = {}


def held(mixture: str) -> state_pb2.HeldSessions:
    return state_pb2.HeldSessions(
        sessions=[state_pb2.HeldSession(mixture=mixture, session=SESSION, lease=Lease.now[mixture])]
    )


def batch(mixture: str) -> mix_pb2.GetBatchAtRequest:
    return mix_pb2.GetBatchAtRequest(mixture=mixture, key=KEY, size=4)


SESSION = "of-the-page"
NOTHING = state_pb2.Value(dict=state_pb2.Entries())
REQUESTS = (
    Call(methods.LIST_MIXTURES, lambda _: mix_pb2.ListMixturesRequest(), mix_pb2.ListMixturesReply),
    Call(methods.GET_MIXTURE, lambda mixture: mix_pb2.GetMixtureRequest(mixture=mixture)),
    Call(methods.GET_BATCH_AT, batch),
    Call(
        methods.STREAM_BATCHES,
        lambda mixture: mix_pb2.StreamBatchesRequest(first=batch(mixture), stride=4, count=2, reply_rows=4),
    ),
    Call(
        methods.STREAM_POSITIONS,
        lambda mixture: mix_pb2.StreamPositionsRequest(mixture=mixture, positions=[3, 1], key=KEY, reply_rows=4),
    ),
    Call(methods.GET_SOURCE, lambda mixture: mix_pb2.GetSourceRequest(mixture=mixture)),
    Call(
        methods.TAKE_RECORDS,
        lambda mixture: mix_pb2.TakeRecordsRequest(mixture=mixture, record_ids=[3, 1], reply_rows=4),
    ),
    Call(
        methods.DEFINE_SCHEDULE,
        lambda mixture: mix_pb2.DefineScheduleRequest(
            mixture=mixture, entries=[mix_pb2.ScheduleEntry(start=0, weights=[1])]
        ),
    ),
    Call(methods.GET_SERVER, lambda _: mix_pb2.GetServerRequest()),
    Call(methods.GET_STATS, lambda _: mix_pb2.GetStatsRequest(), mix_pb2.Stats),
    Call(
        methods.OPEN_SESSION,
        lambda mixture: state_pb2.OpenSessionRequest(
            mixture=mixture, session=SESSION, lease=Lease.now[mixture], holder="a test", take_over=True
        ),
    ),
    Call(
        methods.CALL_SESSION,
        lambda mixture: state_pb2.CallSessionRequest(
            mixture=mixture, session=SESSION, operation="get_operation_stats", arguments=NOTHING
        ),
    ),
    Call(methods.LIST_SESSIONS, lambda _: state_pb2.ListSessionsRequest(), state_pb2.Sessions),
    Call(methods.RENEW_SESSIONS, held),
    Call(methods.RELEASE_SESSIONS, held),
    Call(REFLECTION, lambda _: reflection_pb2.ServerReflectionRequest(list_services="")),
    Call(CHECK, lambda _: health_pb2.HealthCheckRequest()),
    Call(WATCH, lambda _: health_pb2.HealthCheckRequest()),
)
BY_NAME = {call.method.rpartition("/")[2]: call for call in REQUESTS}


@pytest.fixture(scope="module")
def channel(world: World) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(world.server("tokens").address) as made:
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(failures, "_LONGEST_DELAY_S", 0.0)


def outcome(channel: grpc.Channel, call: Call, token: str | None, mixture: str) -> str:
    """What becomes of the call, in the words of the page."""
    metadata = None if token is None else bearer(token)
    ask = channel.stream_stream(call.method)
    try:
        replies = ask(iter([call.request(mixture).SerializeToString()]), metadata=metadata, timeout=DEADLINE_S)
        first = next(replies)
        if call.method == WATCH:
            replies.cancel()
        else:
            list(replies)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return {"UNAUTHENTICATED": "Unauthenticated", "PERMISSION_DENIED": "PermissionDenied"}.get(
            error.code().name, f"{error.code().name}: {error.details()}"
        )
    if call.reply is None or _lists(call.reply.FromString(first), mixture):
        return "yes"
    return "not in the list"


def _lists(reply: Any, mixture: str) -> bool:
    if isinstance(reply, mix_pb2.ListMixturesReply):
        return mixture in reply.names
    if isinstance(reply, mix_pb2.Stats):
        return any(mixture in sample.labels for metric in reply.metrics for sample in metric.samples)
    return mixture in {session.mixture for session in reply.sessions}


def hold_sessions(channel: grpc.Channel, world: World) -> None:
    """So that there is a session of each mixture, and is held."""
    for mixture in ("a", "b"):
        Lease.now[mixture] = secrets.token_hex(16)
        assert outcome(channel, BY_NAME["OpenSession"], world.tokens["admin"], mixture) == "yes"


def outcome_elsewhere(channel: grpc.Channel, world: World, call: Call) -> str:
    """That of a token for the mixture a alone, of a role that is enough, which asks for b."""
    role = "reader" if call.method in PURE + STREAMS else "trainer" if call.method in STATE else "admin"
    found = outcome(channel, call, world.tokens[f"{role}-a"], "b")
    if call.method not in (methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS):
        return found
    assert found == "yes"  # and nothing has happened
    with world.client(world.server("tokens"), token=world.tokens["admin"]) as client:
        (session,) = client.sessions(mixture="b")
    return "ignored" if session.holder else "yes"


def test_each_call_of_the_server_is_in_the_table() -> None:
    named = [name for row in CALLS for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(BY_NAME)
    assert {call.method for call in REQUESTS} == {*PURE, *STREAMS, *STATE, REFLECTION, CHECK, WATCH}


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row[0])
def test_the_table_is_right(world: World, channel: grpc.Channel, row: tuple[str, ...]) -> None:
    what, without, *roles, elsewhere = row
    for name in re.findall(r"`(\w+)`", what):
        call = BY_NAME[name]
        hold_sessions(channel, world)
        assert outcome_elsewhere(channel, world, call) == elsewhere, name
        for token in (None, "mixserve_unknown", world.tokens["revoked"]):
            assert outcome(channel, call, token, "a") == without, name
        for role, said in zip(("reader", "trainer", "admin"), roles, strict=True):
            assert outcome(channel, call, world.tokens[role], "a") == said, (name, role)
            hold_sessions(channel, world)
