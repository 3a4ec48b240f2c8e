"""One of several processes that answer at one address: its own address beside it, and where sessions are kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from mixserve.access.certificates import Certificates
from mixserve.serving.binding import bind


@dataclass(frozen=True, slots=True)
class Worker:
    """The worker `number`, counted from 0, as `mixserve serve --processes` starts it.

    It listens at `address` too, and no other worker does. Clients are told those of all: `told`. The first worker keeps
    the sessions of all, and answers for them at `state_address`, a Unix socket of this user. Each tells its metrics at
    its own one of `stats_sockets`.
    """

    number: int
    address: str
    told: tuple[str, ...]
    state_address: str
    stats_sockets: tuple[str, ...]
    # Gets the fingerprints of the mixtures; returns when the worker may serve them.
    wait_to_serve: Callable[[Mapping[str, str]], None]

    @property
    def readers_file(self) -> Path:
        """Where the workers tell each other how many readers they have."""
        return Path(self.stats_sockets[0]).with_name("readers")

    @property
    def keeps_state(self) -> bool:
        """Whether this worker answers the calls of sessions itself."""
        return self.number == 0

    def bind(self, server: grpc.Server, certificates: Certificates | None) -> None:
        """Bind the worker's own addresses. Raises OSError."""
        bind(server, self.address, certificates)
        if self.keeps_state:
            bind(server, self.state_address, None)
