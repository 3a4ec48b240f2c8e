"""The threads of bulk channels: a few that answer, and one that watches the channels which have nothing to do."""

import logging
import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress

from mixserve.access.failures import host_of
from mixserve.serving.bulk_connection import BulkConnection, Wait
from mixserve.serving.first_request import REQUEST_TIMEOUT_S
from mixserve.serving.threads import CountingThreads
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

# As many as streams over gRPC have, for the same reasons. A reader that takes nothing holds none.
THREADS = 12
STALLED_S = 10.0
_LOOK_EVERY_S = 1.0
_EVENTS = {Wait.INPUT: selectors.EVENT_READ, Wait.ROOM: selectors.EVENT_WRITE}


class BulkThreads:
    """Runs connections. A connection is in one thread at a time, or watched, or waits for a thread."""

    def __init__(
        self, count: int = THREADS, stalled_s: float = STALLED_S, request_timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        """`count` is the number of threads that answer. A reader may take nothing for `stalled_s`, and a request that
        has come in part may rest for `request_timeout_s`."""
        self.stalled, self.late = LimitedLog(_logger, "stalled_bulk_streams"), LimitedLog(_logger, "request_timeout_s")
        self._failures = LimitedLog(_logger)
        self._stalled_s, self._request_timeout_s = stalled_s, request_timeout_s
        self._threads = CountingThreads(count, "mixserve-bulk")
        self._connections: set[BulkConnection] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._to_watch = deque[tuple[BulkConnection, Wait]]()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._watching = threading.Thread(target=self._watch, name="mixserve-bulk-watch", daemon=True)
        self._watching.start()

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def count_of(self, host: str) -> int:
        """The number of connections of a host."""
        with self._lock:
            return sum(host_of(connection.peer) == host for connection in self._connections)

    def add(self, connection: BulkConnection) -> None:
        """Answer the requests of a new connection."""
        with self._lock:
            if not self._closed:
                self._connections.add(connection)
                self._threads.submit(self._run, connection)
                return
        connection.close()

    def close(self) -> None:
        """End all connections. Threads that are inside a source end after it."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                connection.shutdown()
        self._notify()
        self._watching.join()
        self._woken.close()
        self._wake.close()
        self._threads.shutdown()

    def _run(self, connection: BulkConnection) -> None:
        wait = connection.run(self._do_others_wait)
        if wait == Wait.NOTHING or not self._go_on(connection, wait):
            self._end(connection)

    def _go_on(self, connection: BulkConnection, wait: Wait) -> bool:
        """Let a connection wait. False if these threads end."""
        with self._lock:
            if self._closed:
                return False
            if wait == Wait.TURN:
                self._threads.submit(self._run, connection)
            else:
                self._to_watch.append((connection, wait))
                self._notify()
            return True

    def _do_others_wait(self) -> bool:
        return self._threads.waiting > 0

    def _end(self, connection: BulkConnection) -> None:
        connection.close()
        with self._lock:
            self._connections.discard(connection)

    def _notify(self) -> None:
        # It is awake already, or it has ended: `close` shuts connections down, and the first of these wakes it, too.
        with suppress(OSError):
            self._wake.send(b"x")

    def _watch(self) -> None:
        look_at = time.monotonic() + _LOOK_EVERY_S
        while not self._closed:
            try:
                self._watch_until(look_at)
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK_EVERY_S
                    self._threads.start_missing()
                    self._end_late()
            except BaseException:  # this thread must live
                self._failures.exception("cannot watch the bulk channels")
        self._end_watched()

    def _watch_until(self, look_at: float) -> None:
        for key, _ in self._selector.select(max(0.0, look_at - time.monotonic())):
            if isinstance(key.data, BulkConnection):
                self._selector.unregister(key.fileobj)
                self._threads.submit(self._run, key.data)
            else:
                self._woken.recv(1024)
        while self._to_watch:
            connection, wait = self._to_watch.popleft()
            try:
                self._selector.register(connection, _EVENTS[wait], connection)
            except (OSError, ValueError, KeyError):  # such as the system's limit on what may be watched
                self._end(connection)
                raise

    def _end_late(self) -> None:
        """End the connections that do not go on, and those that are old."""
        now = time.monotonic()
        for key in list(self._selector.get_map().values()):
            if not isinstance(connection := key.data, BulkConnection):
                continue
            if key.events == selectors.EVENT_WRITE:
                if connection.stalled_since >= now - self._stalled_s:
                    continue
                self.stalled.warn("%s took nothing for %.0f s: ending its stream", connection.peer, self._stalled_s)
            elif connection.half_since < now - self._request_timeout_s:
                self.late.warn(
                    "%s sent a part of a request, and no more for %g s: ended its bulk channel. If its network is that "
                    "slow, raise request_timeout_s in server.limits",
                    connection.peer,
                    self._request_timeout_s,
                )
            elif not connection.is_old():
                continue
            self._selector.unregister(key.fileobj)
            self._end(connection)

    def _end_watched(self) -> None:
        watched = [key.data for key in self._selector.get_map().values() if key.data is not None]
        for connection in [*watched, *(connection for connection, _ in self._to_watch)]:
            self._end(connection)
        self._selector.close()
