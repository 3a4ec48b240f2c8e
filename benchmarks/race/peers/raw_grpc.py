"""A bare server stream of grpcio: the limit of that library.

In its favour: nothing is planned, gathered or decoded. It sends one prepared frame repeatedly, from the CPU's cache;
frames have at most 1 MiB, the best size, and small batches share frames of 256 KiB. A batch is delivered in pieces.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES, Batch
from benchmarks.race.contestant import Contestant

_METHOD = "/race/Stream"
_FRAME_BYTES = 1 << 20
_SHARED_FRAME_BYTES = 256 << 10


def contestant() -> Contestant:
    server = start_server(__name__)
    channel = grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", -1)])
    stream = channel.unary_stream(_METHOD)

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[Batch]]:
        call = stream(str(frame_rows(size)).encode())
        try:
            yield batches(call, size)
        finally:
            call.cancel()

    return Contestant(open_batches, ("grpcio", "numpy"), ahead=lambda _: 8, servers=(server,))


def frame_rows(size: int) -> int:
    """How many rows a frame holds."""
    if size * ROW_BYTES > _SHARED_FRAME_BYTES:
        return min(size, _FRAME_BYTES // ROW_BYTES)
    return _SHARED_FRAME_BYTES // (size * ROW_BYTES) * size


def batches(frames: Iterator[bytes], size: int) -> Iterator[Batch]:
    rows = (np.frombuffer(frame, np.int32).reshape(-1, ROW) for frame in frames)
    if frame_rows(size) >= size:
        for frame in rows:
            for start in range(0, len(frame), size):
                yield frame[start : start + size]
    else:
        while True:
            yield list(itertools.islice(rows, size // frame_rows(size)))


@contextmanager
def serve() -> Iterator[str]:
    def stream(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        return itertools.repeat(bytes(int(request) * ROW_BYTES))

    handler = grpc.method_handlers_generic_handler("race", {"Stream": grpc.unary_stream_rpc_method_handler(stream)})
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)
