"""The certificates of a server's port, for gRPC."""

import grpc

from mixserve.access.certificates import Certificates, Pair


def credentials_of(certificates: Certificates) -> grpc.ServerCredentials:
    """Credentials of a port: each new connection gets the files as they are then, if they fit each other."""

    def newest() -> grpc.ServerCertificateConfiguration | None:  # gRPC calls this once for each handshake
        changed = certificates.changed()
        return None if changed is None else _configuration(changed)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(certificates.first),
        newest,  # pyright: ignore[reportArgumentType]  # None: nothing has changed
        require_client_authentication=certificates.requires_clients,
    )


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)
