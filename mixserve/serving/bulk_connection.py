"""One bulk channel of a server: the requests that come over a connection, answered one after another."""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from mixserve.servicer.reply_memory import Message
from mixserve.serving.waiting_requests import FEW_BYTES, WaitingRequests
from mixserve_client.errors import InvalidRequest, MixserveError, ServerFault
from mixserve_client.limited_log import LimitedLog
from mixserve_client.transport.pipes import Pipe
from mixserve_client.wire.bulk import (
    HEADER_BYTES,
    Kind,
    decode_bulk_request,
    decode_header,
    encode_bulk_error,
    encode_header,
)
from mixserve_client.wire.request import SMALL_REQUEST_BYTES

_logger = logging.getLogger("mixserve")
# Of all connections: one client may make as many as it likes.
BROKEN, FAILED = LimitedLog(_logger), LimitedLog(_logger)

_READ_BYTES = 64 << 10
# One whole request and the frames that came with it. What is beyond that waits in the kernel.
_INBOX_BYTES = SMALL_REQUEST_BYTES + (64 << 10)
_MOST_WAITING = 1024
_TURN_S = 0.005  # how long a connection keeps its thread while others wait for one
_LINGER_S = 0.02  # a reader's next request comes while it takes the replies to the one before

Replies = Generator[Message]
Answer = Callable[[str, bytes, Callable[[], bool]], Replies]


class Wait(Enum):
    """What a connection waits for."""

    INPUT = "input"
    ROOM = "room"  # for more output
    TURN = "turn"  # a thread
    NOTHING = "nothing"  # it has ended


class _Stream(NamedTuple):
    """A request that has not begun."""

    number: int
    method: str
    request: bytes
    size: int  # bytes that it counts
    is_checked: bool  # whether headers of its frames have checksums
    is_cancelled: bool = False


class BadFrame(Exception):
    """A client's frame breaks the protocol; the message says how."""


class Age(NamedTuple):
    """When a connection ends, by `time.monotonic()`: after `idle_at` between requests, after `at` also before others
    that wait. The stream in progress is finished."""

    idle_at: float = math.inf
    at: float = math.inf


class BulkConnection:
    """Answers the requests of one client. For one thread at a time; any thread may call `shutdown`."""

    def __init__(
        self, pipe: Pipe, peer: str, answer: Answer, requests: WaitingRequests | None = None, age: Age | None = None
    ):
        """`answer` makes the replies to a request to a method; the iteration raises MixserveError. It also gets a
        function that says whether the client still waits, for the thread that iterates. `requests` counts those that
        wait on all connections."""
        self.peer = peer
        self.stalled_since = 0.0  # when it began to wait for room
        self.half_since = math.inf  # when the last bytes of a request came of which more must come
        self._requests = requests or WaitingRequests()
        self._noted_bytes = 0  # to `requests`
        self._age = age or Age()
        self._pipe = pipe
        self._answer = answer
        self._inbox = bytearray()
        self._waiting = OrderedDict[int, _Stream]()  # by their numbers, so that no cancel has to search
        self._waiting_bytes = 0
        self._number = 0
        self._is_checked = False  # as the stream in progress
        self._replies: Replies | None = None
        self._unsent = list[memoryview]()
        self._is_making = self._is_unwanted = False  # a reply; the one that is being made
        self._has_ended = False
        self._chunk = memoryview(bytearray(_READ_BYTES))

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._pipe.fileno()

    def run(self, others_wait: Callable[[], bool]) -> Wait:
        """Answer until there is nothing to do, or the client takes nothing, or others have waited long enough."""
        try:
            return self._run(others_wait)
        except BadFrame as error:
            BROKEN.warn("%s broke the protocol of bulk channels: %s", self.peer, error)
        except OSError as error:
            _logger.debug("the bulk channel of %s ended: %s", self.peer, error)
        except BaseException:  # this thread must live
            FAILED.exception("a bulk channel of %s failed", self.peer)
        self.close()
        return Wait.NOTHING

    def close(self) -> None:
        """End the stream in progress, and the connection."""
        self._end_stream()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._unsent.clear()
        self._pipe.close()
        self._inbox.clear()
        self._note_waiting()

    def is_old(self) -> bool:
        """Whether it shall end now, which is between two requests."""
        now = time.monotonic()
        return now >= self._age.at or (now >= self._age.idle_at and not self._inbox and not self._pipe.wait(0))

    def shutdown(self) -> None:
        """Make the thread that runs this find its end."""
        self._pipe.shutdown()

    def _run(self, others_wait: Callable[[], bool]) -> Wait:
        until = time.monotonic() + _TURN_S
        has_answered = False
        while True:
            if self._unsent:
                self._pipe.send(self._unsent, wait=not others_wait())
                if self._unsent:
                    self.stalled_since = time.monotonic()
                    return Wait.ROOM
            if self._replies is None and time.monotonic() >= self._age.at:
                self.close()  # the client sends what waits again, over another connection
                return Wait.NOTHING
            # One request in a turn: a reader that sends the next at once would get more than its share.
            if has_answered and others_wait():
                return Wait.TURN
            self._receive()
            if self._has_ended:
                self.close()
                return Wait.NOTHING
            if self._make_next():
                has_answered = self._replies is None
                if not has_answered and others_wait() and time.monotonic() >= until:
                    return Wait.TURN
            # The next request often comes in a moment, and to wake another thread for it would take longer.
            elif others_wait() or not self._pipe.wait(_LINGER_S):
                if self.is_old():
                    self.close()
                    return Wait.NOTHING
                return Wait.INPUT

    def _make_next(self) -> bool:
        """Make the next frame to send. False if there is nothing to do."""
        if self._replies is None:
            if not self._waiting:
                return False
            _, stream = self._waiting.popitem(last=False)
            self._waiting_bytes -= stream.size
            self._number, self._is_checked = stream.number, stream.is_checked
            if stream.is_cancelled:
                self._unsent.append(self._header(Kind.END))
                return True
            self._is_unwanted = False
            self._replies = self._answer(stream.method, stream.request, self._is_wanted)
        self._is_making = True
        try:
            reply = next(self._replies, None)
            if reply is None or self._is_unwanted:
                self._end_stream()
                self._unsent.append(self._header(Kind.END))
            else:
                self._unsent += self._header(Kind.REPLY, len(reply)), memoryview(reply)
        except BaseException as error:  # also what is no Exception: the client must get an answer
            self._end_stream()
            if self._is_unwanted:
                self._unsent.append(memoryview(encode_header(Kind.END, self._number)))
                return True
            known = error if isinstance(error, MixserveError) else ServerFault(f"{type(error).__name__} on the server")
            self._unsent.append(memoryview(encode_bulk_error(self._number, known, is_checked=self._is_checked)))
            if known is not error:
                with suppress(BaseException):  # such as SystemExit from a handler of the log
                    FAILED.error("a stream of %s failed", self.peer, exc_info=error)
        finally:
            self._is_making = False
        return True

    def _is_wanted(self) -> bool:
        """Whether the client waits for the reply that is being made. Takes what it has sent meanwhile."""
        self._receive()
        return not self._has_ended and not self._is_unwanted

    def _end_stream(self) -> None:
        if self._replies is not None:
            self._replies.close()  # now, not when it is collected: it ends the call that the server counts
            self._replies = None

    def _cancel(self, number: int) -> None:
        """End a stream before its end. Its END is sent when it would have been, since streams end in order."""
        if self._replies is not None and number == self._number:
            if self._is_making:
                self._is_unwanted = True  # its generator runs, and cannot be closed
                return
            self._end_stream()
            self._unsent.append(self._header(Kind.END))
        elif (stream := self._waiting.get(number)) is not None:
            self._waiting[number] = stream._replace(is_cancelled=True)

    def _header(self, kind: Kind, length: int = 0) -> memoryview:
        """A header for the stream in progress."""
        return memoryview(encode_header(kind, self._number, length, is_checked=self._is_checked))

    def _receive(self) -> None:
        """Take what the client has sent. Raises BadFrame."""
        while not self._has_ended and len(self._inbox) + self._waiting_bytes < _INBOX_BYTES:
            came = self._pipe.receive(self._chunk, wait=False)
            if came is None:
                break
            self._has_ended = not came
            self._inbox += self._chunk[:came]
            self.half_since = time.monotonic()  # the last bytes, since a network may be slow
        if self._inbox:
            self._take_frames()
        if not self._inbox:
            self.half_since = math.inf
        self._note_waiting()

    def _note_waiting(self) -> None:
        count = len(self._inbox) + self._waiting_bytes
        count = count if count > FEW_BYTES else 0
        if count != self._noted_bytes:
            self._noted_bytes = count
            self._requests.note(self, count)

    def _take_frames(self) -> None:
        at, inbox = 0, self._inbox
        while len(inbox) - at >= HEADER_BYTES:
            try:
                kind, stream, length, is_checked = decode_header(inbox, at)
            except ValueError as error:
                raise BadFrame(str(error)) from None
            if kind not in (Kind.REQUEST, Kind.CANCEL) or length > (SMALL_REQUEST_BYTES if kind == Kind.REQUEST else 0):
                raise BadFrame(f"a client may not send a frame of the kind {kind.name} with {length} bytes")
            first = at + HEADER_BYTES
            if len(inbox) - first < length:
                break
            if kind == Kind.CANCEL:
                self._cancel(stream)
            else:
                self._add(stream, bytes(inbox[first : first + length]), is_checked)
            at = first + length
        del inbox[:at]

    def _add(self, number: int, payload: bytes, is_checked: bool) -> None:
        if len(self._waiting) == _MOST_WAITING:
            raise BadFrame(f"a client may have at most {_MOST_WAITING} requests that wait")
        if number in self._waiting or (self._replies is not None and number == self._number):
            raise BadFrame(f"the stream {number} has not ended, and there is another request of this number")
        try:
            stream = _Stream(number, *decode_bulk_request(payload, is_checked), len(payload), is_checked)
        except InvalidRequest as error:
            raise BadFrame(str(error)) from None
        self._waiting[number] = stream
        self._waiting_bytes += stream.size
