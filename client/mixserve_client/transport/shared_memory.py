"""Requests move over gRPC, and batches through memory that client and server share."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

from mixserve_client.errors import CorruptReply, DeadlineExceeded, ServerFault
from mixserve_client.transport.base import Replies, Reply, Transport
from mixserve_client.transport.slots import Slot, SlotPool
from mixserve_client.wire import methods
from mixserve_client.wire.batch import decode_slot_reply
from mixserve_client.wire.request import with_slots
from mixserve_client.wire.server import decode_server

_logger = logging.getLogger("mixserve_client")

# Below this a reply is carried as quickly as it is pointed at.
_LEAST_BYTES = 64 << 10
_PATIENCE_S = 2.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 60.0  # the first is doubled before it is waited


class SharedMemoryTransport:
    """Adds shared memory to `inner` where its server is on this host; else, and where memory is short, `inner` alone.

    Whether it is, is found out at the first batch, and again after the server was lost: at the next batch, or, where
    shared memory has carried nothing since it was asked last, after a delay that doubles.
    """

    def __init__(self, inner: Transport, folder: str):
        self._inner = inner
        self._folder = folder
        self._pool: SlotPool | None = None
        self._asked = False
        self._in_vain = 0  # how often it was asked since shared memory carried a reply
        self._ask_again_at = 0.0
        self._said = ""
        self._lock = threading.RLock()  # a client may be collected, and closed, wherever this thread is

    @property
    def name(self) -> str:
        return self._inner.name if self._pool is None else f"shared memory, {self._inner.name}"

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        return self._inner.call(method, request, timeout_s)

    def stream(self, method: str, request: bytes, timeout_s: float | None, replies: int, reply_bytes: int) -> Replies:
        if reply_bytes < _LEAST_BYTES:
            return self._inner.stream(method, request, timeout_s, replies, reply_bytes)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lent = self._lease(replies, reply_bytes, timeout_s)
        try:
            if deadline is not None:
                timeout_s = max(0.0, deadline - time.monotonic())
            carried = self._inner.stream(method, lent.attach(request), timeout_s, replies, reply_bytes)
            return _Replies(carried, lent, self._note_success)
        except BaseException:
            lent.discard()
            raise

    def close(self) -> None:
        self._inner.close()
        with self._lock:
            if self._pool is not None:
                self._pool.close()

    def _lease(self, count: int, size: int, timeout_s: float | None) -> "SlotLease":
        """Slots, where they can be had; nobody waits long for them, since gRPC carries everything as well."""
        until = time.monotonic() + (_PATIENCE_S if timeout_s is None else min(timeout_s / 2, _PATIENCE_S))
        pool = self._connect(until)
        return SlotLease(pool, [] if pool is None else pool.take(count, size, until))

    def _connect(self, until: float) -> SlotPool | None:
        """The pool, where there is one, waited for until then."""
        if not self._lock.acquire(timeout=_left_s(until)):
            return None
        try:
            if self._pool is not None and not self._pool.is_alive(until):
                self._pool.close()
                self._pool, self._asked = None, False
            if not self._asked and time.monotonic() >= self._ask_again_at:
                # A server that is not there yet has not answered: the first answer that it gives is this one.
                path = self._path(_left_s(until))
                self._ask_later()
                self._pool, self._asked = self._open_pool(path, until)
            return self._pool
        except DeadlineExceeded:
            self._ask_later()
            return None
        finally:
            self._lock.release()

    def _ask_later(self, *, much: bool = False) -> None:
        """Not again at once, if it was asked in vain before; `much` later where asking took long."""
        if self._in_vain or much:
            doubled_s = _FIRST_DELAY_S * 2 ** min(self._in_vain, 16)
            self._ask_again_at = time.monotonic() + (_LONGEST_DELAY_S if much else min(doubled_s, _LONGEST_DELAY_S))
        self._in_vain += 1

    def _note_success(self) -> None:
        """Shared memory has carried a reply."""
        if self._in_vain:
            self._in_vain, self._ask_again_at = 0, 0.0

    def _path(self, timeout_s: float) -> str:
        try:
            return decode_server(self._inner.call(methods.GET_SERVER, b"", timeout_s)).shared_memory
        except ServerFault:  # how a server answers that is older than this call
            return ""

    def _open_pool(self, path: str, until: float) -> tuple[SlotPool | None, bool]:
        """The pool, where it can be had, and whether that is the server's last word."""
        try:
            return (SlotPool(path, self._folder, until) if path else None), True
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                _logger.info("%s: batches come over gRPC, not through shared memory: %s", self._inner.name, error)
            # One that has just ended or has its hands full may be reached the next time.
            if isinstance(error, TimeoutError):
                self._ask_later(much=True)
            return None, isinstance(error, PermissionError)


def _left_s(until: float) -> float:
    """How long is left, a moment at least: none would not wait for what is there."""
    return max(0.001, until - time.monotonic())


class SlotLease:
    """The slots that one request names, until each is written, given back or lost."""

    def __init__(self, pool: SlotPool | None, slots: list[Slot]):
        self._pool = pool
        self._slots = {slot.id: slot for slot in slots}

    def attach(self, request: bytes) -> bytes:
        """The request with the slots in it."""
        return with_slots(request, list(self._slots)) if self._slots else request

    def reply(self, message: bytes) -> Reply:
        """The batch that `message` holds or points at. Raises CorruptReply."""
        found = decode_slot_reply(message)
        if found is None:
            return message
        slot_id, size = found
        slot = self._slots.get(slot_id)
        if slot is None or self._pool is None or not 0 < size <= slot.size:
            raise CorruptReply(f"the server points at {size} bytes of a slot that the request did not name")
        return self._pool.lend(self._slots.pop(slot_id), size)

    def give_back(self) -> None:
        """The server has answered: it writes to no slot any more."""
        for slot in self._slots.values():
            assert self._pool is not None
            self._pool.give_back(slot)
        self._slots.clear()

    def discard(self) -> None:
        """The call has failed: the server may be writing still."""
        for slot in self._slots.values():
            assert self._pool is not None
            self._pool.discard(slot)
        self._slots.clear()


class _Replies:
    def __init__(self, replies: Replies, lent: SlotLease, carried: Callable[[], None]):
        self._replies = replies
        self._lent = lent
        self._carried = carried

    def __iter__(self) -> Iterator[Reply]:
        try:
            for message in self._replies:
                message = bytes(message)
                reply = self._lent.reply(message)
                if reply is not message:
                    self._carried()
                yield reply
        except BaseException:
            self._lent.discard()
            raise
        self._lent.give_back()

    def cancel(self) -> None:
        self._replies.cancel()
