"""What a client has of its own in one process: calls, threads and memory."""

from collections.abc import Callable, Sequence
from functools import partial

from mixserve_client.forks import PerProcess
from mixserve_client.leases import Leases
from mixserve_client.memory import MemoryPool
from mixserve_client.retry import PatientCaller
from mixserve_client.transport import Transport
from mixserve_client.workers import Workers

_FETCH_THREADS = 4

MakeTransports = Callable[[], Sequence[Transport]]


class Connection:
    """Nothing connects before the first call. A forked process makes its own: threads and sockets are its parent's.

    It ends when it is closed, or when the client and everything that the client handed out are gone: each of them holds
    it, and none of its threads does.
    """

    def __init__(self, make_transports: MakeTransports, patience_s: float):
        self.caller = PatientCaller(make_transports(), patience_s)
        self.leases = Leases(self.caller)
        self.memory = MemoryPool()
        self.workers = Workers(_FETCH_THREADS, on_exit=partial(_end, self.leases, self.caller))


# What a client and its sessions hold: the connection of whichever process they are used in.
Connections = PerProcess[Connection]


def _end(leases: Leases, caller: PatientCaller) -> None:
    leases.close()
    caller.close()
    leases.join()
