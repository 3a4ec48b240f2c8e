"""What a worker and the process that started it tell each other, in packets over a pair of sockets.

The supervisor sends the worker's `Place` first, as JSON, and then the words below. The worker sends WARM with a digest
of its mixtures, then SERVING, BEAT every two seconds while its chores are done, RELOADED after each RELOAD, and
DRAINING if it ends by itself. Both send STUCK with a list of the mixtures that get no records: the worker its own, the
supervisor those of all. The connection ends with either process.
"""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

GO, ALL_SERVE, SOME_SERVE, RELOAD, DRAIN, END = b"go", b"all serve", b"some serve", b"reload", b"drain", b"end"
WARM, SERVING, BEAT, RELOADED, DRAINING = b"warm ", b"serving", b"beat", b"reloaded", b"draining"
STUCK = b"stuck "
PACKET_BYTES = 1 << 16
_LOOK_EVERY_S, _BEAT_EVERY_S = 0.5, 2.0
_FAILED = 1


@dataclass(frozen=True)
class Place:
    """The worker `number` at `address`, which all share; `own` are the addresses that they do not, in order."""

    number: int
    address: str
    own: list[str]
    told: list[str]
    state_socket: str

    @property
    def stats_sockets(self) -> tuple[str, ...]:
        """Where each worker tells its metrics."""
        return stats_sockets(Path(self.state_socket).parent, len(self.own))

    def encode(self) -> bytes:
        """The packet that `WorkerLink` reads first."""
        return json.dumps(asdict(self)).encode()


class WorkerLink:
    """The worker's end. Ends this process when the supervisor says so, or is gone, whatever the main thread does."""

    def __init__(self, descriptor: int, drain: Callable[[], None], reload: Callable[[], None]):
        """`descriptor` is that of the socket; `drain` is called when the worker should finish its calls and end, and
        `reload` when it should read its files again."""
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self.place = Place(**json.loads(self._socket.recv(PACKET_BYTES)))
        self._drain, self._reload = drain, reload
        self._may_serve = threading.Event()
        self._tell_health: Callable[[bool], None] | None = None
        self._tell_stuck: Callable[[Iterable[str]], None] | None = None
        threading.Thread(target=self._listen, name="mixserve-supervisor", daemon=True).start()

    def wait_to_serve(self, fingerprints: Mapping[str, str]) -> None:
        """Tell the supervisor what this worker would serve, and wait until it may."""
        self._socket.send(WARM + digest_of(fingerprints))
        self._may_serve.wait()

    def serving(
        self,
        tell_health: Callable[[bool], None],
        tell_stuck: Callable[[Iterable[str]], None],
        stuck: Callable[[], Iterable[str]],
        is_alive: Callable[[], bool],
    ) -> None:
        """Tell the supervisor that this worker serves, and from now on which mixtures are `stuck()`, and that it
        `is_alive()`.

        `tell_health` then gets whether all workers serve, and `tell_stuck` the mixtures that are stuck in any of them.
        """
        self._tell_health, self._tell_stuck = tell_health, tell_stuck
        self._socket.send(SERVING)
        threading.Thread(target=self._watch, args=(stuck, is_alive), name="mixserve-stuck", daemon=True).start()

    def reloaded(self) -> None:
        """Tell the supervisor that this worker has read its files again."""
        with suppress(OSError):  # it is gone, and this process ends
            self._socket.send(RELOADED)

    def draining(self) -> None:
        """Tell the supervisor that this worker will end."""
        self._socket.send(DRAINING)

    def _watch(self, stuck: Callable[[], Iterable[str]], is_alive: Callable[[], bool]) -> None:
        told, beat_at = encode_stuck(()), 0.0
        with suppress(OSError):  # the supervisor is gone, and this process ends
            while True:
                if time.monotonic() >= beat_at and is_alive():
                    self._socket.send(BEAT)
                    beat_at = time.monotonic() + _BEAT_EVERY_S
                word = encode_stuck(stuck())
                if word != told:
                    self._socket.send(word)
                    told = word
                time.sleep(_LOOK_EVERY_S)

    def _listen(self) -> None:
        try:
            while word := self._socket.recv(PACKET_BYTES):
                if word == GO:
                    self._may_serve.set()
                elif word == DRAIN:
                    self._drain()
                elif word == RELOAD:
                    self._reload()
                elif word == END:
                    os._exit(_FAILED)
                elif word.startswith(STUCK):
                    if self._tell_stuck is not None:
                        self._tell_stuck(decode_stuck(word))
                elif self._tell_health is not None:
                    self._tell_health(word == ALL_SERVE)
        finally:  # also after an error, such as SystemExit of a log's handler: a worker must not outlive its supervisor
            shutil.rmtree(Path(self.place.state_socket).parent, ignore_errors=True)
            os._exit(_FAILED)


def stats_sockets(folder: Path, workers: int) -> tuple[str, ...]:
    """The paths of the sockets where so many workers tell their metrics."""
    return tuple(str(folder / f"stats-{number}.sock") for number in range(workers))


def encode_stuck(mixtures: Iterable[str]) -> bytes:
    """The word for these mixtures; if a packet cannot hold them, for some of them."""
    names = sorted(mixtures)
    while len(word := STUCK + json.dumps(names).encode()) > PACKET_BYTES:
        names = names[: len(names) // 2]
    return word


def decode_stuck(word: bytes) -> frozenset[str]:
    """The mixtures of a word of `encode_stuck`."""
    return frozenset(json.loads(word.removeprefix(STUCK)))


def digest_of(fingerprints: Mapping[str, str]) -> bytes:
    """Equal for equal mixtures under equal names."""
    return sha256(json.dumps(sorted(fingerprints.items())).encode()).hexdigest().encode()
