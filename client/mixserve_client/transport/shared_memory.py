"""Moves requests over gRPC, and batches through memory that client and server share."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

from mixserve_client.errors import CorruptReply, DeadlineExceeded, ServerFault
from mixserve_client.limited_log import LimitedLog
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.transport.base import Lane, ReadMode, Replies, Reply, Transport
from mixserve_client.transport.bulk import BulkTransport
from mixserve_client.transport.slots import Slot, SlotPool
from mixserve_client.wire import methods
from mixserve_client.wire.batch import decode_slot_reply
from mixserve_client.wire.request import with_slots
from mixserve_client.wire.server import decode_server

_logger = logging.getLogger("mixserve_client")

# gRPC carries smaller replies as quickly as a reference to a slot.
_LEAST_BYTES = 64 << 10
_PATIENCE_S = 2.0  # how long a request may wait for slots
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 60.0  # doubles before each wait, so the first is 0.1 s


class SharedMemoryTransport:
    """Adds shared memory to `inner` if its server is on this host; without it, or if memory is short, uses `inner`.

    The first batch finds out, by asking the server. After the server is lost, the next batch asks again; if shared
    memory has carried no reply since the last time, only after a delay that doubles up to 60 s.
    """

    def __init__(
        self,
        inner: Transport,
        folder: str,
        bulk: BulkTransport | None = None,
        figures: RequestFigures | None = None,
    ):
        """`bulk`, which `inner` uses if it is given, opens its channels through the socket of shared memory.

        Counts connections in `figures`.
        """
        self._figures = RequestFigures() if figures is None else figures
        self._inner = inner
        self._bulk = bulk
        self._folder = folder
        self._pool: SlotPool | None = None
        self._is_settled = False  # whether the server's answer is final
        self._tries = 0  # since shared memory carried a reply
        self._next_try_at = 0.0
        self._last_logged = ""
        self._not_shared = LimitedLog(_logger)
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        return self._inner.name if self._pool is None else f"shared memory, {self._inner.name}"

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        return self._inner.call(method, request, timeout_s)

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        return self._inner.read_mode(method, request)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        if reply_bytes < _LEAST_BYTES:
            return self._inner.stream(method, request, timeout_s, replies, reply_bytes, lane)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        lease = self._lease(replies, reply_bytes, timeout_s)
        try:
            if deadline is not None:
                timeout_s = max(0.0, deadline - time.monotonic())
            messages = self._inner.stream(method, lease.attach(request), timeout_s, replies, reply_bytes, lane)
            return _Replies(messages, lease, self._note_success)
        except BaseException:
            lease.discard()
            raise

    def close(self) -> None:
        self._inner.close()
        with self._lock:
            if self._pool is not None:
                self._pool.close()

    def _lease(self, count: int, size: int, timeout_s: float | None) -> "SlotLease":
        """Up to `count` slots, or none after 2 s at most: gRPC can carry everything as well."""
        until = time.monotonic() + (_PATIENCE_S if timeout_s is None else min(timeout_s / 2, _PATIENCE_S))
        pool = self._connect(until)
        return SlotLease(pool, [] if pool is None else pool.take(count, size, until))

    def _connect(self, until: float) -> SlotPool | None:
        """The pool if there is one; waits at most until the time `until`."""
        if not self._lock.acquire(timeout=_remaining_s(until)):
            return None
        try:
            if self._pool is not None and not self._pool.is_alive(until):
                self._pool.close()
                self._use(None)
                self._is_settled = False
            if not self._is_settled and time.monotonic() >= self._next_try_at:
                # Unavailable leaves this method, and counts as no try: the first answer of a server that is still
                # starting must decide, or the client would use gRPC for a while after that.
                path = self._path(_remaining_s(until))
                self._delay_next_try()
                pool, self._is_settled = self._open_pool(path, until)
                self._use(pool)
            return self._pool
        except DeadlineExceeded:
            self._delay_next_try()
            return None
        finally:
            self._lock.release()

    def _use(self, pool: SlotPool | None) -> None:
        self._pool = pool
        if self._bulk is not None:
            self._bulk.open_through(None if pool is None else pool.open_channel)

    def _delay_next_try(self, *, longest: bool = False) -> None:
        """Delay the next try: not after the first one, then longer each time; 60 s if `longest`."""
        if self._tries or longest:
            doubled_s = _FIRST_DELAY_S * 2 ** min(self._tries, 16)
            self._next_try_at = time.monotonic() + (_LONGEST_DELAY_S if longest else min(doubled_s, _LONGEST_DELAY_S))
        self._tries += 1

    def _note_success(self) -> None:
        if self._tries:
            self._tries, self._next_try_at = 0, 0.0

    def _path(self, timeout_s: float) -> str:
        """The path of the server's socket, empty if it has none."""
        try:
            return decode_server(self._inner.call(methods.GET_SERVER, b"", timeout_s)).shared_memory
        except ServerFault:  # the answer of a server that is older than GetServer
            return ""

    def _open_pool(self, path: str, until: float) -> tuple[SlotPool | None, bool]:
        """The pool or None, and whether that is final until the server is lost."""
        try:
            if not path:
                return None, True
            pool = SlotPool(path, self._folder, until)
            self._figures.note_connection("shared memory")
            return pool, True
        except OSError as error:
            if str(error) != self._last_logged:
                self._last_logged = str(error)
                self._not_shared.info("%s: batches do not come through shared memory: %s", self._inner.name, error)
            # A server that is too busy to answer would make every batch wait for the timeout: leave it alone for 60 s.
            # A socket that fails the checks will fail them again; other errors may come from a server that just ended.
            if isinstance(error, TimeoutError):
                self._delay_next_try(longest=True)
            return None, isinstance(error, PermissionError)


def _remaining_s(until: float) -> float:
    """Seconds until the time `until`, at least 1 ms, so that an answer that is at hand is not missed."""
    return max(0.001, until - time.monotonic())


class SlotLease:
    """The slots that one request names, until each is written, released or discarded."""

    def __init__(self, pool: SlotPool | None, slots: list[Slot]):
        self._pool = pool
        self._slots = {slot.id: slot for slot in slots}

    def __del__(self) -> None:
        self.discard()  # of a stream that was dropped before it was read

    def attach(self, request: bytes) -> bytes:
        """The request, with the slots' ids added."""
        return with_slots(request, list(self._slots)) if self._slots else request

    def reply(self, message: bytes) -> Reply:
        """The batch in `message`, or in the slot that `message` refers to. Raises CorruptReply."""
        found = decode_slot_reply(message)
        if found is None:
            return message
        slot_id, size = found
        slot = self._slots.get(slot_id)
        if slot is None or self._pool is None or not 0 < size <= slot.size:
            raise CorruptReply(f"the server refers to {size} bytes of a slot that the request did not name")
        return self._pool.lend(self._slots.pop(slot_id), size)

    def release(self) -> None:
        """Release the slots after the last reply: the server no longer writes to them."""
        for slot in self._slots.values():
            assert self._pool is not None
            self._pool.release(slot)
        self._slots.clear()

    def discard(self) -> None:
        """Discard the slots after a failed call: the server may still be writing to them."""
        for slot in self._slots.values():
            assert self._pool is not None
            self._pool.discard(slot)
        self._slots.clear()


class _Replies:
    def __init__(self, messages: Replies, lease: SlotLease, note_success: Callable[[], None]):
        self._messages = messages
        self._lease = lease
        self._note_success = note_success

    def wait_until(self, deadline: float | None) -> None:
        self._messages.wait_until(deadline)

    def __iter__(self) -> Iterator[Reply]:
        try:
            for message in self._messages:
                message = bytes(message)
                came = [self._lease.reply(message)]
                if came[0] is not message:
                    self._note_success()
                del message
                yield came.pop()  # this frame must not keep its memory while it waits to go on
        except BaseException:  # also GeneratorExit, of an iteration that ends before the stream does
            self._lease.discard()
            raise
        self._lease.release()

    def cancel(self) -> None:
        self._messages.cancel()

    def abandon(self) -> None:
        self._messages.abandon()
