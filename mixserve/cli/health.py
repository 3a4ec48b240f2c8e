"""`mixserve health`: the health of a running server, as one word."""

# No JAX and no server code: a container runs this every few seconds.

from contextlib import closing

from mixserve.cli.connecting import Connection
from mixserve_client.credentials import TlsOptions, TokenOptions
from mixserve_client.errors import MixserveError
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import health


def probe(address: str, timeout_s: float, connection: Connection | None = None, mixture: str | None = None) -> str:
    """SERVING or NOT_SERVING, as the server at `address` answers, for `mixture` if one is given; otherwise the error
    that came instead."""
    try:
        given = (connection or Connection()).credentials()
        # No token: health needs none, so it should not travel.
        credentials = Credentials(TlsOptions.of(given.get("tls")), TokenOptions())
        with closing(GrpcTransport(address, credentials)) as transport:
            return health.decode_status(transport.call(health.CHECK, health.encode_check(mixture), timeout_s))
    except MixserveError as error:
        return f"{type(error).__name__}: {error}"
