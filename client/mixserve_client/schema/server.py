"""Descriptions of servers: what they offer in addition to plain calls."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mixserve_client.schema.requests import Sender


@dataclass(frozen=True, slots=True)
class BulkOffer:
    """Where a bulk channel may be opened, once, with `token`: at `port` of `host` (empty: the host of the address at
    which the client called), and for port 0 only through the socket of shared memory."""

    host: str
    port: int
    token: bytes = field(repr=False)


class ServerRequest(NamedTuple):
    """What a caller of GetServer wants: `without_bulk`, no offer of a bulk channel. It says that a `reader` comes from
    another replica, or `leaves` for one."""

    without_bulk: bool = False
    reader: Sender | None = None
    leaves: bool = False


class Load(NamedTuple):
    """How many readers a server has at present, and how many seconds a reply takes on average; 0 if it made none
    lately."""

    readers: int
    reply_s: float


@dataclass(frozen=True, slots=True)
class FleetList:
    """The addresses of all replicas of a fleet at present, `host:port`. The list with the greater `version` is
    newer; 0 is that of no list."""

    version: int = 0
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """`shared_memory` is the path of the Unix socket that accepts slots, empty if there is none; `bulk` is None if the
    server has no bulk channels.

    `workers` has the addresses of the processes that answer there together, `host:port` or `:port`; empty for one.
    `checksums`: the server checks those of requests, and computes those of replies. `zone` is where it is; empty if it
    was not told. `load` is what it has to do; None if the server does not tell. `fleet` is the list of its replicas,
    empty if none is told to it.
    """

    shared_memory: str = ""
    bulk: BulkOffer | None = None
    workers: tuple[str, ...] = ()
    checksums: bool = False
    zone: str = ""
    load: Load | None = None
    fleet: FleetList = FleetList()
