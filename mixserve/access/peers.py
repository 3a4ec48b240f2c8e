"""A gRPC peer, such as `ipv4:10.0.0.1:50000` -> its host, and whether that is this one."""

import socket
from ipaddress import ip_address
from urllib.parse import unquote


def split_peer(peer: str) -> tuple[str, str]:
    """The kind of a peer (ipv4, ipv6, unix, …), and its host without brackets and port; empty if it has none."""
    kind, _, rest = unquote(peer).partition(":")
    return kind, rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def is_on_this_host(peer: str) -> bool:
    """Whether a peer calls from this host: over a Unix socket, or from an address that this host has."""
    kind, host = split_peer(peer)
    if kind == "unix":
        return True
    return bool(host) and _is_own(host)


def _is_own(host: str) -> bool:
    try:
        mapped = getattr(ip_address(host.partition("%")[0]), "ipv4_mapped", None)
        ((family, *_, address),) = socket.getaddrinfo(
            str(mapped or host), 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
        # A client that names the host by its address in the network comes from that address. The kernel binds sockets
        # to addresses of its own only, which asks it for one rather than for all.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except (OSError, ValueError):
        return False
    return True
