"""Memory that clients on this host hand in, so that batches need not pass through a socket.

The client creates the memory: a memfd, sealed against shrinking, so that the mapping stays valid whatever the client
does. The client sends its descriptor over a Unix socket that only processes of the same user can connect to; the kernel
checks that. When the connection ends, however the client ended, the server unmaps the memory that came over it.
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixserve.access.peers import is_on_this_host
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.text import show
from mixserve_client.transport.handshake import (
    CHANNEL_SIZE,
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
_LONG_AGO_S = 60.0  # longer than any server takes between binding a socket and renaming it

Memory = npt.NDArray[np.uint8]


class Refused(Exception):
    """The server refuses a client's memory; the message says why."""


class SharedMemory:
    """Listens for memory in `folder`, and holds it by slot id. Thread-safe."""

    def __init__(self, folder: str):
        """Raises OSError if it cannot listen there, or the folder does not belong to this user alone."""
        own = own_folder(folder)
        own.mkdir(mode=0o700, exist_ok=True)
        check_private(own)
        _sweep(own)
        self._listening, self.path = _listen_in(own)
        # Containers that share a folder have addresses of their own. Every process of this host has the default one.
        self._is_told_to_all = own.parent != Path(DEFAULT_FOLDER)
        self._woken, self._wake = socket.socketpair()  # so that `close` can end a `select` that waits for clients
        self._slots: dict[int, Memory] = {}
        self._last_error = ""
        self._untaken, self._refused, self._failures = LimitedLog(_logger), LimitedLog(_logger), LimitedLog(_logger)
        self._connections: dict[socket.socket, set[int]] = {}
        # Takes the sockets that clients hand in as bulk channels; None: the server has no bulk channels.
        self.adopt: Callable[[socket.socket], None] | None = None
        self._selector = selectors.DefaultSelector()
        for waited_for in (self._listening, self._woken):
            self._selector.register(waited_for, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._listen, name="mixserve-memory", daemon=True)
        self._thread.start()

    def path_for(self, peer: str) -> str:
        """The path of the socket, for a gRPC peer that may be on this host; empty for all others."""
        return self.path if self._is_told_to_all or is_on_this_host(peer) else ""

    def memory(self, slot: int) -> Memory | None:
        """The writable memory of a slot; None if the slot is unknown, or its client is gone."""
        # Without a lock: a dict's get is atomic. The array that it returns keeps the mapping alive while a reply is
        # written, even if the client disconnects meanwhile.
        return self._slots.get(slot)

    def close(self) -> None:
        """Release all memory. Memory that a reply is being written to is unmapped after that."""
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._end()
                    return
                try:
                    if key.fileobj is self._listening:
                        self._accept()
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._receive(key.fileobj)
                except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                    self._failures.exception("cannot answer a client of shared memory")

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if str(error) != self._last_error:  # the error may come back every 0.2 s: log it once
                self._last_error = str(error)
                self._untaken.warn("cannot take a connection for shared memory: %s", error)
            # The connection stays in the queue, so `select` returns at once: without a pause this would spin.
            time.sleep(_PAUSE_S)
            return
        if peer_user(connection) != os.geteuid() or len(self._connections) >= _CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection] = set()
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            # Room for more than the one descriptor that is allowed: a client that sends several gets an error.
            packet, descriptors, _, _ = socket.recv_fds(connection, SLOT_PACKET.size, 4)
        except BlockingIOError:
            return
        except OSError:
            packet, descriptors = b"", []
        try:
            if len(packet) != SLOT_PACKET.size:  # the end of the connection, or not a client of ours
                self._drop(connection)
                return
            size, slot = SLOT_PACKET.unpack(packet)
            if size == CHANNEL_SIZE:
                connection.send(self._adopt(descriptors))
            elif size:
                connection.send(self._take(connection, size, descriptors))
            elif slot in self._connections[connection]:
                self._connections[connection].remove(slot)
                del self._slots[slot]
        except OSError:  # a client that does not read its answers
            self._drop(connection)
        finally:
            for descriptor in descriptors:  # also after success: a mapping holds a duplicate of its own
                os.close(descriptor)

    def _take(self, connection: socket.socket, size: int, descriptors: list[int]) -> bytes:
        """Map the client's memory of `size` bytes. Returns the answer: a slot id, or 0 and the reason."""
        mine = self._connections[connection]
        try:
            if len(mine) >= _SLOTS_PER_CONNECTION:
                raise Refused(f"a client may hand in at most {_SLOTS_PER_CONNECTION} slots")
            if len(self._slots) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
                raise Refused("slots use half of this process's file descriptors; raise `ulimit -n`")
            memory = map_memory(size, descriptors)
        except (OSError, ValueError, Refused) as error:
            self._refused.info("refused the memory of a client: %s", error)
            return SLOT_ID.pack(0) + str(error).encode()[:200]
        # Random, so that an id is never that of another client's slot; 0 means no slot.
        slot = 1 + secrets.randbits(62)
        self._slots[slot] = memory
        mine.add(slot)
        return SLOT_ID.pack(slot)

    def _adopt(self, descriptors: list[int]) -> bytes:
        """Pass a client's socket on. Returns the answer: 1, or 0 and the reason."""
        if self.adopt is None:
            return SLOT_ID.pack(0) + b"this server has no bulk channels"
        if len(descriptors) != 1:
            return SLOT_ID.pack(0) + b"exactly one socket must come with the packet"
        duplicate = os.dup(descriptors[0])
        try:
            made = socket.socket(fileno=duplicate)
        except OSError as error:
            os.close(duplicate)
            return SLOT_ID.pack(0) + f"this descriptor is no socket: {error.strerror}".encode()
        if made.family != socket.AF_UNIX or made.type != socket.SOCK_STREAM:
            made.close()
            return SLOT_ID.pack(0) + b"it must be one end of a pair of Unix sockets of the kind SOCK_STREAM"
        self.adopt(made)
        return SLOT_ID.pack(1)

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
    """Shared memory in `folder` (True: in /dev/shm). None for False, and if this host does not offer it.

    Raises ValueError for any other argument.
    """
    if not isinstance(folder, bool | str | os.PathLike) or folder == "":  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"shared_memory must be True, False or a folder, got {show(folder)}")
    if folder is False:
        return None
    try:
        if not hasattr(os, "memfd_create"):  # macOS
            raise OSError("this system has no memfd_create")
        return SharedMemory(DEFAULT_FOLDER if folder is True else folder)
    except OSError as error:
        _logger.warning("no shared memory: %s; batches are sent to clients on this host, too", error)
        return None


def map_memory(size: int, descriptors: list[int]) -> Memory:
    """Map the one descriptor, which must be a memfd of `size` bytes, sealed against shrinking.

    Raises Refused, and OSError if it cannot be mapped.
    """
    if len(descriptors) != 1:
        raise Refused(f"exactly one descriptor must come with a slot, got {len(descriptors)}")
    if not 0 < size <= _SLOT_BYTES:
        raise Refused(f"a slot must have 1..{_SLOT_BYTES} bytes, got {size}")
    try:
        seals = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS)
    except OSError as error:
        raise Refused("it must be a memfd: a client could truncate another file during a write") from error
    # A write to a page that a client has cut off is SIGBUS, which ends the process.
    if not seals & fcntl.F_SEAL_SHRINK:
        raise Refused("the memfd must be sealed against shrinking, or a write to it could end this process")
    found = os.fstat(descriptors[0])
    # Not size alone: ftruncate succeeds without memory for the pages, and the first write to such a page is SIGBUS.
    reserved = min(found.st_size, found.st_blocks * 512)
    if reserved < size:
        raise Refused(f"only {reserved} bytes of the memfd have memory reserved, {size} were announced")
    return np.frombuffer(mmap.mmap(descriptors[0], size), np.uint8)


def _listen_in(folder: Path) -> tuple[socket.socket, str]:
    """A listening socket in `folder`, and its path. Raises OSError."""
    # Bound under another name, and renamed when it listens: `_sweep` of another server removes sockets that refuse
    # connections.
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
    for path in folder.glob("*.new"):  # a server was killed while it started, or is starting now
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LONG_AGO_S:
                path.unlink()
    for path in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.setblocking(False)  # or this would wait for ever for a server whose queue is full
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass
