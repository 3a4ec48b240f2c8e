"""Memory that clients on this host hand in, so that batches need not pass through a socket.

The client makes the memory: a memfd that is sealed against shrinking, so that it is there in full for as long as it is
mapped, whatever the client does. Its descriptor comes over a Unix socket, which only processes of the same user can
connect to; the kernel vouches for that. What came over a connection goes with it, however the client ends.
"""

import fcntl
import logging
import mmap
import os
import resource
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixserve.shown import shown
from mixserve_client.transport.handshake import (
    DEFAULT_FOLDER,
    SLOT_ID,
    SLOT_PACKET,
    check_private,
    own_folder,
    peer_user,
)

_logger = logging.getLogger("mixserve")

_SLOT_BYTES = 4 << 30
_SLOTS_PER_CONNECTION = 256
_CONNECTIONS = 1024
_PAUSE_S = 0.2
_LONG_AGO_S = 60.0

Memory = npt.NDArray[np.uint8]


class Refused(Exception):
    """Why memory is not taken."""


class SharedMemory:
    """Listens for memory in `folder`, and keeps it by slot id; safe to use from many threads."""

    def __init__(self, folder: str):
        """Raises OSError where one cannot listen there, or the folder is not this user's own."""
        own = own_folder(folder)
        own.mkdir(mode=0o700, exist_ok=True)
        check_private(own)
        _sweep(own)
        self._listening, self.path = _listening(own)
        self._woken, self._wake = socket.socketpair()
        self._slots: dict[int, Memory] = {}
        self._said = ""
        self._connections: dict[socket.socket, set[int]] = {}
        self._selector = selectors.DefaultSelector()
        for waited_for in (self._listening, self._woken):
            self._selector.register(waited_for, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._listen, name="mixserve-memory", daemon=True)
        self._thread.start()

    def memory(self, slot: int) -> Memory | None:
        """The writable memory of a slot; None where it is not known, or no longer."""
        return self._slots.get(slot)

    def close(self) -> None:
        """Forget all memory; what is being written is unmapped when that is done."""
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._end()
                    return
                if key.fileobj is self._listening:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._receive(key.fileobj)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                _logger.warning("cannot take a connection for shared memory: %s", error)
            time.sleep(_PAUSE_S)  # it waits still
            return
        if peer_user(connection) != os.geteuid() or len(self._connections) >= _CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection] = set()
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(connection, SLOT_PACKET.size, 4)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        try:
            if len(packet) != SLOT_PACKET.size:  # the end, or something else than a client
                self._drop(connection)
                return
            size, slot = SLOT_PACKET.unpack(packet)
            if size:
                connection.send(self._taken(connection, size, descriptors))
            elif slot in self._connections[connection]:
                self._connections[connection].remove(slot)
                del self._slots[slot]
        except OSError:  # a client that does not read its answers
            self._drop(connection)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _taken(self, connection: socket.socket, size: int, descriptors: list[int]) -> bytes:
        """The answer to memory of `size` bytes."""
        mine = self._connections[connection]
        try:
            if len(mine) >= _SLOTS_PER_CONNECTION:
                raise Refused(f"a client may hand in {_SLOTS_PER_CONNECTION} slots")
            if len(self._slots) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
                raise Refused("slots hold half of the descriptors that this process may have; raise `ulimit -n`")
            memory = mapped(size, descriptors)
        except (OSError, ValueError, Refused) as error:
            _logger.info("memory of a client is refused: %s", error)
            return SLOT_ID.pack(0) + str(error).encode()[:200]
        slot = 1 + secrets.randbits(62)
        self._slots[slot] = memory
        mine.add(slot)
        return SLOT_ID.pack(slot)

    def _drop(self, connection: socket.socket) -> None:
        for slot in self._connections.pop(connection):
            self._slots.pop(slot, None)
        self._selector.unregister(connection)
        connection.close()

    def _end(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()
        self._listening.close()
        self._woken.close()
        self._wake.close()
        Path(self.path).unlink(missing_ok=True)


def open_shared_memory(folder: bool | str) -> SharedMemory | None:
    """Shared memory in `folder`, in /dev/shm for True; None for False, and where this host does not offer it.

    Raises ValueError for what is neither.
    """
    if not isinstance(folder, bool | str | os.PathLike) or folder == "":  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"shared_memory must be True, False or a folder, got {shown(folder)}")
    if folder is False:
        return None
    try:
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        return SharedMemory(DEFAULT_FOLDER if folder is True else folder)
    except OSError as error:
        _logger.warning("no shared memory: %s; clients on this host use gRPC", error)
        return None


def mapped(size: int, descriptors: list[int]) -> Memory:
    """The memory behind the one descriptor, which must be a memfd of `size` bytes that nobody can shrink.

    Raises Refused, and OSError where it cannot be mapped.
    """
    if len(descriptors) != 1:
        raise Refused(f"one descriptor must come with a slot, got {len(descriptors)}")
    if not 0 < size <= _SLOT_BYTES:
        raise Refused(f"a slot must have 1..{_SLOT_BYTES} bytes, got {size}")
    try:
        seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
    except OSError as error:
        raise Refused("it must be a memfd: other files can be cut short while they are written to") from error
    if not seals & fcntl.F_SEAL_SHRINK:
        raise Refused("the memfd must be sealed against shrinking, or a write to it could end this process")
    found = os.fstat(descriptors[0])
    there = min(found.st_size, found.st_blocks * 512)
    if there < size:
        raise Refused(f"the memfd has {there} bytes with memory behind them, {size} were announced")
    return np.frombuffer(mmap.mmap(descriptors[0], size), np.uint8)


def _listening(folder: Path) -> tuple[socket.socket, str]:
    """A socket that listens, and its path, which nobody has seen before it did. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path = folder / f"{secrets.token_hex(8)}.sock"
        early = path.with_suffix(".new")
        made.bind(str(early))
        made.listen(128)
        made.setblocking(False)
        early.rename(path)
        return made, str(path)
    except BaseException:
        made.close()
        raise


def _sweep(folder: Path) -> None:
    """Remove the sockets of servers that were killed."""
    for path in folder.glob("*.new"):  # of one that was killed while it started
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LONG_AGO_S:
                path.unlink()
    for path in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)  # a server that takes no more connections would be waited for without end
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass
