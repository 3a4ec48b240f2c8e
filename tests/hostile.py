"""A server that answers as a test wants: any bytes, any number of replies, for any method."""

from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from mixserve_client.wire import methods

Answer = Callable[[str, bytes], Iterable[bytes]]
STREAMS = (methods.STREAM_BATCHES, methods.STREAM_POSITIONS)


class Answers:
    """A servicer for `InProcessTransport` whose replies come from `answer`; a single call gets the first of them."""

    def __init__(self, answer: Answer):
        self.answer = answer

    def handle(self, method: str, request: bytes) -> bytes:
        return next(iter(self.answer(method, request)))

    def stream(self, method: str, request: bytes) -> Iterator[bytes]:
        yield from self.answer(method, request)

    def copies_rows(self, method: str, request: bytes) -> bool:
        return False  # a test may want a stream that never ends


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, answers: Answers, streams: Container[str]):
        self._answers = answers
        self._streams = streams

    def service(self, handler_call_details):
        method = handler_call_details.method
        if method in self._streams:
            return grpc.unary_stream_rpc_method_handler(lambda request, _: self._answers.stream(method, request))
        return grpc.unary_unary_rpc_method_handler(lambda request, _: self._answers.handle(method, request))


@contextmanager
def hostile_server(answers: Answers, streams: Container[str] = STREAMS) -> Iterator[str]:
    """The address of a real gRPC server with these answers; to the methods `streams` it sends all of them."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers([_Handler(answers, streams)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
