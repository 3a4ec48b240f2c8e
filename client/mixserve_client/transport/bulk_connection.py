"""A client's end of a bulk channel: requests go out, and the replies to them come back in the same order."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeVar

from mixserve_client.errors import CorruptReply, DeadlineExceeded, MixserveError, Unavailable
from mixserve_client.transport.base import Interrupted, Replies, Reply
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.pipes import PATIENCE_S, Pipe
from mixserve_client.transport.waits import LATE, acquire
from mixserve_client.wire.bulk import (
    HEADER_BYTES,
    HELLO,
    WELCOME,
    Header,
    Kind,
    decode_bulk_error,
    decode_reply_header,
    encode_bulk_request,
    encode_header,
)

# Payloads up to this size, such as the numbers of slots, are copied from the buffer, into which several frames may
# come at once. Larger ones are received where they stay.
_BUFFER_BYTES = 4096
_SEND_S = 10.0
# A server that cannot send takes no requests either, so that many of them would wait for the thread that sends them to
# read. These fit into the buffers of every socket.
_MOST_AHEAD, _MOST_AHEAD_BYTES = 128, 64 << 10
# After this long without a byte, the client asks over gRPC whether the server is there, and so again.
_SILENT_S = 5.0
_ASK_S = 20.0  # how long the server may take to answer that


class Server(Protocol):
    """The server at the other end."""

    def ask(self, timeout_s: float) -> Replies:
        """The reply of a call that every server answers."""
        ...

    def note_reply(self) -> None:
        """A channel has carried something."""
        ...

    def note_loss(self, error: OSError, /) -> None:
        """A channel has ended before it carried anything."""
        ...

    def convert(self, error: MixserveError) -> MixserveError:
        """What to raise for an error that the server sent."""
        ...


ServerT = TypeVar("ServerT", bound=Server)


class BulkConnection(Generic[ServerT]):
    """One channel. One thread at a time reads from it; any thread may open streams, and cancel them."""

    def __init__(
        self, pipe: Pipe, name: str, token: bytes, until: float, memory: MemoryPool, server: ServerT, is_checked: bool
    ):
        """Says hello, and waits for an answer until `until`; `is_checked`: frames are. Raises OSError, CorruptReply."""
        self.name = name
        self.server = server
        self._is_checked = is_checked
        self._pipe = pipe
        self._memory = memory
        self._pid = os.getpid()
        self._streams = deque[BulkReplies]()  # in the order of their replies
        self._last = 0
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._first = self._end = 0  # what of the buffer has not been used
        self._header: Header | None = None  # of a frame whose payload has not been read
        self._reading = threading.Lock()
        self._frames_are_small = False  # as the last one
        self._unsent = list[memoryview]()
        self._has_replied = False
        self._asking: Replies | None = None
        self._closed = False
        self._users = 0  # threads that are at the pipe
        # Reentrant: the garbage collector may cancel a stream in a thread that holds it.
        self._lock = threading.RLock()
        self._sending = threading.RLock()
        try:
            self._send(HELLO + token)
            self._enter()
            try:
                welcome = self._take(len(WELCOME), until).tobytes()
            finally:
                self._leave()
            if welcome != WELCOME:
                raise CorruptReply(f"{name} does not answer as a bulk channel does")
        except DeadlineExceeded:
            self.close()
            raise TimeoutError(f"{name} did not answer in time") from None
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        # With what was opened, also if that failed half-way. A forked process closes its own descriptor only.
        if pipe := getattr(self, "_pipe", None):
            if getattr(self, "_pid", None) == os.getpid():
                pipe.shutdown()  # a forked process may have another descriptor of it
            pipe.close()

    @property
    def is_usable(self) -> bool:
        """Whether it can be used in this process."""
        if self._pid != os.getpid():
            return False  # a thread that is not here may hold the lock
        with self._lock:
            if self._closed:
                return False
            # What comes to an idle one can only be its end.
            return bool(self._streams or self._users) or not self._pipe.wait(0)

    def has_room(self, size: int) -> bool:
        """Whether the server will take a request of `size` bytes, even if its replies are not read meanwhile."""
        with self._lock:
            return not self._streams or (
                len(self._streams) < _MOST_AHEAD and size + sum(one.size for one in self._streams) <= _MOST_AHEAD_BYTES
            )

    def open(self, method: str, request: bytes) -> "BulkReplies":
        """Send a request. Raises Unavailable."""
        with self._lock:
            self._last = (self._last + 1) & 0xFFFFFFFF
            replies = BulkReplies(self, self._last, len(request))
            self._streams.append(replies)
        try:
            self._send(encode_bulk_request(replies.number, method, request, is_checked=self._is_checked))
        except OSError as error:
            raise Unavailable(f"{self.name}: the request could not be sent: {error}") from error
        return replies

    def cancel(self, replies: "BulkReplies") -> None:
        """End a stream. Its connection ends too, unless others have replies to come."""
        replies.is_cancelled = True
        if self._pid != os.getpid():
            return  # the connection is the parent's
        with self._lock:
            if replies not in self._streams:
                return
            needed = any(not other.is_cancelled for other in tuple(self._streams))  # a finalizer may clear it
        if needed:
            with suppress(OSError):  # then it is closed
                self._send(encode_header(Kind.CANCEL, replies.number, is_checked=self._is_checked))
        else:
            self.close()

    def close(self) -> None:
        """End all streams, and the connection."""
        if self._pid != os.getpid():
            return  # it is the parent's
        with self._lock:
            self._closed = True
            self._streams.clear()  # these refer to this object
            # Also ends the waits of threads that use it, the last of which closes it, and the server's, though a forked
            # process has another descriptor of it.
            self._pipe.shutdown()
            if not self._users:
                self._pipe.close()
            asking = self._asking
        if asking is not None:
            asking.cancel()

    def _enter(self) -> None:
        """Begin to use the pipe. Raises OSError."""
        with self._lock:
            if self._closed:
                raise ConnectionError("it is closed")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._closed and not self._users:
                self._pipe.close()

    def next_reply(self, replies: "BulkReplies") -> Reply | None:
        """The next reply of a stream, None at its end. Waits until `replies.deadline`.

        Raises the server's error, DeadlineExceeded, Unavailable if the connection ends, and CorruptReply.
        """
        try:
            self._enter()
            try:
                with self._turn(replies.deadline):
                    return self._next_reply(replies)
            finally:
                self._leave()
        except MixserveError:  # some are OSErrors
            self.close()
            raise
        except OSError as error:
            if not (self._closed or self._has_replied):
                self.server.note_loss(error)
            self.close()
            raise Unavailable(f"{self.name}: the connection ended: {error}") from error
        except BaseException:
            # The next bytes may be the middle of a frame. A server's error leaves this method by its own way.
            self.close()
            raise

    @contextmanager
    def _turn(self, deadline: float | None) -> Generator[None]:
        """The only thread that reads. Raises DeadlineExceeded."""
        # Another one may still wait for the end of a stream whose batches have all been taken, or that was cancelled.
        if not self._reading.acquire(blocking=False):
            acquire(self._reading, deadline)
        try:
            yield
        finally:
            self._reading.release()

    def _next_reply(self, replies: "BulkReplies") -> Reply | None:
        while not replies.has_ended:
            header = self._header or decode_reply_header(self._take(HEADER_BYTES, replies.deadline), self._is_checked)
            self._header = header
            with self._lock:
                owner = self._streams[0] if self._streams else None
                if owner is None or owner.number != header.stream:
                    raise CorruptReply(f"{self.name} answers request {header.stream}, which is not the next one")
                if replies.is_cancelled and not owner.is_cancelled:
                    return None  # this frame is for the thread that reads its stream
                self._header = None
                if header.kind != Kind.REPLY:
                    self._streams.popleft()
                    owner.has_ended = True
            if not self._has_replied:
                self._has_replied = True
                self.server.note_reply()
            is_wanted = owner is replies
            if header.kind == Kind.ERROR:
                error = decode_bulk_error(bytes(self._payload(header.length, replies.deadline)), self._is_checked)
                if is_wanted:
                    replies.error = self.server.convert(error)
            elif header.kind == Kind.REPLY:
                self._frames_are_small = header.length <= _BUFFER_BYTES
                payload = self._payload(header.length, replies.deadline)
                if is_wanted:
                    return payload
                if not owner.is_cancelled:
                    raise CorruptReply(f"{self.name}: streams were read in another order than they were opened")
        return None

    def _payload(self, length: int, deadline: float | None) -> Reply:
        """The next `length` bytes, in memory of their own."""
        if length <= _BUFFER_BYTES:  # such as the number of a slot
            return self._take(length, deadline).tobytes()
        view = memoryview(self._memory.borrow(length))[:length]  # pyright: ignore[reportArgumentType]
        there = min(self._end - self._first, length)
        view[:there] = self._buffer[self._first : self._first + there]
        self._first += there
        while there < length:
            there += self._receive(view[there:], deadline, whole=True)
        return view.toreadonly()

    def _take(self, length: int, deadline: float | None) -> memoryview:
        """The next `length` bytes, up to the size of the buffer; valid until the next call."""
        buffer = self._buffer
        if self._end - self._first < length:
            left = self._end - self._first
            buffer[:left] = buffer[self._first : self._end]
            self._first, self._end = 0, left
            # Of large frames only the header: what comes with it would be copied once more.
            room = len(buffer) if self._frames_are_small else length
            while self._end < length:
                self._end += self._receive(buffer[self._end : room], deadline)
        self._first += length
        return buffer[self._first - length : self._first]

    def _receive(self, into: memoryview, deadline: float | None, *, whole: bool = False) -> int:
        """Receive at least one byte, and with `whole` all if they come without a pause. Raises OSError."""
        silent_until = 0.0
        while True:
            waits = True
            if deadline is not None:
                now = time.monotonic()
                if now >= deadline:
                    raise DeadlineExceeded(LATE)
                waits = deadline - now >= PATIENCE_S
            came = self._pipe.receive(into, wait=waits, whole=whole)
            if came:
                return came
            if came == 0 or self._closed:
                raise ConnectionError("the other end closed it")
            if deadline is not None and not waits:
                self._pipe.wait(deadline - time.monotonic())
                continue
            now = time.monotonic()
            silent_until = silent_until or now + _SILENT_S
            if now >= silent_until:
                self._ask(deadline)
                silent_until = 0.0

    def _ask(self, deadline: float | None) -> None:
        """Raises Unavailable if the server does not answer a call either. Ends at `deadline`, and on `close`."""
        asked = time.monotonic()
        asking = self._asking = self.server.ask(_ASK_S if deadline is None else min(_ASK_S, deadline - asked))
        try:
            if self._closed:  # `close` may have looked just before
                asking.cancel()
            for _ in asking:
                pass
        except DeadlineExceeded as error:
            # It is there if it has sent what is waited for.
            if time.monotonic() - asked >= _ASK_S and not self._pipe.wait(0):
                raise Unavailable(f"the server has not answered for {_ASK_S:g} s: {error}") from error
        except Interrupted:
            pass
        except Unavailable:
            if not self._closed:
                raise
        except MixserveError:
            pass  # so it answers
        finally:
            self._asking = None

    def _send(self, data: bytes) -> None:
        """Send one frame. Raises OSError; then the connection is closed, since a part may have been sent."""
        self._enter()
        try:
            with self._sending:
                is_within = bool(self._unsent)
                self._unsent.append(memoryview(data))
                # A finalizer or a signal handler may cancel a stream while this thread sends: its frame comes after.
                if not is_within:
                    self._send_all()
        except BaseException:
            self.close()
            raise
        finally:
            self._leave()

    def _send_all(self) -> None:
        until = time.monotonic() + _SEND_S
        try:
            while True:
                self._pipe.send(self._unsent, wait=True)
                if not self._unsent:
                    return
                if self._closed or time.monotonic() >= until:
                    raise TimeoutError("the server takes no requests")
        finally:
            self._unsent.clear()


class BulkReplies:
    """The replies of one stream. `on_end` is called when the last one has been read."""

    def __init__(self, connection: BulkConnection[Any], number: int, size: int):
        """`size` is that of the request, in bytes."""
        self.number = number
        self.size = size
        self.on_end: Callable[[], None] | None = None
        self.deadline: float | None = None
        self.is_cancelled = False
        self.has_ended = False
        self.error: MixserveError | None = None
        self._connection = connection

    def __iter__(self) -> Iterator[Reply]:
        try:
            while not self.has_ended:
                if self.is_cancelled:
                    raise Unavailable(f"{self._connection.name}: the stream was cancelled")
                came = [reply for reply in (self._connection.next_reply(self),) if reply is not None]
                if came:
                    yield came.pop()  # this frame must not keep its memory while it waits to go on
        finally:
            if not self.has_ended:  # it is dropped, perhaps after all of its rows: its connection refers to it
                self.cancel()
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback leads to this frame, and would keep what all callers hold

    def wait_until(self, deadline: float | None) -> None:
        self.deadline = deadline

    def cancel(self) -> None:
        self._connection.cancel(self)

    def abandon(self) -> None:
        self.is_cancelled = True
        self._connection.close()
