"""A grpcio server that does nothing: an empty call to it is the lower bound for any call."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

MODULE = "benchmarks.crowd.plain"
METHOD = "/plain/Nothing"


@contextmanager
def serve() -> Iterator[str]:
    def nothing(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return b""

    handler = grpc.method_handlers_generic_handler("plain", {"Nothing": grpc.unary_unary_rpc_method_handler(nothing)})
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)
