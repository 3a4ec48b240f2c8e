"""gRPC's Unix sockets: who owns the file."""

import os

from mixserve_client.errors import Unauthenticated

_ROOT = 0


def socket_of(target: str) -> str | None:
    """The path of the socket that a gRPC target names; None if it names none."""
    return target.removeprefix("unix:").removeprefix("//") if target.startswith("unix:") else None


def check_owner(path: str) -> None:
    """Raises Unauthenticated if the socket belongs to another user than this one or root: that user may have put it
    there to collect tokens. A socket that is not there is not an error here.
    """
    if "%" in path:  # gRPC would connect to another path
        raise Unauthenticated(f"no token is sent to unix:{path}: the path of a socket must not have the character %")
    try:
        owner = os.stat(path).st_uid  # noqa: PTH116  # of what a link leads to, as gRPC connects
    except OSError:
        return
    if owner not in (os.geteuid(), _ROOT):
        raise Unauthenticated(
            f"unix:{path} belongs to user {owner}, and this process runs as user {os.geteuid()}: no token is sent to "
            f"another user's server; connect over TCP with TLS, or run both as one user"
        )
