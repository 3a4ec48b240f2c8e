"""Addresses that a server listens on: `host:port` or `unix:///path`, checked before anything is bound."""

from ipaddress import IPv6Address
from typing import Any

from mixserve_client.credentials import check_no_token
from mixserve_client.schema.text import show

_PORTS = 1 << 16
_LONGEST_HOST = 253  # of a name in DNS
_LONGEST_SOCKET_PATH = 107  # sun_path of Linux has 108 bytes, with a zero at the end


def check_host(host: str) -> str:
    """`host` without brackets: a name, an IPv4 address, or an IPv6 address. Raises ValueError."""
    check_no_token(host, "host must be a name or an IP address")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare or bare != host:
        if not _is_ipv6(bare):
            raise ValueError(f"host must be a name or an IP address, without a port or a scheme; got {show(host)}")
    elif not bare:
        raise ValueError("host must not be empty; 127.0.0.1 is this machine only, 0.0.0.0 or :: all interfaces")
    elif not _is_name(bare):
        raise ValueError(f"host must be a name or an IP address, without spaces or slashes; got {show(host)}")
    return bare


def join_address(host: str, port: int) -> str:
    """The address `host:port`, with an IPv6 host in brackets. Raises ValueError."""
    host = check_host(host)
    return check_address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def check_address(address: Any) -> str:
    """`address`, if a server can listen there: `host:port` with a port in 0..65535, or `unix:///path`.

    Raises ValueError.
    """
    # gRPC does not check: it takes ports modulo 65536, and chooses a port if it finds none.
    if not isinstance(address, str):
        raise ValueError(f"it must be a text such as '127.0.0.1:50051', got {show(address)}")
    if address.startswith("unix:"):
        return _check_unix(address)
    host, colon, port = address.rpartition(":")
    if _is_ipv6(host) or _is_ipv6(address):
        raise ValueError(f"an IPv6 host must be in brackets before its port, as in [::1]:50051; got {show(address)}")
    if not colon or not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < _PORTS):
        raise ValueError(f"it must be host:port with a port in 0..65535, or unix:///path; the port is {show(port)}")
    check_host(host)
    return address


def _check_unix(address: str) -> str:
    path = address.removeprefix("unix:").removeprefix("//")
    if not path or not path.isprintable():
        raise ValueError("unix: must be followed by the path of a socket, in printable characters")
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a socket may have at most {_LONGEST_SOCKET_PATH} bytes; choose a shorter one")
    return address


def _is_ipv6(host: str) -> bool:
    try:
        return host.isprintable() and bool(IPv6Address(host))
    except ValueError:
        return False


def _is_name(host: str) -> bool:
    return len(host) <= _LONGEST_HOST and host.isprintable() and not set(host) & set(" \t[]/,\\'\"@?#")
