"""What a worker and the process that started it tell each other, in packets over a pair of sockets.

The supervisor sends the worker's `Place` first, as JSON, and then the words below. The worker sends WARM with a digest
of its mixtures, then SERVING, and DRAINING if it ends by itself. The connection ends with either process.
"""

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

GO, ALL_SERVE, SOME_SERVE, DRAIN, END = b"go", b"all serve", b"some serve", b"drain", b"end"
WARM, SERVING, DRAINING = b"warm ", b"serving", b"draining"
PACKET_BYTES = 1 << 16
_FAILED = 1


@dataclass(frozen=True)
class Place:
    """The worker `number` at `address`, which all share; `own` are the addresses that they do not, in order."""

    number: int
    address: str
    own: list[str]
    told: list[str]
    state_socket: str

    def encode(self) -> bytes:
        """The packet that `WorkerLink` reads first."""
        return json.dumps(asdict(self)).encode()


class WorkerLink:
    """The worker's end. Ends this process when the supervisor says so, or is gone, whatever the main thread does."""

    def __init__(self, descriptor: int, drain: Callable[[], None]):
        """`descriptor` is that of the socket; `drain` is called when the worker should finish its calls and end."""
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self.place = Place(**json.loads(self._socket.recv(PACKET_BYTES)))
        self._drain = drain
        self._may_serve = threading.Event()
        self._tell_health: Callable[[bool], None] | None = None
        threading.Thread(target=self._listen, name="mixserve-supervisor", daemon=True).start()

    def wait_to_serve(self, fingerprints: Mapping[str, str]) -> None:
        """Tell the supervisor what this worker would serve, and wait until it may."""
        self._socket.send(WARM + digest_of(fingerprints))
        self._may_serve.wait()

    def serving(self, tell_health: Callable[[bool], None]) -> None:
        """Tell the supervisor that this worker serves; `tell_health` then gets whether all do."""
        self._tell_health = tell_health
        self._socket.send(SERVING)

    def draining(self) -> None:
        """Tell the supervisor that this worker will end."""
        self._socket.send(DRAINING)

    def _listen(self) -> None:
        try:
            while word := self._socket.recv(PACKET_BYTES):
                if word == GO:
                    self._may_serve.set()
                elif word == DRAIN:
                    self._drain()
                elif word == END:
                    os._exit(_FAILED)
                elif self._tell_health is not None:
                    self._tell_health(word == ALL_SERVE)
        finally:  # also after an error, such as SystemExit of a log's handler: a worker must not outlive its supervisor
            shutil.rmtree(Path(self.place.state_socket).parent, ignore_errors=True)
            os._exit(_FAILED)


def digest_of(fingerprints: Mapping[str, str]) -> bytes:
    """Equal for equal mixtures under equal names."""
    return sha256(json.dumps(sorted(fingerprints.items())).encode()).hexdigest().encode()
