"""Keeps forks away from gRPC: in a process that is forked while a thread is inside gRPC, calls may never end."""

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from mixserve_client.errors import InvalidRequest

_WAIT_S = 1.0  # how long a fork waits for calls in flight


class Interruptible(Protocol):
    """A gRPC stream."""

    def interrupt(self) -> None:
        """End the stream soon; its reader requests the rest again."""
        ...


class ForkGate:
    """Knows which calls, streams and servers of this process are inside gRPC, and empties it before a fork.

    Before a fork it interrupts the streams, waits for the calls, and delays new ones until the fork is done. Every call
    holds the gate, every stream is added to it until it ends, and so is every server until its threads have ended.
    """

    def __init__(self) -> None:
        self._usable = True
        self._reset()

    @contextmanager
    def hold(self) -> Generator[None]:
        """Count the code inside as a call; waits while a fork happens. Raises InvalidRequest as `check` does."""
        with self._changed:
            self.check()
            if self._forking:
                self._changed.wait_for(lambda: not self._forking)
            self._calls += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def count(self) -> Generator[None]:
        """Count the code inside as a call, without waiting, and in every process: for what ends calls and channels.

        The garbage collector may run that in any thread, also in the one that forks.
        """
        with self._changed:
            self._calls += 1
        try:
            yield
        finally:
            self._leave()

    def check(self) -> None:
        """Raises InvalidRequest if gRPC cannot work in this process."""
        if not self._usable:
            raise InvalidRequest(
                f"this process ({os.getpid()}) was forked while its parent had a gRPC server, or a call that took more "
                f"than {_WAIT_S:g} s. Its own gRPC calls might never end: start processes with the method 'spawn' or "
                "'forkserver', or run serve(...) in a separate process"
            )

    def add(self, stream: Interruptible) -> int:
        """Add a stream; returns the number for `remove`."""
        with self._changed:
            self._last += 1
            self._streams[self._last] = weakref.ref(stream)
            return self._last

    def remove(self, number: int) -> None:
        """Remove the stream of that number, which has ended."""
        with self._changed:
            self._streams.pop(number, None)
            self._notify_forks()

    def add_server(self, server: object) -> None:
        """Add a server; its threads are inside gRPC until it is removed."""
        with self._changed:
            self._servers.add(server)

    def remove_server(self, server: object) -> None:
        """Remove a server that has ended."""
        with self._changed:
            self._servers.discard(server)

    def _reset(self) -> None:
        # A Condition has an RLock, which this needs: the garbage collector may end a stream in a thread that holds it.
        self._changed = threading.Condition()
        self._calls = self._forking = self._last = 0
        self._streams: dict[int, weakref.ref[Interruptible]] = {}
        self._servers: weakref.WeakSet[object] = weakref.WeakSet()
        self._quiet = True

    def _leave(self) -> None:
        with self._changed:
            self._calls -= 1
            self._notify_forks()

    def _notify_forks(self) -> None:
        if self._forking:
            self._changed.notify_all()

    def before_fork(self) -> None:
        with self._changed:
            self._forking += 1
            self._quiet = False
            if self._servers:
                return  # a server's threads are always inside gRPC, so a wait would be in vain
            streams = [stream for kept in self._streams.values() if (stream := kept()) is not None]
        # Without the lock: the callback of a stream that ends takes it in a thread of gRPC.
        for stream in streams:
            stream.interrupt()
        with self._changed:
            self._quiet = self._changed.wait_for(lambda: not self._calls and not self._streams, _WAIT_S)

    def after_in_parent(self) -> None:
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_in_child(self) -> None:
        # A process that cannot use gRPC passes that on to the processes that are forked from it.
        self._usable = self._usable and self._quiet
        self._reset()


GATE = ForkGate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork, after_in_parent=GATE.after_in_parent, after_in_child=GATE.after_in_child
    )
