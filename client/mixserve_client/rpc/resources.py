"""What a client has of its own in one process: calls, threads and buffers."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from mixserve_client.forks import PerProcess
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.transport.base import Transport
from mixserve_client.transport.buffers import MemoryPool

_FETCH_THREADS = 4


class Closing(Protocol):
    """What ends together with the resources that it uses."""

    def close(self) -> None:
        """End it, while calls can still be made."""
        ...

    def join(self) -> None:
        """Wait a while for its threads, when no call can be made any more."""
        ...


class ClientResources:
    """Nothing connects before the first call. A forked process makes its own: threads and sockets are its parent's.

    They end when they are closed, or when the client and everything that it handed out are gone: each of them holds
    these resources, and none of their threads does.
    """

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        self.caller = RetryingCaller(transports, patience_s)
        self.buffers = MemoryPool()
        self._users: list[Closing] = []
        self.threads = DaemonThreadPool(_FETCH_THREADS, on_exit=partial(_end, self._users, self.caller))

    def close_first(self, user: Closing) -> None:
        """Close `user` before the connections are, and join it after that; it must not hold these resources."""
        self._users.append(user)
        if self.threads.is_closed:
            user.close()

    def close(self) -> None:
        """End the calls under way and the connections; closing twice is closing once."""
        self.threads.close()


# What is shared by a client, its iterators and its sessions: the resources of the process that they are used in.
Resources = PerProcess[ClientResources]


def _end(users: list[Closing], caller: RetryingCaller) -> None:
    for user in users:
        user.close()
    caller.close()
    for user in users:
        user.join()
