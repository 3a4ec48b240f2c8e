"""The certificates of a server's port, for gRPC."""

import threading
import time

import grpc

from mixserve.access.certificates import Certificates, Pair

_RESUMED_S = 60.0


def credentials_of(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials of a port: each new connection gets the files as they are then, if they fit each other."""

    lock = threading.Lock()
    first = used = certificates.pair
    made = time.monotonic()

    def newest() -> grpc.ServerCertificateConfiguration | None:  # gRPC calls this once for each handshake
        nonlocal made, used
        pair, now = certificates.pair, time.monotonic()
        with lock:
            # Sessions are resumed without a look at the client's certificate, which may have expired by then. Another
            # configuration has other keys, and knows none of them.
            is_old = certificates.requires_clients and now - made >= _RESUMED_S
            if pair is used and not is_old:
                return None
            made, used = now, pair
            return _configuration(pair)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        newest,  # pyright: ignore[reportArgumentType]  # None: nothing has changed
        require_client_authentication=certificates.requires_clients,
    )


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)
