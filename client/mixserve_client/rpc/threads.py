"""A pool of daemon threads that ends with its owner or with the interpreter."""

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from mixserve_client.errors import Unavailable

T = TypeVar("T")
_EXIT_S = 5.0
# SimpleQueue, since its `put` is reentrant: `_end` runs as a finalizer, in any thread, even inside another `put`.
_Tasks = SimpleQueue[Callable[[], None] | None]
_Idle = SimpleQueue[None]  # an entry for each thread that waits for a task


class DaemonThreadPool:
    """Up to `count` daemon threads that take tasks from one queue; a new one starts if a task finds none idle.

    ThreadPoolExecutor waits for queued tasks when the interpreter ends, so a task that retries a lost server would
    delay the end of the program by up to `patience_s`. Here `on_exit` ends such waits: it runs before the threads are
    joined, and must not hold the owner of this pool.
    """

    def __init__(self, count: int, on_exit: Callable[[], None], name: str = "mixserve-fetch"):
        self._count = count
        self._name = name
        self._tasks: _Tasks = SimpleQueue()
        self._idle: _Idle = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()  # reentrant: a signal handler may close the pool in a thread that holds it
        self._closed = threading.Event()
        self.pid = os.getpid()
        # For owners that are dropped without being closed. Not at exit: `_end_all` also joins the threads then.
        self._finish = weakref.finalize(self, _end, self.pid, self._tasks, self._threads, self._closed, on_exit)
        self._finish.atexit = False
        _open.add(self)

    def submit(self, task: Callable[[], T]) -> "Future[T]":
        """Run `task` in one of the threads; the future has its result. Raises Unavailable after `close`."""
        future: Future[T] = Future()
        idle = self._idle
        self._put(lambda: _run(future, task, idle))
        return future

    def start(self, task: Callable[[], None]) -> None:
        """Run `task`, which must not raise, in one of the threads. Raises Unavailable after `close`."""
        # A future costs more than the rest, and the thread that reads ahead is started between a trainer's steps.
        self._put(partial(_run_alone, task, self._idle))

    def _put(self, run: Callable[[], None]) -> None:
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("this client is closed; make another one")
            if not self._claim_idle() and len(self._threads) < self._count:
                self._threads.append(_start_thread(self._name, self._tasks))
            self._tasks.put(run)

    @property
    def thread_count(self) -> int:
        """How many threads there are, busy or idle."""
        return len(self._threads)

    @property
    def is_closed(self) -> bool:
        """Whether `submit` refuses tasks."""
        return self._closed.is_set()

    def close(self) -> None:
        """Call `on_exit`, and let the threads end after the queued tasks; a second call does nothing."""
        with self._lock:
            # Detached, since a finalizer that is called does nothing once the interpreter has begun to end.
            finish = self._finish.detach()
            self._closed.set()
        # Without the lock: this may take seconds, and a signal handler that closes must not wait for another thread.
        if finish is not None:
            _, end, arguments, _ = finish
            end(*arguments)

    def join(self, until: float) -> None:
        """Wait for the threads to end, at most until the time `until` of `time.monotonic()`."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _claim_idle(self) -> bool:
        """Whether a thread is idle; if so, count it as busy from now on."""
        try:
            self._idle.get_nowait()
        except Empty:
            return False
        return True


_open: "weakref.WeakSet[DaemonThreadPool]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    # A daemon thread that is inside a C library when the interpreter is finalized can crash the process.
    pools = [pool for pool in list(_open) if pool.pid == os.getpid()]
    # All are closed before the first is joined, so that they end at the same time.
    for pool in pools:
        pool.close()
    until = time.monotonic() + _EXIT_S
    for pool in pools:
        pool.join(until)


def _start_thread(name: str, tasks: _Tasks) -> threading.Thread:
    thread = threading.Thread(target=_work, args=(tasks,), name=name, daemon=True)
    thread.start()
    return thread


def _work(tasks: _Tasks) -> None:
    while (run := tasks.get()) is not None:
        run()
        del run  # else this frame would keep the task's batch alive until the next task


def _end(
    pid: int,
    tasks: _Tasks,
    threads: list[threading.Thread],
    closed: threading.Event,
    on_exit: Callable[[], None],
) -> None:
    if os.getpid() != pid:
        return  # in a forked process, the threads and connections are still the parent's
    closed.set()
    on_exit()
    for _ in threads:
        tasks.put(None)


def _run_alone(task: Callable[[], None], idle: _Idle) -> None:
    try:
        task()
    finally:
        idle.put(None)


def _run(future: "Future[T]", task: Callable[[], T], idle: _Idle) -> None:
    if not future.set_running_or_notify_cancel():
        idle.put(None)
        return
    # Count the thread as idle before the result is visible: the next task may come at once, and needs no new thread.
    try:
        result = task()
    except BaseException as error:
        idle.put(None)
        future.set_exception(error)
    else:
        idle.put(None)
        future.set_result(result)
