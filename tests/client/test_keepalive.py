"""Pings of quiet connections: often, but seldom to servers that end connections for it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from mixserve_client import MixClient
from mixserve_client.transport.channel import SELDOM_S
from mixserve_client.wire import methods
from mixserve_client.wire.mixture import encode_names

QUIET_S = 8.0
DEADLINE_S = 60


class Quiet(grpc.GenericRpcHandler):
    """Answers the first request after a while, and others at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.over = threading.Event()

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        return grpc.unary_unary_rpc_method_handler(self._answer) if _is_list(handler_call_details) else None

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked += 1
        if self.asked == 1:
            self.over.wait(QUIET_S)
        return encode_names(["train"])


def _is_list(details: Any) -> bool:
    return details.method == methods.LIST_MIXTURES


@pytest.mark.parametrize("is_old", [True, False])
def test_a_server_that_ends_connections_for_pings_gets_fewer(monkeypatch, is_old):
    # Three times as often as servers of before take it, and half as often as ours do.
    interval_ms = 3_000 if is_old else 500
    monkeypatch.setattr("mixserve_client.transport.grpc.KEEPALIVE_S", 1)
    options = [("grpc.http2.min_ping_interval_without_data_ms", interval_ms)]
    quiet, server = Quiet(), grpc.server(ThreadPoolExecutor(4), options=options)
    server.add_generic_rpc_handlers((quiet,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with MixClient.connect(f"127.0.0.1:{port}", patience_s=DEADLINE_S, shared_memory=False) as client:
            began = time.monotonic()
            assert client.mixtures() == ("train",)
            took_s = time.monotonic() - began
            transport: Any = client.catalog.resources.here.caller.transport
            keepalive_s = transport._shared._inner._keepalive_s
            assert (quiet.asked, keepalive_s) == ((2, SELDOM_S) if is_old else (1, 1))
            assert (took_s < QUIET_S) == is_old
    finally:
        quiet.over.set()
        server.stop(None)
