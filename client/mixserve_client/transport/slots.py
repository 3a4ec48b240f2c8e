"""Slots: memory of this process into which a server on the same host writes batches.

A slot is a memfd that is sealed against shrinking, and whose descriptor the client sends to the server over a Unix
socket. It has no name, so nothing remains however the process ends, and the server drops it when the connection ends.
"""

import fcntl
import logging
import mmap
import os
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from mixserve_client.limited_log import LimitedLog
from mixserve_client.transport.buffers import IdleMemory, Memory, drain, forks, round_up
from mixserve_client.transport.handshake import CHANNEL_SIZE, SLOT_ID, SLOT_PACKET, check_socket, peer_user

_logger = logging.getLogger("mixserve_client")
_NO_SLOT = LimitedLog(_logger)

_REFUSAL_BYTES = 512
_ANSWER_S = 2.0
_BYTES = 256 << 20
_SHORT_S = 10.0  # how long no slot is made after the system had no memory for one
_NEVER = -1  # a fork count that no process has


class Slot(Memory):
    """Memory that the server knows as `id`."""

    def __init__(self, mapping: mmap.mmap, slot_id: int):
        super().__init__(mapping)
        self.id = slot_id


class SlotPool:
    """The slots that one server may write to: up to 256 MiB, made when they are needed.

    A slot has three owners in turn: the request that names it, the server that writes to it, and the arrays over it. It
    is reused when the last array is gone. A slot to which the server may still be writing must not be reused: `discard`
    it.
    """

    def __init__(self, path: str, folder: str, until: float):
        """Connect to the server's socket at `path`, before the time `until` of `time.monotonic()`, and within 2 s.

        Raises OSError if there is no such socket, or if it is not one of this user's servers.
        """
        check_socket(Path(path), Path(folder).absolute())
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.settimeout(_answer_timeout_s(until))
            self._connection.connect(path)
            if peer_user(self._connection) != os.geteuid():
                raise PermissionError(f"{path} is served by another user")
        except BaseException:
            self._connection.close()
            raise
        self._returned: SimpleQueue[Memory] = SimpleQueue()
        self._idle = IdleMemory[Slot]()
        self._bytes, self._limit = 0, _BYTES
        self._short_until = 0.0  # when to try again after memory was short
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()

    def take(self, count: int, size: int, until: float) -> list[Slot]:
        """Up to `count` slots of at least `size` bytes each.

        Fewer if the others are in use, if memory is short, or after the time `until` of `time.monotonic()`.
        """
        size = round_up(size)
        if not self._lock.acquire(timeout=_answer_timeout_s(until)):
            return []
        taken = list[Slot]()
        try:
            self._reclaim()
            while len(taken) < count and (slot := self._idle.take(size)) is not None:
                taken.append(slot)
            while len(taken) < count and self._short_until <= time.monotonic() < until and self._make_room(size):
                try:
                    taken.append(self._create(size, until))
                except OSError as error:
                    _NO_SLOT.info("shared memory stays at %d bytes, since another slot failed: %s", self._bytes, error)
                    self._short_until = time.monotonic() + _SHORT_S
            return taken
        except BaseException:  # such as a signal's: the server has been told of none of them
            for slot in taken:
                self._idle.put(slot)
            raise
        finally:
            self._lock.release()

    def lend(self, slot: Slot, size: int) -> memoryview:
        """A read-only view of the first `size` bytes of the slot, after the server has written them."""
        return memoryview(slot.lend(self._returned, writable=False)[:size])  # pyright: ignore[reportArgumentType]

    def release(self, slot: Slot) -> None:
        """Make a slot available again to which the server has not written, and will not."""
        slot.fork_count = forks()
        self._returned.put(slot)

    def discard(self, slot: Slot) -> None:
        """Give up a slot to which the server may still be writing."""
        if self._lock.acquire(blocking=False):
            try:
                self._discard(slot)
            finally:
                self._lock.release()
        else:
            # Another thread holds the lock, perhaps while it waits for the server. This one must not wait, so the next
            # `_reclaim` discards the slot.
            slot.fork_count = _NEVER
            self._returned.put(slot)

    def open_channel(self, until: float) -> socket.socket:
        """A connected socket whose other end the server has as a bulk channel. Raises OSError."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not self._lock.acquire(timeout=_answer_timeout_s(until)):
                raise TimeoutError("other threads are waiting for the server")
            try:
                answer = self._send_descriptor(CHANNEL_SIZE, theirs.fileno(), until)
            finally:
                self._lock.release()
            if len(answer) != SLOT_ID.size:
                reason = answer[SLOT_ID.size :].decode(errors="replace")
                raise PermissionError(f"the server refused a channel: {reason or 'it has ended'}")
            return mine
        except BaseException:
            mine.close()
            raise
        finally:
            theirs.close()

    def is_alive(self, until: float) -> bool:
        """Whether the connection to the server still stands; True if that cannot be known before `until`."""
        if not self._lock.acquire(timeout=_answer_timeout_s(until)):
            return True
        try:
            if self._connection.fileno() < 0:
                return False
            ended = select.poll()
            ended.register(self._connection, select.POLLIN)  # the server sends answers only, so this is its end
            return not ended.poll(0)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Make the server drop all slots; arrays over them stay as they are."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # before the lock: ends the wait of a thread that holds it
        with self._lock:
            self._connection.close()
            self._reclaim()
            self._idle.clear()
            self._limit = 0

    def _reclaim(self) -> None:
        for slot in drain(self._returned):
            assert isinstance(slot, Slot)
            if slot.fork_count == forks():
                self._idle.put(slot)
            else:  # a process that was forked meanwhile may still have arrays over it
                self._discard(slot)

    def _make_room(self, size: int) -> bool:
        """Whether there is room for another slot, after discarding idle ones if necessary."""
        if size > self._limit:
            return False
        while self._bytes + size > self._limit and (slot := self._idle.take_oldest()) is not None:
            self._discard(slot)
        return self._bytes + size <= self._limit

    def _create(self, size: int, until: float) -> Slot:
        descriptor = os.memfd_create("mixserve-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Reserves the pages. `ftruncate` would succeed even if memory is short, and the server's first write to a
            # missing page would be a SIGBUS, which kills it.
            os.posix_fallocate(descriptor, 0, size)
            # A file that shrinks would be a SIGBUS, too; the server refuses slots without this seal.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(descriptor, size)
            answer = self._send_descriptor(size, descriptor, until)
            (slot,) = SLOT_ID.unpack_from(answer) if len(answer) >= SLOT_ID.size else (0,)
            if not slot:
                raise OSError(f"the server refused a slot: {answer[SLOT_ID.size :].decode(errors='replace')}")
            self._bytes += size
            return Slot(mapping, slot)
        finally:
            os.close(descriptor)

    def _send_descriptor(self, size: int, descriptor: int, until: float) -> bytes:
        try:
            self._connection.settimeout(_answer_timeout_s(until))
            socket.send_fds(self._connection, [SLOT_PACKET.pack(size, 0)], [descriptor])
            return self._connection.recv(_REFUSAL_BYTES)
        except BaseException:
            self._connection.close()  # else a late answer would be taken for the answer to the next packet
            raise

    def _discard(self, slot: Slot) -> None:
        self._bytes -= slot.size
        with suppress(OSError):  # the server has ended, and dropped all slots
            self._connection.send(SLOT_PACKET.pack(0, slot.id))


def _answer_timeout_s(until: float) -> float:
    """Seconds to wait for an answer before `until`, at least 1 ms: a timeout of 0 makes a socket non-blocking."""
    return max(0.001, min(until - time.monotonic(), _ANSWER_S))
