"""Checks of server addresses, which gRPC itself makes too late or not at all."""

import re
from importlib.util import find_spec
from typing import Any, NamedTuple

from mixserve_client.credentials import check_no_token
from mixserve_client.errors import InvalidRequest

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
_ADDRESS_SCHEMES = ("dns:", "ipv4:", "ipv6:")
FLEET_SCHEME = "ray://"
FLEET_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAMED_FLEET = re.compile(rf"({FLEET_NAME})(?:/({FLEET_NAME}))?")


class FleetAddress(NamedTuple):
    """The address of a list of replicas that changes: each of `replicas`, `host:port`, tells it, or if there are none
    here the controller of the fleet `name` in Ray, of its placed `source` if one is named."""

    replicas: tuple[str, ...]
    name: str = ""
    source: str = ""


def check_address(address: Any) -> str:
    """`address` itself, if it is `host:port`, `dns:///name:port`, `unix:///path`, `ray://…` or another gRPC target.

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


def fleet_of(address: str) -> FleetAddress | None:
    """What an address `ray://NAME`, `ray://NAME/SOURCE` or `ray://HOST:PORT,…` names; None for other addresses.

    Raises InvalidRequest.
    """
    if not address.startswith(FLEET_SCHEME):
        return None
    rest = address.removeprefix(FLEET_SCHEME)
    if (named := _NAMED_FLEET.fullmatch(rest)) is not None:
        return FleetAddress((), named[1], named[2] or "")
    replicas = tuple(rest.split(","))
    if all(map(is_host_and_port, replicas)):
        return FleetAddress(replicas)
    raise InvalidRequest(
        f"after {FLEET_SCHEME} must come the name of a fleet (letters, digits, '.', '_' and '-'), or host:port of a "
        f"replica, several with commas between them; got {address!r:.100}"
    )


def require_ray(address: str) -> str:
    """`address` itself. Raises InvalidRequest if it is a name in Ray, and Ray is not installed."""
    fleet = fleet_of(address)
    if fleet is not None and fleet.name and find_spec("ray") is None:
        raise InvalidRequest(
            f"{address} is a name in a Ray cluster, and Ray is not installed here: install ray, or use "
            f"ray://HOST:PORT, the address of any replica, which needs no Ray (`mixserve ray status {fleet.name}`)"
        )
    return address


def _has_good_ports(address: str) -> bool:
    if address.startswith(FLEET_SCHEME):
        return fleet_of(address) is not None
    if address.startswith(_ADDRESS_SCHEMES):
        # gRPC takes port numbers modulo 65536, so that 99999 is 34463; it also knows names of ports, such as "https".
        targets = address.partition(":")[2].rpartition("/")[2].split(",")
        ports = [target.rpartition(":")[2] for target in targets]
        return address.isprintable() and all(_is_port(port) or not port.isdecimal() for port in ports)
    if address.startswith(_SCHEMES):
        return True
    return is_host_and_port(address)


def is_host_and_port(address: str) -> bool:
    """Whether it is `host:port`, with an IPv6 host in brackets."""
    host, _, port = address.rpartition(":")
    is_host = host.isprintable() and not set(host) & set("/, ") and (":" not in host or host[0] + host[-1] == "[]")
    return bool(host) and is_host and _is_port(port)


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16
