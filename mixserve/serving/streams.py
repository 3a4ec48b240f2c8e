"""The threads of streams: a stream gives up its thread when others wait, or when its reader stalls."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator

import grpc

from mixserve.serving.first_request import FirstRequests
from mixserve.serving.threads import CountingThreads

_logger = logging.getLogger("mixserve")

# Few, because every thread that wants the GIL delays single calls. More than cores, because stalled readers hold theirs
# for up to 10 s.
THREADS = 12
_STALLED_S = 10.0
_STALLED_BEFORE_OTHERS_S = 2.0  # if others wait for the thread
_PATIENCE_S = 0.5  # lists of positions may need several round trips
_LOOK_EVERY_S = 1.0

Replies = Generator[bytes]
Answer = Callable[[bytes, grpc.ServicerContext], Replies]


class StreamThreads:
    """Runs streams in their own threads, apart from single calls."""

    def __init__(self, count: int = THREADS) -> None:
        """`count` is the number of threads."""
        self._threads = CountingThreads(count, "mixserve-stream")
        self._first = FirstRequests(self._threads, _PATIENCE_S)
        self._sending: dict[grpc.ServicerContext, float] = {}
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mixserve-stalled", daemon=True)
        self._watching.start()

    def handler(self, answer: Answer) -> grpc.RpcMethodHandler:
        """A gRPC handler that streams the replies that `answer` yields."""

        def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._in_turns(answer(self._first.take_one(requests, context), context), context)

        # gRPC's (experimental) way to give a method its own threads.
        stream.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.stream_stream_rpc_method_handler(stream)

    def close(self) -> None:
        """End the threads after the streams that they have."""
        self._closed.set()
        self._threads.shutdown(wait=False)
        self._watching.join()

    def _in_turns(self, replies: Replies, context: grpc.ServicerContext) -> Iterator[bytes]:
        """`replies`, until another stream waits for a thread. The client asks again for the rest."""
        try:
            for reply in replies:
                self._sending[context] = time.monotonic()
                yield reply  # gRPC returns here when its flow control has room, so a stalled reader blocks this thread
                self._sending.pop(context, None)  # None: `_watch` has taken it, and cancels the call
                # Bounding streams by bytes instead would cost a lone reader one request for every few batches.
                if self._threads.waiting:
                    return
        finally:
            self._sending.pop(context, None)
            replies.close()  # now, not when it is collected: it ends the call that the server counts

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            now, needed = time.monotonic(), self._threads.waiting
            for context, since in sorted(self._sending.items(), key=lambda sending: sending[1]):
                stalled_s = now - since
                if stalled_s < (_STALLED_BEFORE_OTHERS_S if needed > 0 else _STALLED_S):
                    break
                # The pop decides between this thread and the stream's: only one of them gets the entry.
                if self._sending.pop(context, None) is not None:
                    needed -= 1
                    try:
                        _logger.warning("%s took nothing for %.0f s: ending its stream", context.peer(), stalled_s)
                        context.cancel()
                    except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                        _logger.exception("cannot end a stalled stream")
