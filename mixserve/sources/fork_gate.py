"""Forks wait until no thread is inside a library whose locks would stay locked for ever in the new process."""

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

_WAIT_S = 1.0


class ForkGate:
    """What runs in `no_fork()` is not cut in two by a fork, unless it takes longer than a second."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(before=self._close, after_in_parent=self._open, after_in_child=self._renew)

    @contextmanager
    def no_fork(self) -> Generator[None, None, None]:
        """A block in which no fork happens: it waits for a fork, and a fork waits for it."""
        with self._changed:
            while self._forks:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._forks:
                    self._changed.notify_all()

    def _renew(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = self._forks = 0

    def _close(self) -> None:
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: self._inside == 0, _WAIT_S)

    def _open(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()
