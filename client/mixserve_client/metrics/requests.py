"""What a client has sent, and what became of it."""

import threading
from collections import Counter

from mixserve_client.errors import CorruptReply, MixserveError


class RequestFigures:
    """Counts the requests of a client in this process. Thread-safe."""

    def __init__(self) -> None:
        self._requests = dict[tuple[str, str], int]()  # by method and transport
        self._retries = Counter[str]()  # by class of error
        self._connections = Counter[str]()  # by transport
        self._corrupt = 0
        # Reentrant: a signal handler may send something in a thread that holds it.
        self._lock = threading.RLock()

    def note_request(self, method: str, transport: str) -> None:
        """A request is sent, for the first time or once more. `method` is a path, `transport` as `way_of` says."""
        with self._lock:
            self._requests[method, transport] = self._requests.get((method, transport), 0) + 1

    def note_retry(self, error: BaseException) -> None:
        """A request is sent once more, after this error."""
        with self._lock:
            self._retries[type(error).__name__] += 1

    def note_failure(self, error: MixserveError) -> None:
        """A replica has failed."""
        if isinstance(error, CorruptReply):
            with self._lock:
                self._corrupt += 1

    def note_connection(self, transport: str) -> None:
        """A connection was opened."""
        with self._lock:
            self._connections[transport] += 1

    @property
    def requests(self) -> dict[tuple[str, str], int]:
        """How many requests were sent, by name of the method and transport."""
        with self._lock:
            return {(method.rpartition("/")[2], way): count for (method, way), count in self._requests.items()}

    @property
    def retries(self) -> dict[str, int]:
        """How many requests were sent once more, by class of the error."""
        with self._lock:
            return dict(self._retries)

    @property
    def connections(self) -> dict[str, int]:
        """How many connections were opened, by transport."""
        with self._lock:
            return dict(self._connections)

    @property
    def corrupt_replies(self) -> int:
        """How many replies were damaged, or did not fit their requests."""
        return self._corrupt


def way_of(name: str, *, is_call: bool) -> str:
    """How a request goes by a transport of that name: `in-process`, `grpc`, `bulk` or `shared memory`."""
    if is_call and "grpc " in name:  # the others carry streams alone
        return "grpc"
    first = name.partition(",")[0]
    return first if first == "shared memory" else first.partition(" ")[0]
