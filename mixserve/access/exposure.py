"""What a server may listen on: beyond this machine only with TLS, and with tokens or certificates of clients."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address


def check_exposure(
    address: str, *, has_tls: bool, has_client_ca: bool, has_tokens: bool, insecure: bool = False
) -> None:
    """Raises ValueError, which says what to add, if others could reach `address` (`host:port` or `unix:…`) unchecked.

    Raises OSError if the host has no address.
    """
    has_credentials = has_tokens or has_client_ca
    if insecure or (has_tls and has_credentials) or is_local(address):
        return
    lacking: list[str] = []
    if not has_tls:
        lacking.append("tls: {certificate: server.pem, key: server.key}")
    if not has_credentials:
        lacking.append("tokens: tokens.yaml")
    needs = " and ".join(
        what
        for what, has in (("TLS", has_tls), ("tokens (or tls.client_ca, for certificates of clients)", has_credentials))
        if not has
    )
    raise ValueError(
        f"{address} can be reached from other machines, which needs {needs}: add to the file "
        f"`server: {{{', '.join(lacking)}}}` (docs/security.md makes both), or listen on 127.0.0.1; if everybody on "
        f"the network may read and change everything, say so with --insecure, `server: {{insecure: true}}` or "
        f"serve(..., insecure=True)"
    )


def is_local(address: str) -> bool:
    """Whether only this machine can connect: a Unix socket, or a host of which every address is loopback.

    Raises OSError if the host has no address.
    """
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        # Not "local": the name may have an address again when the server binds it.
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            getattr(error, "errno", None), f"cannot listen on {address}: {reason}; choose another address"
        ) from error
    return all(_is_loopback(str(sockaddr[0])) for *_, sockaddr in found)


def _is_loopback(text: str) -> bool:
    parsed: IPv4Address | IPv6Address = ip_address(text)
    # Python before 3.13 does not look into ::ffff:127.0.0.1.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback
