"""Calls that never send their request do not keep the threads of others, whatever their method is."""

import threading
from collections.abc import Iterator

import grpc
import pytest

from mixserve import MixDataSourcesNode, MixServer, serve
from mixserve_client import MixClient
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.processes import DEADLINE_S
from tests.tokens.calling import KEY

# As many as the threads that answer them.
SILENT = {
    methods.GET_BATCH_AT: 16,
    methods.STREAM_BATCHES: 12,
    methods.CALL_SESSION: 16,
    methods.OPEN_SESSION: 4,
    methods.LIST_SESSIONS: 2,
    methods.RENEW_SESSIONS: 2,
}


@pytest.fixture(scope="module")
def server(node: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": node}, shared_memory=False) as running:
        yield running


def test_silent_calls_keep_no_thread(server: MixServer) -> None:
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(DEADLINE_S * 4)
        yield from ()

    with (
        MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [channel.stream_stream(method)(silence()) for method, count in SILENT.items() for _ in range(count)]
        # They have come: the server answers calls of a connection in their order.
        channel.unary_unary(methods.LIST_MIXTURES)(b"", timeout=DEADLINE_S)
        assert len(client.get_batch_at(0, 2, key=7, timeout_s=DEADLINE_S)) > 0
        next(client.batches(2, key=7, timeout_s=DEADLINE_S))
        assert client.sessions() == ()
        with client.session("heard", timeout_s=DEADLINE_S) as session:
            next(session)
        channel.unary_unary(methods.RENEW_SESSIONS)(b"", timeout=DEADLINE_S)
        for call in calls:
            call.cancel()
        over.set()


def request() -> bytes:
    return mix_pb2.GetBatchAtRequest(key=KEY, start=0, size=1).SerializeToString()


def test_a_late_request_is_answered_if_no_other_call_waits(server: MixServer) -> None:
    late = threading.Event()

    def requests() -> Iterator[bytes]:
        late.wait(1.0)  # ten times as long as the server waits when others need the thread
        yield request()

    with grpc.insecure_channel(server.address) as channel:
        assert channel.stream_unary(methods.GET_BATCH_AT)(requests(), timeout=DEADLINE_S)


@pytest.mark.parametrize("method", SILENT)
def test_a_call_without_a_request_is_refused(server: MixServer, method: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as raised:
        list(channel.stream_stream(method)(iter(()), timeout=DEADLINE_S))
    assert isinstance(raised.value, grpc.Call)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "the call ended without a request"
