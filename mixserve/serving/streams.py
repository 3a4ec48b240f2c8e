"""The threads of streams: nobody keeps one while others wait, and nobody holds one without reading."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

import grpc

from mixserve.serving.threads import CallThreads

_logger = logging.getLogger("mixserve")

# Few: threads that want the interpreter's lock make single calls wait for it. Enough for readers that stall.
_THREADS = 12
_STALLED_S = 10.0
_LOOK_EVERY_S = 1.0

Replies = Generator[bytes]
Answer = Callable[[bytes, grpc.ServicerContext], Replies]


class StreamThreads:
    """Runs streams in threads of their own, apart from those of single calls."""

    def __init__(self) -> None:
        self._threads = _CountingThreads(_THREADS, "mixserve-stream")
        self._sending: dict[grpc.ServicerContext, float] = {}
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mixserve-stalled", daemon=True)
        self._watching.start()

    def handler(self, answer: Answer) -> grpc.RpcMethodHandler:
        """The handler of a method whose replies `answer` yields."""

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._in_turns(answer(request, context), context)

        # How grpc lets a method have its own threads.
        stream.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.unary_stream_rpc_method_handler(stream)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        self._closed.set()
        self._threads.shutdown(wait=False)
        self._watching.join()

    def _in_turns(self, replies: Replies, context: grpc.ServicerContext) -> Iterator[bytes]:
        """`replies` until somebody waits for a thread: the client asks again for what is left."""
        try:
            for reply in replies:
                self._sending[context] = time.monotonic()
                yield reply  # for as long as the connection takes nothing more
                self._sending.pop(context, None)  # not there any more where it took too long
                if self._threads.waiting:
                    return
        finally:
            self._sending.pop(context, None)
            replies.close()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            stalled_since = time.monotonic() - _STALLED_S
            for context, since in list(self._sending.items()):
                if since < stalled_since and self._sending.pop(context, None) is not None:
                    try:
                        _logger.warning("%s took nothing for %.0f s: its stream is ended", context.peer(), _STALLED_S)
                        context.cancel()
                    except Exception:
                        _logger.exception("a stalled stream cannot be ended")


class _CountingThreads(CallThreads):
    """Knows how many tasks wait although all threads are busy."""

    def __init__(self, count: int, name: str):
        super().__init__(count, name)
        self._counting = threading.Lock()
        self._most = count
        self._under_way = 0  # submitted, and not ended

    @property
    def waiting(self) -> int:
        """How many tasks no thread is free for: one that was submitted a moment ago is about to be taken."""
        return max(0, self._under_way - self._most)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self._changed(1)
        return super().submit(self._run, fn, *args, **kwargs)

    def _run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            self._changed(-1)

    def _changed(self, by: int) -> None:
        with self._counting:
            self._under_way += by
