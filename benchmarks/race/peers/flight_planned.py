"""Arrow Flight doing the same work: `GeneratorStream` over batches that mixserve's own parts plan and gather.

In its favour, as in `flight`: records are a column of fixed-size binary, and batches above 1,024 records are planned,
gathered and sent in pieces of 1 MiB. glibc is made to keep freed memory, as in a mixserve server.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW_BYTES, Batch
from benchmarks.race.contestant import Contestant
from benchmarks.race.peers.flight import batches
from benchmarks.race.pieces import piece_rows

_COLUMN = pa.binary(ROW_BYTES)
_SCHEMA = pa.schema([("tokens", _COLUMN)])


def contestant() -> Contestant:
    server = start_server(__name__)
    client = flight.connect(server.address)

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[Batch]]:
        reader = client.do_get(flight.Ticket(json.dumps([piece_rows(size), key])))
        try:
            yield batches(reader, size)
        finally:
            reader.cancel()

    return Contestant(open_batches, ("pyarrow", "mixserve", "jax", "numpy"), ahead=lambda _: 8, servers=(server,))


@contextmanager
def serve() -> Iterator[str]:
    from mixserve_client.transport.allocator import keep_freed_memory

    keep_freed_memory()
    with Server("grpc://127.0.0.1:0") as server:
        yield f"grpc://127.0.0.1:{server.port}"


class Server(flight.FlightServerBase):
    """Sends the mixture in record batches of as many records as the ticket says, under its key, without end."""

    def __init__(self, location: str):
        # Only servers import mixserve: the trainer's process has neither JAX nor the data.
        from benchmarks.race.planned import Planned

        self._planned = Planned()
        super().__init__(location)

    def do_get(self, _context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.GeneratorStream:
        return flight.GeneratorStream(_SCHEMA, self._pieces(*json.loads(ticket.ticket)))

    def _pieces(self, rows: int, key: int) -> Iterator[pa.RecordBatch]:
        from benchmarks.race.planned import fresh

        # Every piece in memory of its own: Flight sends it later, without a copy.
        for piece in self._planned.fill(rows, key, fresh(rows)):
            column = pa.Array.from_buffers(_COLUMN, rows, [None, pa.py_buffer(piece)])
            yield pa.record_batch([column], schema=_SCHEMA)
