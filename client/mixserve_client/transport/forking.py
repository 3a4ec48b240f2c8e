"""Forks and gRPC kept apart: in a process that is forked off while a thread is inside gRPC, calls may never end."""

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from mixserve_client.errors import InvalidRequest

_WAIT_S = 1.0  # so long a fork waits for the calls under way


class Interruptible(Protocol):
    """A stream of gRPC."""

    def interrupt(self) -> None:
        """End it soon; its reader asks again for what is left."""
        ...


class ForkGate:
    """What of this process is inside gRPC. A fork ends streams, waits for calls, and holds up new ones meanwhile.

    Every call holds the gate, every stream is added to it, and every server counts for as long as its threads live.
    """

    def __init__(self) -> None:
        self._usable = True
        self._begin()

    @contextmanager
    def hold(self) -> Generator[None]:
        """What is done inside is done inside gRPC. Raises InvalidRequest where gRPC cannot work in this process."""
        with self._changed:
            self.check()
            if self._forking:
                self._changed.wait_for(lambda: not self._forking)
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._tell()

    def check(self) -> None:
        """Raises InvalidRequest where gRPC cannot work in this process."""
        if not self._usable:
            raise InvalidRequest(
                f"this process ({os.getpid()}) was forked off one that had a gRPC server, or a call of more than "
                f"{_WAIT_S:g} s under way, so that calls of its own might never end: start processes with the method "
                "'spawn' or 'forkserver', or serve(...) in a process of its own"
            )

    def add(self, stream: Interruptible) -> int:
        """A number to remove `stream` by when it has ended."""
        with self._changed:
            self._last += 1
            self._streams[self._last] = weakref.ref(stream)
            return self._last

    def remove(self, number: int) -> None:
        """That stream has left gRPC."""
        with self._changed:
            self._streams.pop(number, None)
            self._tell()

    def add_server(self, server: object) -> None:
        """Its threads are inside gRPC from now on, until it is removed."""
        with self._changed:
            self._servers.add(server)

    def remove_server(self, server: object) -> None:
        """It has ended."""
        with self._changed:
            self._servers.discard(server)

    def _begin(self) -> None:
        self._changed = threading.Condition()  # of an RLock: what ends a stream may be collected wherever a thread is
        self._calls = self._forking = self._last = 0
        self._streams: dict[int, weakref.ref[Interruptible]] = {}
        self._servers: weakref.WeakSet[object] = weakref.WeakSet()
        self._quiet = True

    def _tell(self) -> None:
        if self._forking:
            self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forking += 1
            self._quiet = False
            if self._servers:
                return  # its threads are inside all the time
            streams = [stream for kept in self._streams.values() if (stream := kept()) is not None]
        for stream in streams:
            stream.interrupt()
        with self._changed:
            self._quiet = self._changed.wait_for(lambda: not self._calls and not self._streams, _WAIT_S)

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_in_child(self) -> None:
        self._usable = self._usable and self._quiet
        self._begin()


GATE = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork, after_in_parent=GATE.after_in_parent, after_in_child=GATE.after_in_child
    )
