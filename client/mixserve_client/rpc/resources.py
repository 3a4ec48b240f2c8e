"""A client's resources in one process: calls, threads and buffers."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from mixserve_client import tracing
from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import PerProcess
from mixserve_client.metrics.client_metrics import client_metrics
from mixserve_client.metrics.reading import ReadingFigures
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.rpc.replicas import ATTEMPT_S
from mixserve_client.rpc.request_sender import RequestSender
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.schema.client_name import check_client_name, own_name
from mixserve_client.schema.stats import Metric, by_name
from mixserve_client.transport.base import Transport
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.names import NameTransport

_FETCH_THREADS = 4


class Closing(Protocol):
    """A user of the resources that must be closed before they are."""

    def close(self) -> None:
        """End it; calls still work."""
        ...

    def join(self) -> None:
        """Wait a limited time for its threads; calls no longer work."""
        ...


class ClientResources:
    """The calls, threads and buffers that a client shares with its iterators and sessions; connects at the first call.

    They end when they are closed, or when the client and everything that it handed out are collected.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        patience_s: float,
        attempt_s: float = ATTEMPT_S,
        *,
        hedge: bool = False,
        name: str | None = None,
        zone: str | None = None,
        requests: RequestFigures | None = None,
    ):
        """`name` is the client's (None: HOST/PID), and `zone` where it is. `requests` are the figures in which
        `transports` count connections.

        Raises InvalidRequest.
        """
        tracing.look()
        self.sender = RequestSender(check_client_name(name) or own_name())  # of calls that belong to no iterator
        self.reading = ReadingFigures()
        self.requests = RequestFigures() if requests is None else requests
        self.caller = RetryingCaller(
            transports, patience_s, attempt_s, hedge=hedge, zone=zone or "", figures=self.requests
        )
        # A session lives on one server: of those that a name stands for, on the one that gRPC has found.
        self.session_caller, ones = self.caller, [getattr(one, "as_one", one) for one in transports]
        if ones != list(transports):
            self.session_caller = RetryingCaller(ones, patience_s, attempt_s, figures=self.requests)
        # The address of a list of servers, which must not have sessions: each of them would have others.
        self.fleet = next((one.target for one in transports if isinstance(one, NameTransport) and one.is_fleet), None)
        self.buffers = MemoryPool()
        # Threads must not hold these resources, or they would never be collected: hence `on_exit` gets the parts, and
        # is not a bound method.
        self._users: list[Closing] = []
        callers = (self.caller, self.session_caller)
        self.threads = DaemonThreadPool(_FETCH_THREADS, on_exit=partial(_end, self._users, callers))

    def close_first(self, user: Closing) -> None:
        """Close `user` before the connections, and join it after them; `user` must not hold these resources."""
        self._users.append(user)
        if self.threads.is_closed:
            user.close()

    def stats(self) -> dict[str, Metric]:
        """The metrics of the client, by name."""
        return by_name(client_metrics(self.sender.client, self.reading, self.requests, self.caller.replica_counts))

    def close(self) -> None:
        """End the calls in flight and the connections; a second call does nothing."""
        self.threads.close()


def check_transports(transports: Iterable[Transport]) -> tuple[Transport, ...]:
    """The transports. Raises InvalidRequest for addresses."""
    if isinstance(transports, str):
        raise InvalidRequest(f"transports must not be an address: use MixClient.connect({transports!r:.100})")
    made = tuple(transports)
    if any(isinstance(transport, str) for transport in made):
        raise InvalidRequest(f"transports must not be addresses: use MixClient.connect({list(made)!r:.100})")
    return made


# Per process: a forked process must not use the threads and sockets of its parent.
Resources = PerProcess[ClientResources]


def _end(users: list[Closing], callers: Iterable[RetryingCaller]) -> None:
    for user in users:
        user.close()
    for caller in callers:
        caller.close()
    for user in users:
        user.join()
