"""Checks of server addresses, which gRPC itself makes too late or not at all."""

from typing import Any

from mixserve_client.credentials import check_no_token
from mixserve_client.errors import InvalidRequest

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
_ADDRESS_SCHEMES = ("dns:", "ipv4:", "ipv6:")


def check_address(address: Any) -> str:
    """`address` itself, if it is `host:port`, `dns:///name:port`, `unix:///path` or another gRPC target.

    Raises InvalidRequest for addresses that gRPC would try in vain, or at another port than the given one.
    """
    if isinstance(address, str):
        check_no_token(address, "a server's address must be host:port, dns:///name:port or unix:///path")
    if isinstance(address, str) and address == address.strip() and _has_good_ports(address):
        return address
    raise InvalidRequest(
        f"a server's address must be host:port with a port in 1..65535, dns:///name:port or unix:///path, with an IPv6 "
        f"host in brackets, as in [::1]:50051; pass several servers as a list; got {address!r:.100}"
    )


def _has_good_ports(address: str) -> bool:
    if address.startswith(_ADDRESS_SCHEMES):
        # gRPC takes port numbers modulo 65536, so that 99999 is 34463; it also knows names of ports, such as "https".
        targets = address.partition(":")[2].rpartition("/")[2].split(",")
        ports = [target.rpartition(":")[2] for target in targets]
        return address.isprintable() and all(_is_port(port) or not port.isdecimal() for port in ports)
    if address.startswith(_SCHEMES):
        return True
    host, _, port = address.rpartition(":")
    is_host = host.isprintable() and not set(host) & set("/, ") and (":" not in host or host[0] + host[-1] == "[]")
    return bool(host) and is_host and _is_port(port)


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16
