"""Requests of gRPC's own services that cannot be decoded: refused, and the server can be stopped after them."""

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from mixserve import MixDataSourcesNode, serve
from mixserve_client.wire import health
from tests.tokens.calling import REFLECTION
from tests.waiting import wait_until

COUNT = 10
METHODS = {"check": health.CHECK, "watch": "/grpc.health.v1.Health/Watch", "reflection": REFLECTION}
LARGE = reflection_pb2.ServerReflectionRequest(list_services="a" * 4096).SerializeToString()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("asked", "said"), [(b"\xff\xff\xff", "this is not a "), (LARGE, "may have 4096 bytes")])
def test_a_server_ends_after_requests_that_are_none(
    node: MixDataSourcesNode, method: str, asked: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC counted such calls as open for good, and the end of the server waited for them for ever."""
    with serve({"train": node}, shared_memory=False) as server:
        with grpc.insecure_channel(server.address) as channel:
            for _ in range(COUNT):
                with pytest.raises(grpc.RpcError) as refused:
                    list(channel.unary_stream(method)(asked, timeout=10))
                assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                assert said in refused.value.details()
        wait_until(lambda: not server._server._state.rpc_states, "that gRPC's calls end")
    assert "gRPC has calls that do not end" not in caplog.text
