"""The health of a running server -> one word and an exit code."""

from contextlib import closing

from mixserve_client.errors import MixserveError
from mixserve_client.transport.connect import plain_channel
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import health


def probe(address: str, timeout_s: float) -> str:
    """What the server at `address` says of itself: SERVING or NOT_SERVING; otherwise why there is no answer."""
    try:
        with closing(GrpcTransport(address, plain_channel)) as transport:
            return health.decode_status(transport.call(health.CHECK, b"", timeout_s))
    except MixserveError as error:
        return f"{type(error).__name__}: {error}"
