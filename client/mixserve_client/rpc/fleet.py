"""The replicas of a client: one for each address, or for each server that a name stands for at present."""

import logging
from collections.abc import Iterator, Sequence

from mixserve_client.limited_log import LimitedLog
from mixserve_client.rpc.replica import Replica
from mixserve_client.transport.base import Transport
from mixserve_client.transport.names import NameTransport

_logger = logging.getLogger("mixserve_client")


class Fleet:
    """The replicas of `transports`. One thread at a time may look names up; each may read `all`."""

    def __init__(self, transports: Sequence[Transport]):
        self._entries = [_Name(one) if isinstance(one, NameTransport) else Replica(one) for one in transports]
        self._left = list[tuple[Replica, bool]]()  # no name stands for them any more; whether they were idle lately
        self.all = tuple(self._replicas())

    @property
    def has_names(self) -> bool:
        """Whether the replicas may change."""
        return any(isinstance(entry, _Name) for entry in self._entries)

    def look_up(self) -> None:
        """Make `all` what the names stand for now; names that cannot be looked up stand for the same as before.

        What they stood for before ends when no request is under way there.
        """
        for entry in self._entries:
            if isinstance(entry, _Name):
                self._left += [(replica, False) for replica in entry.look_up()]
        still = list[tuple[Replica, bool]]()
        for replica, was_idle in self._left:
            # Twice: a thread may have chosen it, and not counted its request yet.
            if was_idle and replica.is_idle:
                replica.transport.close()
            else:
                still.append((replica, replica.is_idle))
        self._left = still
        self.all = tuple(self._replicas())

    def close(self) -> None:
        """Close the transports to all that there are, and were."""
        for entry in self._entries:
            if isinstance(entry, _Name):
                entry.close()
            else:
                entry.transport.close()
        for replica, _ in self._left:
            replica.transport.close()

    def _replicas(self) -> Iterator[Replica]:
        for entry in self._entries:
            if isinstance(entry, _Name):
                yield from entry.replicas
            else:
                yield entry


class _Name:
    """A name. While it stands for one server, or cannot be looked up, gRPC does that, and finds it again."""

    def __init__(self, transport: NameTransport):
        self._transport = transport
        self._as_one = Replica(transport)
        self._found: dict[str, Replica] = {}  # by target
        self._failed, self._changed = LimitedLog(_logger), LimitedLog(_logger)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """One for each server that the name stands for."""
        return tuple(self._found.values()) or (self._as_one,)

    def look_up(self) -> list[Replica]:
        """Find the replicas; returns those that are none any more."""
        try:
            targets = self._transport.look_up()
        except OSError as error:
            said = "the client keeps the servers that it knows" if self._found else "the client tries again"
            self._failed.warn("%s cannot be looked up, and %s: %s", self._transport.target, said, error)
            return []
        if len(targets) < 2:
            targets = ()
        left = [replica for target, replica in self._found.items() if target not in targets]
        if left or len(targets) > len(self._found):
            self._changed.info("%s stands for %d servers: %s", self._transport.target, len(targets) or 1, targets)
        self._found = {target: self._found.get(target) or Replica(self._transport.open(target)) for target in targets}
        return left

    def close(self) -> None:
        self._transport.close()
        for replica in self._found.values():
            replica.transport.close()
