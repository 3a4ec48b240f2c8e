"""`mixserve health`: the health of a running server, as one word."""

# No JAX and no server code: a container runs this every few seconds.

from contextlib import closing

from mixserve_client.errors import MixserveError
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import health


def probe(address: str, timeout_s: float) -> str:
    """SERVING or NOT_SERVING, as the server at `address` answers; otherwise the error that came instead."""
    try:
        with closing(GrpcTransport(address)) as transport:
            return health.decode_status(transport.call(health.CHECK, b"", timeout_s))
    except MixserveError as error:
        return f"{type(error).__name__}: {error}"
