"""A gRPC target -> the host and port that it names, and whether others could read what is sent there."""

import re
from ipaddress import ip_address
from typing import NamedTuple

from mixserve_client.errors import Unauthenticated
from mixserve_client.transport.sockets import check_owner, socket_of

# Targets in which gRPC reads nothing else than we do: in "dns:a:1#/b:2" it finds a, and for "dns://c/b:2" it asks the
# name server c.
_PLAIN = re.compile(r"(?:(?:dns|ipv4|ipv6):(?:///)?)?[^/?#%,]+")


class Endpoint(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def endpoint_of(target: str) -> Endpoint | None:
    """The host and port of a target, of several the first; None of one that has none, such as a Unix socket."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = rest.rpartition("/")[2].partition(",")[0]
    elif colon and scheme in ("unix", "unix-abstract", "vsock", "xds"):
        return None
    host, _, port = target.rpartition(":")
    return Endpoint(host.strip("[]"), int(port)) if host and port.isdecimal() else None


def beside(target: str, address: str) -> str | None:
    """The target of `address`: `host:port`, or `:port` at the host of `target`; None if that names no single host."""
    host, _, port = address.rpartition(":")
    if host:
        return address
    if "," in target or endpoint_of(target) is None:
        return None
    return f"{target.rpartition(':')[0]}:{port}"


def check_may_have_token(target: str) -> None:
    """Raises Unauthenticated unless a token may be sent to `target` in plain text: to this machine's own addresses, and
    to a socket of this user or root."""
    path = socket_of(target)
    if path is not None:
        check_owner(path)
        return
    endpoint = endpoint_of(target)
    if endpoint is None or _PLAIN.fullmatch(target) is None or not _is_loopback(endpoint.host):
        raise Unauthenticated(
            f"no token is sent to {target} without TLS, since others could read it: connect with tls=True or "
            "tls='ca.pem'"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
