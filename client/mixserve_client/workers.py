"""A few threads that fetch in the background, and do not keep the interpreter from ending."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """Daemon threads behind one queue, started at the first task.

    ThreadPoolExecutor joins its threads when the interpreter ends, and a thread that waits for a lost server would
    hold up the end of the program for as long as the client's patience lasts.
    """

    def __init__(self, count: int):
        self._count = count
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], T]) -> "Future[T]":
        """Run `task` soon in one of the threads."""
        future: Future[T] = Future()
        self._start()
        self._queue.put(lambda: _run(future, task))
        return future

    def close(self) -> None:
        """Let the threads end after the tasks that are queued already."""
        for _ in range(self._count if self._started else 0):
            self._queue.put(None)

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                for _ in range(self._count):
                    threading.Thread(target=self._work, name="mixserve-fetch", daemon=True).start()
                self._started = True

    def _work(self) -> None:
        while (run := self._queue.get()) is not None:
            run()
            del run  # a batch must not stay alive until the next task


def _run(future: "Future[T]", task: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = task()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
