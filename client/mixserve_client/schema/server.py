"""Descriptions of servers: what they offer in addition to plain calls."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BulkOffer:
    """Where a bulk channel may be opened, once, with `token`: at `port` of `host` (empty: the host of the address at
    which the client called), and for port 0 only through the socket of shared memory."""

    host: str
    port: int
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """`shared_memory` is the path of the Unix socket that accepts slots, empty if there is none; `bulk` is None if the
    server has no bulk channels.

    `workers` has the addresses of the processes that answer there together, `host:port` or `:port`; empty for one.
    `checksums`: the server checks those of requests, and computes those of replies. `zone` is where it is; empty if it
    was not told.
    """

    shared_memory: str = ""
    bulk: BulkOffer | None = None
    workers: tuple[str, ...] = ()
    checksums: bool = False
    zone: str = ""
