"""The addresses of servers: gRPC's targets, as far as it checks them too late or not at all."""

from typing import Any

from mixserve_client.errors import InvalidRequest

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
_ADDRESS_SCHEMES = ("dns:", "ipv4:", "ipv6:")


def check_address(address: Any) -> str:
    """`address`, if it is `host:port`, `dns:///name:port`, `unix:///path` or another target of gRPC.

    Raises InvalidRequest for what gRPC would look for in vain, or at a port that was not named.
    """
    if isinstance(address, str) and address == address.strip() and _has_good_ports(address):
        return address
    raise InvalidRequest(
        f"a server's address must be host:port with a port in 1..65535, dns:///name:port or unix:///path, an IPv6 host "
        f"in brackets as in [::1]:50051, and several servers a list of such; got {address!r:.100}"
    )


def _has_good_ports(address: str) -> bool:
    if address.startswith(_ADDRESS_SCHEMES):  # gRPC takes their ports modulo 65536, and knows some by name
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
