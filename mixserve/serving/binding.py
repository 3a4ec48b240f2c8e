"""The port or socket of a server, with TLS or without."""

import os
from pathlib import Path

import grpc

from mixserve.access.certificates import Certificates
from mixserve.listening import check_listening, listening_error
from mixserve.serving.certificates import credentials_of


def bind(server: grpc.Server, address: str, certificates: Certificates | None) -> str:
    """Bind `address`, and return it with the port that it got. Raises OSError."""
    check_listening(address)
    if address.startswith("unix:"):
        _bind_socket(server, address, certificates)
        return address
    return f"{address.rpartition(':')[0]}:{_add_port(server, address, certificates)}"


def _bind_socket(server: grpc.Server, address: str, certificates: Certificates | None) -> None:
    """Bind a socket that only this user can connect to: the kernel requires the right to write to its file."""
    # There is no moment in which others can connect. Not 0177: other threads may make folders meanwhile.
    before = os.umask(0o077)
    try:
        _add_port(server, address, certificates)
    finally:
        os.umask(before)
    Path(address.removeprefix("unix:").removeprefix("//")).chmod(0o600)


def _add_port(server: grpc.Server, address: str, certificates: Certificates | None) -> int:
    try:
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials_of(certificates))
    except RuntimeError as error:
        raise listening_error(address) from error
