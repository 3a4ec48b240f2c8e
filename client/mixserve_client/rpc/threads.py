"""A few threads that work in the background, and end when their owner, or the interpreter, does."""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from mixserve_client.errors import Unavailable

T = TypeVar("T")
_EXIT_S = 5.0
_Tasks = SimpleQueue[Callable[[], None] | None]
_Idle = SimpleQueue[None]  # an entry for each thread that waits for a task


class DaemonThreadPool:
    """Up to `count` daemon threads behind one queue, each started when a task finds none that is idle.

    ThreadPoolExecutor waits for queued tasks when the interpreter ends, and a task that looks for a lost server would
    hold up the end of the program for as long as the client's patience lasts. `on_exit` ends such waits instead: it is
    called before the threads are joined, and must not hold the owner of these workers.
    """

    def __init__(self, count: int, on_exit: Callable[[], None], name: str = "mixserve-fetch"):
        self._count = count
        self._name = name
        self._tasks: _Tasks = SimpleQueue()
        self._idle: _Idle = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()  # the collector may close another client wherever this thread is
        self._closed = threading.Event()
        self.pid = os.getpid()
        # Also where the owner is dropped without being closed.
        self._finish = weakref.finalize(self, _end, self.pid, self._tasks, self._threads, self._closed, on_exit)
        self._finish.atexit = False
        _open.add(self)

    def submit(self, task: Callable[[], T]) -> "Future[T]":
        """Run `task` soon in one of the threads. Raises Unavailable after `close`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("this client is closed; make another one")
            if not self._has_idle() and len(self._threads) < self._count:
                self._threads.append(_thread(self._name, self._tasks))
            idle = self._idle
            self._tasks.put(lambda: _run(future, task, idle))
        return future

    @property
    def is_closed(self) -> bool:
        """Whether no task is taken any more."""
        return self._closed.is_set()

    def close(self) -> None:
        """Call `on_exit`, and let the threads end after the tasks that they have; closing twice is closing once."""
        with self._lock:
            finish = self._finish.detach()  # calling it does nothing once the interpreter has begun to end
            self._closed.set()
        # Without the lock: this may take seconds, and a signal handler may close, too.
        if finish is not None:
            _, end, arguments, _ = finish
            end(*arguments)

    def join(self, until: float) -> None:
        """Wait until the threads have ended, but no longer than until then, a time of `time.monotonic()`."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _has_idle(self) -> bool:
        """Whether a thread waits for a task; it is reckoned to be busy from now on."""
        try:
            self._idle.get_nowait()
        except Empty:
            return False
        return True


_open: "weakref.WeakSet[DaemonThreadPool]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    # A daemon thread that is inside a library when the interpreter goes away can take the process down with it.
    mine = [workers for workers in list(_open) if workers.pid == os.getpid()]
    for workers in mine:
        workers.close()
    until = time.monotonic() + _EXIT_S
    for workers in mine:
        workers.join(until)


def _thread(name: str, tasks: _Tasks) -> threading.Thread:
    thread = threading.Thread(target=_work, args=(tasks,), name=name, daemon=True)
    thread.start()
    return thread


def _work(tasks: _Tasks) -> None:
    while (run := tasks.get()) is not None:
        run()
        del run  # a batch must not stay alive until the next task


def _end(
    pid: int,
    tasks: _Tasks,
    threads: list[threading.Thread],
    closed: threading.Event,
    on_exit: Callable[[], None],
) -> None:
    if os.getpid() != pid:
        return  # what a process that was forked off ends is its parent's
    closed.set()
    on_exit()
    for _ in threads:
        tasks.put(None)


def _run(future: "Future[T]", task: Callable[[], T], idle: _Idle) -> None:
    if not future.set_running_or_notify_cancel():
        idle.put(None)
        return
    # The thread is as good as idle before others learn of the result: the next task is theirs.
    try:
        result = task()
    except BaseException as error:
        idle.put(None)
        future.set_exception(error)
    else:
        idle.put(None)
        future.set_result(result)
