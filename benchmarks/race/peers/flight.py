"""Arrow Flight: a Python server's DoGet, whose C++ streams record batches, and a client that views them.

In its favour: nothing is gathered, it sends the same record batch repeatedly; records are a column of fixed-size binary
(fixed-size lists were slower at small batches); batches above 1,024 records arrive in pieces of 1 MiB, unjoined: whole
ones arrived at about half the speed, while up to that size pieces are not faster.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES, Batch
from benchmarks.race.contestant import Contestant
from benchmarks.race.pieces import piece_rows


def contestant() -> Contestant:
    server = start_server(__name__)
    client = flight.connect(server.address)

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[Batch]]:
        reader = client.do_get(flight.Ticket(str(piece_rows(size))))
        try:
            yield batches(reader, size)
        finally:
            reader.cancel()

    return Contestant(open_batches, ("pyarrow", "numpy"), ahead=lambda _: 8, servers=(server,))


def batches(reader: flight.FlightStreamReader, size: int) -> Iterator[Batch]:
    while True:
        yield [rows(reader.read_chunk().data) for _ in range(size // piece_rows(size))]


def rows(piece: pa.RecordBatch) -> np.ndarray:
    return np.frombuffer(piece.column(0).buffers()[1], np.int32).reshape(-1, ROW)


@contextmanager
def serve() -> Iterator[str]:
    with Server("grpc://127.0.0.1:0") as server:
        yield f"grpc://127.0.0.1:{server.port}"


class Server(flight.FlightServerBase):
    """Sends one record batch, of as many records as the ticket says, without end."""

    def do_get(self, _context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.RecordBatchStream:
        count = int(ticket.ticket)
        column = pa.Array.from_buffers(pa.binary(ROW_BYTES), count, [None, pa.py_buffer(bytes(count * ROW_BYTES))])
        piece = pa.record_batch([column], names=["tokens"])
        return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(piece.schema, itertools.repeat(piece)))
