"""Threads that answer calls, for gRPC."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from mixserve_client.errors import Unavailable
from mixserve_client.limited_log import LimitedLog
from mixserve_client.rpc.threads import DaemonThreadPool

_logger = logging.getLogger("mixserve")
_NO_THREAD = LimitedLog(_logger, "system_threads")

_VISIT_S = 0.05


class CallThreads(ThreadPoolExecutor):
    """Up to `count` daemon threads, each started when a call finds none that is idle."""

    # A ThreadPoolExecutor by type only, because gRPC takes nothing else. The interpreter joins that class's threads
    # when it exits, so a stream that a client holds open would keep a process from ending.

    def __init__(self, count: int, name: str):
        super().__init__(count, name)
        self._workers = DaemonThreadPool(count, on_exit=_nothing, name=name)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As in the base class. While the interpreter exits, returns a cancelled future."""
        try:
            return self._workers.submit(partial(fn, *args, **kwargs))
        except Unavailable:  # raising would end gRPC's own thread
            late: Future[Any] = Future()
            late.cancel()
            return late

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End the threads after the calls that they have. Never waits."""
        self._workers.close()


class _Task(NamedTuple):
    future: "Future[Any]"
    run: Callable[[], Any]


class CountingThreads(CallThreads):
    """Threads that give each connection its turn: a task of one waits for at most one task of each other connection.

    `count` threads run tasks, and up to `most_blocked` more as long as so many are blocked, as `set_blocked` tells.
    After each new task `on_submit` is called. Call `start_missing` now and then: if the system refuses a thread, tasks
    wait for the threads that there are, and for the next call of it.
    """

    def __init__(self, count: int, name: str, most_blocked: int = 0):
        super().__init__(count + most_blocked, name)
        self._lock = threading.Lock()
        self._count, self._most_blocked = count, most_blocked
        self._allowed = count
        self._running = 0  # threads
        self._queues: OrderedDict[str, deque[_Task]] = OrderedDict()  # by connection; the first has the next turn
        self._in_flight = 0  # submitted, and not ended
        self.on_submit: Callable[[], None] = _nothing

    @property
    def waiting(self) -> int:
        """How many tasks have no thread."""
        # Not the length of the queue: a task that was just submitted waits there until an idle thread wakes up, and
        # would end a stream for nothing.
        return max(0, self._in_flight - self._allowed)

    def set_blocked(self, count: int) -> None:
        """Tell how many tasks wait for others, and need no processor: as many more threads may run tasks."""
        with self._lock:
            self._allowed = self._count + min(count, self._most_blocked)
        self.start_missing()

    def start_missing(self) -> None:
        """Start threads for the tasks that wait, as far as there may be more."""
        if not self._queues:  # mostly so; looked at again under the lock
            return
        with self._lock:
            missing = min(self._allowed - self._running, sum(map(len, self._queues.values())))
            self._running += max(0, missing)
        for _ in range(missing):
            self._start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return self.submit_for(peer_of_task(args), partial(fn, *args, **kwargs))

    def submit_for(self, peer: str, run: Callable[[], Any]) -> "Future[Any]":
        """Run a task of the connection `peer`."""
        future: Future[Any] = Future()
        with self._lock:
            self._in_flight += 1
            queue = self._queues.get(peer)
            if queue is None:
                queue = self._queues[peer] = deque()
            queue.append(_Task(future, run))
            must_start = self._running < self._allowed
            self._running += must_start
        if must_start:
            self._start()
        self.on_submit()
        return future

    def visit(self, task: Callable[[], None]) -> None:
        """Run `task`, which must not raise, once in each thread that is idle; returns after 50 ms at most."""
        with self._lock:
            idle = 0 if self._queues else self._workers.thread_count - self._running
        arrived, all_arrived = threading.Semaphore(0), threading.Event()

        def stay() -> None:
            task()
            arrived.release()
            all_arrived.wait(_VISIT_S)  # or one thread would take several of these

        for _ in range(idle):
            with suppress(Unavailable):
                self._workers.start(stay)
        until = time.monotonic() + _VISIT_S
        for _ in range(idle):
            if not arrived.acquire(timeout=max(0.0, until - time.monotonic())):
                break
        all_arrived.set()

    def _start(self) -> None:
        try:
            self._workers.start(self._work)
        except Unavailable:  # the interpreter exits, or the server has ended
            pass
        except RuntimeError as error:  # of the system's limit on threads. Raising would end gRPC's own thread
            with self._lock:
                self._running -= 1
            with suppress(BaseException):  # such as SystemExit from a handler of the log: for the same reason
                _NO_THREAD.error("calls wait for a thread: %s. Raise the limit of processes and threads", error)

    def _work(self) -> None:
        """Run tasks until none waits, or there are more threads than allowed."""
        while (task := self._next()) is not None:
            if task.future.set_running_or_notify_cancel():
                try:
                    result = task.run()
                except BaseException as error:
                    self._end()
                    task.future.set_exception(error)
                else:
                    self._end()
                    task.future.set_result(result)
                    del result
            else:
                self._end()
            del task

    def _next(self) -> _Task | None:
        with self._lock:
            if not self._queues or self._running > self._allowed:
                self._running -= 1
                return None
            peer, queue = self._queues.popitem(last=False)
            task = queue.popleft()
            if queue:
                self._queues[peer] = queue  # as the last
            return task

    def _end(self) -> None:
        with self._lock:
            self._in_flight -= 1


def peer_of_task(arguments: tuple[Any, ...]) -> str:
    """The connection of a call, from the arguments with which gRPC submits it; empty if they are others.

    gRPC has no way to learn it before a thread is taken. Its arguments have been so since 2015, and a test notices when
    they change; then all calls are in one queue.
    """
    try:
        peer = arguments[1].call.peer()
    except (IndexError, AttributeError):
        return ""
    return peer.decode() if isinstance(peer, bytes) else str(peer)


def _nothing() -> None:
    pass
