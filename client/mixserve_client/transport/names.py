"""A name that stands for several servers: what it stands for now, and a transport to each."""

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Protocol

from mixserve_client.transport.base import Lane, ReadMode, Replies, Transport
from mixserve_client.transport.endpoints import Endpoint, endpoint_of

_PREFIX = "dns:///"


class LookUp(Protocol):
    """Finds out what a name stands for now."""

    every_s: float
    """How often to ask."""

    fewest: int
    """A name that stands for fewer servers than that is left to `as_one`."""

    def __call__(self, known: Sequence[Transport]) -> tuple[str, ...]:
        """The targets. `known` are transports to the servers that it stood for before, those first that answer.

        Raises OSError or a MixserveError if they cannot be found.
        """
        ...


def name_in(target: str) -> Endpoint | None:
    """The name and port of a target `dns:///name:port`; None for other targets."""
    endpoint = endpoint_of(target) if target.startswith(_PREFIX) else None
    if endpoint is None:
        return None
    try:
        ip_address(endpoint.host)
    except ValueError:
        return endpoint
    return None  # it stands for itself


class DnsLookUp:
    """Asks the system's resolver. While a name stands for one server, gRPC looks it up, and finds it again."""

    every_s = 10.0
    fewest = 2

    def __init__(self, name: Endpoint):
        self._name = name

    def __call__(self, known: Sequence[Transport]) -> tuple[str, ...]:  # noqa: ARG002
        """The targets that the name stands for now, sorted. Raises OSError.

        A server that has an address in IPv4 and one in IPv6 counts once: only those of one version are given.
        """
        found = socket.getaddrinfo(*self._name, type=socket.SOCK_STREAM)
        families = {str(address[0]): family for family, _, _, _, address in found}  # in the order of preference
        ((version, _),) = Counter(families.values()).most_common(1)
        form = "ipv6:[{}]:{}" if version == socket.AF_INET6 else "ipv4:{}:{}"
        hosts = sorted(host for host, family in families.items() if family == version)
        return tuple(form.format(host, self._name.port) for host in hosts)


class NameTransport:
    """One of the servers at a name, `as_one`.

    `look_up` and `open` are for those who choose themselves.
    """

    def __init__(self, target: str, look_up: LookUp, as_one: Transport, open_transport: Callable[[str], Transport]):
        self.target = target
        self.as_one = as_one
        self.look_up = look_up
        self._open = open_transport

    @property
    def name(self) -> str:
        return self.as_one.name

    @property
    def is_fleet(self) -> bool:
        """Whether it stands for replicas that are told from one another, also if there is one."""
        return self.look_up.fewest == 1

    def open(self, target: str) -> Transport:
        """A transport to one of the servers."""
        return self._open(target)

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        return self.as_one.read_mode(method, request)

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        return self.as_one.call(method, request, timeout_s)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        return self.as_one.stream(method, request, timeout_s, replies, reply_bytes, lane)

    def close(self) -> None:
        self.as_one.close()
