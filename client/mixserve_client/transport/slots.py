"""Slots: memory of this process that a server on the same host writes batches into.

A slot is a memfd that is sealed against shrinking, handed to the server over a Unix socket. It has no name, so nothing
is left behind however the process ends, and the server forgets it when the connection goes.
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

from mixserve_client.transport.buffers import IdleMemory, Memory, drain, forks, round_up
from mixserve_client.transport.handshake import SLOT_ID, SLOT_PACKET, check_socket, peer_user

_logger = logging.getLogger("mixserve_client")

_REFUSAL_BYTES = 512
_ANSWER_S = 2.0
_BYTES = 256 << 20
_SHORT_S = 10.0
_NEVER = -1  # in the place of a number of forks


class Slot(Memory):
    """Memory that the server knows by `id`."""

    def __init__(self, mapping: mmap.mmap, slot_id: int):
        super().__init__(mapping)
        self.id = slot_id


class SlotPool:
    """The slots that one server may write to: up to 256 MiB, made as they are needed.

    A slot is lent out three times over: to a request, which names it; to the server, which writes; and to the arrays
    over it. It is used again when the last array is gone. Where the server may still be writing, it is never used
    again: `discard` it.
    """

    def __init__(self, path: str, folder: str, until: float):
        """Connect to the server's socket at `path`, by `until`, a time of `time.monotonic()`, and within 2 s.

        Raises OSError where it is not that of a server of this user.
        """
        check_socket(Path(path), Path(folder).absolute())
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.settimeout(_answer_s(until))
            self._connection.connect(path)
            if peer_user(self._connection) != os.geteuid():
                raise PermissionError(f"{path} is served by another user")
        except BaseException:
            self._connection.close()
            raise
        self._returned: SimpleQueue[Memory] = SimpleQueue()
        self._idle = IdleMemory[Slot]()
        self._bytes, self._most = 0, _BYTES
        self._short_until = 0.0  # memory is short until then
        self._lock = threading.RLock()  # as that of its transport

    def take(self, count: int, size: int, until: float) -> list[Slot]:
        """Up to `count` slots of at least `size` bytes; fewer where the others are in use, memory is short, or it is
        later than `until`, a time of `time.monotonic()`."""
        size = round_up(size)
        if not self._lock.acquire(timeout=_answer_s(until)):
            return []
        try:
            self._take_back()
            taken = list[Slot]()
            while len(taken) < count and (slot := self._idle.take(size)) is not None:
                taken.append(slot)
            while len(taken) < count and self._short_until <= time.monotonic() < until and self._make_room(size):
                try:
                    taken.append(self._new(size, until))
                except OSError as error:
                    _logger.info("no more shared memory than %d bytes: %s", self._bytes, error)
                    self._short_until = time.monotonic() + _SHORT_S
            return taken
        finally:
            self._lock.release()

    def lend(self, slot: Slot, size: int) -> memoryview:
        """The first `size` bytes of the slot, which the server has written: read-only."""
        return memoryview(slot.lend(self._returned, writable=False)[:size])  # pyright: ignore[reportArgumentType]

    def give_back(self, slot: Slot) -> None:
        """The slot was not written to, and will not be."""
        slot.lent_after = forks()
        self._returned.put(slot)

    def discard(self, slot: Slot) -> None:
        """The server may be writing to the slot still: nobody will use it again."""
        if self._lock.acquire(blocking=False):
            try:
                self._discard(slot)
            finally:
                self._lock.release()
        else:  # another thread may wait for an answer of the server: the next one who takes slots loses it
            slot.lent_after = _NEVER
            self._returned.put(slot)

    def is_alive(self, until: float) -> bool:
        """Whether the server that was connected to is still there, as far as that can be known by `until`."""
        if not self._lock.acquire(timeout=_answer_s(until)):
            return True
        try:
            if self._connection.fileno() < 0:
                return False
            ended = select.poll()
            ended.register(self._connection, select.POLLIN)  # nothing comes unasked but the end
            return not ended.poll(0)
        finally:
            self._lock.release()

    def close(self) -> None:
        """The server forgets all slots; arrays over them stay as they are."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends a wait for an answer
        with self._lock:
            self._connection.close()
            self._take_back()
            self._idle.clear()
            self._most = 0

    def _take_back(self) -> None:
        for slot in drain(self._returned):
            assert isinstance(slot, Slot)
            if slot.lent_after == forks():
                self._idle.put(slot)
            else:  # a process that was forked meanwhile may look at it still
                self._discard(slot)

    def _make_room(self, size: int) -> bool:
        """Whether there is room for another slot; idle ones of other sizes make way."""
        if size > self._most:
            return False
        while self._bytes + size > self._most and (slot := self._idle.take_oldest()) is not None:
            self._discard(slot)
        return self._bytes + size <= self._most

    def _new(self, size: int, until: float) -> Slot:
        descriptor = os.memfd_create("mixserve-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            # Without pages behind it, the first write beyond what the system has left would end the writer.
            os.posix_fallocate(descriptor, 0, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(descriptor, size)
            answer = self._ask(size, descriptor, until)
            (slot,) = SLOT_ID.unpack_from(answer) if len(answer) >= SLOT_ID.size else (0,)
            if not slot:
                raise OSError(f"the server refused a slot: {answer[SLOT_ID.size :].decode(errors='replace')}")
            self._bytes += size
            return Slot(mapping, slot)
        finally:
            os.close(descriptor)

    def _ask(self, size: int, descriptor: int, until: float) -> bytes:
        try:
            self._connection.settimeout(_answer_s(until))
            socket.send_fds(self._connection, [SLOT_PACKET.pack(size, 0)], [descriptor])
            return self._connection.recv(_REFUSAL_BYTES)
        except BaseException:
            self._connection.close()  # an answer that comes late would be taken for the next one
            raise

    def _discard(self, slot: Slot) -> None:
        self._bytes -= slot.size
        with suppress(OSError):  # the server is gone, and all slots with it
            self._connection.send(SLOT_PACKET.pack(0, slot.id))


def _answer_s(until: float) -> float:
    """How long to wait for an answer that is wanted by `until`: a moment at least, since no time means no waiting."""
    return max(0.001, min(until - time.monotonic(), _ANSWER_S))
