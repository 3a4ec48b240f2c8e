"""Replies that their readers have not taken: bounded, or one reader could fill the memory of the server."""

import logging
import math
import threading
import time
from collections.abc import Callable

from mixserve.access.call import error_fields
from mixserve_client.errors import Overloaded, Unavailable
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

# gRPC does not tell how much of a single call's reply has been sent, so that a slow network looks like a reader who
# stalls. So a call is ended early only when others need its room: and soonest if it is one of many, and the others have
# next to nothing. (Otherwise two readers who take nothing would end one another's calls all the time.)
_GREEDY_STALLED_S = 1.0
_STALLED_S = 5.0
_LONGEST_S = 60.0
_RETRY_S = 0.2
# Connections with no more than this part of all bytes may use all of them, and others three quarters: so there is room
# for those that ask for little, or have just come, while a few others ask for everything.
_SMALL_PART = 64

Clock = Callable[[], float]


class ReplyAccount:
    """The replies to one call. `reserve` is called before a reply is made; for one thread at a time.

    Only `close` may be called by another thread meanwhile, when the caller gives up. Nothing counts from then on.
    """

    __slots__ = ("_connection", "_unread", "bytes", "cancel", "closed", "since")

    def __init__(self, unread: "UnreadReplies", connection: "_Connection", cancel: Callable[[], object]):
        self.bytes = 0
        self.cancel = cancel
        self.closed = False  # the lock of `UnreadReplies` is held where it is read or changed
        self.since = math.inf  # when the last reply was given to the network
        self._unread = unread
        self._connection = connection

    def reserve(self, size: int) -> None:
        """Count `size` bytes that will be made. Raises Overloaded if there is no room, Unavailable after `close`."""
        self._unread.reserve(self, self._connection, size)

    def sending(self) -> None:
        """From now on, the reader is waited for."""
        self.since = self._unread.clock()

    def settle(self, size: int) -> None:
        """The only reply is made, and has `size` bytes: it counts, whatever was reserved, until `close`."""
        self.sending()
        if size != self.bytes:
            self._unread.settle(self, self._connection, size)

    def sent(self, size: int) -> None:
        """A reply of `size` bytes was taken by its reader."""
        self.since = math.inf
        self._unread.take_off(self, self._connection, size)

    def close(self) -> None:
        """The call has ended."""
        self._unread.close(self, self._connection)


class _Connection:
    """The bytes and calls of one connection that has any."""

    __slots__ = ("accounts", "bytes", "peer")

    def __init__(self, peer: str):
        self.peer = peer
        self.bytes = 0
        self.accounts: dict[ReplyAccount, None] = {}

    def longest_unread(self) -> ReplyAccount:
        """The call whose reader is waited for longest."""
        return min(self.accounts, key=lambda account: account.since)


class UnreadReplies:
    """The replies under way: reserved, being made, or given to gRPC and not taken by their readers. Thread-safe.

    gRPC also makes a copy of each, so that they take twice as much memory.
    """

    def __init__(self, most_bytes: int, most_of_one: int | None = None, clock: Clock = time.monotonic):
        """`most_bytes` is for all connections together, and `most_of_one` for each of them (None: a quarter)."""
        self.clock = clock
        self.most_bytes = most_bytes  # may change at any time
        # When so many bytes have been made, `look` is called, which looks how much memory there is.
        self.look_at = math.inf
        self.look: Callable[[], None] = _nothing
        self.refused, self.ended = LimitedLog(_logger, "reply_bytes"), LimitedLog(_logger, "unread_replies")
        self._most_of_one = max(1, most_bytes // 4) if most_of_one is None else most_of_one
        self._lock = threading.Lock()
        self._bytes = 0
        self._made_bytes = 0
        self._connections: dict[str, _Connection] = {}

    @property
    def bytes(self) -> int:
        """How many bytes there are."""
        return self._bytes

    @property
    def made_bytes(self) -> int:
        """How many bytes there have ever been."""
        return self._made_bytes

    def open(self, peer: str, cancel: Callable[[], object]) -> ReplyAccount:
        """An account for a call of the connection `peer`, which `cancel()` ends."""
        connection = self._connections.get(peer)
        return ReplyAccount(self, _Connection(peer) if connection is None else connection, cancel)

    def reserve(self, account: ReplyAccount, connection: _Connection, size: int) -> None:
        """As `ReplyAccount.reserve`."""
        if self._made_bytes + size > self.look_at:
            self.look()
        victims: list[tuple[ReplyAccount, str]] = []
        with self._lock:
            if account.closed:
                raise Unavailable("the caller has ended this call")
            connection = self._current(account, connection)
            has_room = self._has_room(connection, account, size)
            while not has_room and (victim := self._find_victim(connection)) is not None:
                victims.append((victim[0], victim[1].peer))
                self._add(victim[0], victim[1], -victim[0].bytes)
                has_room = self._has_room(connection, account, size)
            if has_room:
                self._add(account, connection, size)
            whole = connection.bytes, self._bytes
        for victim_account, peer in victims:
            self._end(victim_account, peer)
        if not has_room:
            raise self._refusal(connection.peer, *whole)

    def check_room(self, account: ReplyAccount) -> None:
        """As `reserve`, for a reply of unknown size that will be counted when it is made."""
        account.reserve(1)

    # These look at what the account counts under the lock: another thread may take off all of it, to make room.

    def settle(self, account: ReplyAccount, connection: _Connection, size: int) -> None:
        """Count `size` bytes of a call, rather than those that were reserved."""
        with self._lock:
            if not account.closed:
                self._add(account, self._current(account, connection), size - account.bytes)

    def take_off(self, account: ReplyAccount, connection: _Connection, size: int) -> None:
        """Count `size` bytes of a call less, or all that it has."""
        with self._lock:
            self._add(account, self._current(account, connection), -min(size, account.bytes))

    def close(self, account: ReplyAccount, connection: _Connection) -> None:
        """Count nothing more of a call: it has ended, and may still be answered by a thread that does not know it."""
        with self._lock:
            account.closed = True
            self._add(account, self._current(account, connection), -account.bytes)

    def end_stalled(self) -> None:
        """End the calls whose readers have taken nothing for a minute; call it once in a while."""
        before = self.clock() - _LONGEST_S
        with self._lock:
            stalled = [
                (account, connection.peer)
                for connection in self._connections.values()
                for account in connection.accounts
                if account.since <= before
            ]
        for account, peer in stalled:
            self._end(account, peer)

    def _current(self, account: ReplyAccount, connection: _Connection) -> _Connection:
        """The entry of the account's connection now: another call may have begun, or ended, the one that it has."""
        known = self._connections.get(connection.peer)
        if known is not None and known is not connection and not account.bytes:
            account._connection = known  # pyright: ignore[reportPrivateUsage]
            return known
        return connection

    def _has_room(self, connection: _Connection, account: ReplyAccount, size: int) -> bool:
        if connection.bytes > account.bytes and connection.bytes + size > self._most_of_one:
            return False
        most = self.most_bytes
        if connection.bytes > most // _SMALL_PART:
            most = most * 3 // 4
        # A reply of any size must be possible, or its reader would ask for ever.
        return self._bytes + size <= most or (self._bytes <= most // 2 < size)

    def _find_victim(self, asking: _Connection) -> tuple[ReplyAccount, _Connection] | None:
        """The call to end, so that the connection `asking` gets room: of the one with the most bytes that stalls."""
        if asking.bytes and asking.bytes >= self._most_of_one:
            return None  # its own limit: to end calls of others would not help
        now = self.clock()
        share = self.most_bytes // (len(self._connections) + 1)
        found: tuple[ReplyAccount, _Connection] | None = None
        for connection in self._connections.values():
            oldest = connection.longest_unread()
            is_greedy = connection.bytes > share and asking.bytes <= self.most_bytes // _SMALL_PART
            if oldest.since > now - (_GREEDY_STALLED_S if is_greedy else _STALLED_S):
                continue
            if found is None or connection.bytes > found[1].bytes:
                found = oldest, connection
        return found

    def _add(self, account: ReplyAccount, connection: _Connection, size: int) -> None:
        account.bytes += size
        connection.bytes += size
        self._bytes += size
        if size > 0:
            self._made_bytes += size
            connection.accounts[account] = None
            self._connections[connection.peer] = connection
        elif not account.bytes:
            connection.accounts.pop(account, None)
            if not connection.accounts:
                self._connections.pop(connection.peer, None)

    def _end(self, account: ReplyAccount, peer: str) -> None:
        account.cancel()
        self.ended.warn(
            "%s takes no replies: ended calls of it, to make room for those of others. Its program or its network "
            "stands still; see reply_bytes in server.limits",
            peer,
        )

    def _refusal(self, peer: str, of_one: int, of_all: int) -> Overloaded:
        """The error of a call that finds no room, after a line in the log."""
        error = Overloaded("readers have not taken the replies that the server holds for them; ask again", _RETRY_S)
        self.refused.warn(
            "%s gets Overloaded: readers have not taken %d bytes of replies, of which %d are those of this connection. "
            "If they read as fast as they can, raise reply_bytes in server.limits, or add a server",
            peer,
            of_all,
            of_one,
            extra=error_fields(error),
        )
        return error


def _nothing() -> None:
    pass
