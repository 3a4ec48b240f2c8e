"""Addresses that a server listens on: `host:port` or `unix:///path`, checked before anything is bound."""

from collections.abc import Mapping
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


def ports_of(
    address: str,
    others: Mapping[str, str],
    bulk_port: int | None,
    *,
    processes: int = 1,
    worker_port: int | None = None,
) -> list[str]:
    """All addresses at which a server listens: `address`, `others` by what they are for, and, unless it is None, a port
    of the first's host for bulk channels. `address` is one that can be used.

    Each of several `processes` has a port of its own for bulk channels, counted from `bulk_port`, and one for calls,
    counted from `worker_port`, which is not among these addresses. Raises ValueError if a port is none, or one of the
    others.
    """
    found = [address, *others.values()]
    if bulk_port is None:
        return found
    if isinstance(bulk_port, bool) or not isinstance(bulk_port, int) or not 0 <= bulk_port < _PORTS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"bulk_port must be a port in 0..65535, 0 for a free one; got {show(bulk_port)}")
    if address.startswith("unix:"):
        if bulk_port:
            raise ValueError(f"a server on a Unix socket has no port for bulk channels, got bulk_port={bulk_port}")
        return found
    if not bulk_port:
        return found
    whose_ports = {"the server's own port": address} | {f"the port of {what}": at for what, at in others.items()}
    taken = [(int(at.rpartition(":")[2]), whose) for whose, at in whose_ports.items()]
    taken += [(worker_port + number, "that of a process") for number in range(processes) if worker_port]
    ports = range(bulk_port, bulk_port + processes)
    for port, whose in taken:
        if port in ports:
            raise ValueError(f"bulk_port must be a port of its own, and {port} is {whose}; 0 is a free one")
    host = address.rpartition(":")[0]
    try:
        return [*found, *(join_address(host, port) for port in ports)]
    except ValueError as error:
        raise ValueError(f"bulk_port {bulk_port} leaves no ports for {processes} processes: {error}") from None


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
