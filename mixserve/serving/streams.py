"""The threads of streams: a stream gives up its thread when others wait, or when its reader stalls."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import grpc

from mixserve.serving.bounded_threads import BoundedThreads
from mixserve.serving.first_request import REQUEST_TIMEOUT_S, FirstRequests
from mixserve.serving.unread import ReplyAccount, UnreadReplies
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

# Few, because every thread that wants the GIL delays single calls. More than cores, because readers are waited for.
THREADS = 12
# A reader that has not taken a reply after this time blocks its thread, which needs no processor: while others wait,
# as many more threads run.
_BLOCKED_S = 0.05
_MOST_BLOCKED = 512
_STALLED_S = 10.0
# If others wait, and there may be no more threads: for connections with more than their share of streams, and for all.
_GREEDY_STALLED_S, _STALLED_BEFORE_OTHERS_S = 0.5, 2.0
_PATIENCE_S = 0.5  # lists of positions may need several round trips
_LOOK_EVERY_S = 1.0

Replies = Generator[bytes]
Answer = Callable[[bytes, grpc.ServicerContext, ReplyAccount], Replies]
# In place of an answer to a method: raises, with the status set, what `check` raises.
Check = Callable[[grpc.ServicerContext, str, Callable[[], None]], None]


class _Sending(NamedTuple):
    since: float
    peer: str


class StreamThreads:
    """Runs streams in their own threads, apart from single calls."""

    def __init__(
        self,
        unread: UnreadReplies,
        most_of_one: int,
        refuse: Check,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        count: int = THREADS,
    ):
        """A connection may have `most_of_one` streams; `refuse` answers the others. `count` is the number of threads,
        without those that are blocked by readers."""
        self._unread = unread
        self._refuse = refuse
        self._threads = BoundedThreads(count, "mixserve-stream", most_of_one, _MOST_BLOCKED)
        self.first = FirstRequests(self._threads, _PATIENCE_S, request_timeout_s)
        self.visit = self._threads.visit
        self.ended = LimitedLog(_logger, "stalled_streams")
        self._failures = LimitedLog(_logger)
        self._sending: dict[grpc.ServicerContext, _Sending] = {}
        self._closed = False
        self._needed = threading.Event()
        make_room = self._threads.on_submit

        def on_submit() -> None:
            make_room()
            if self._threads.waiting:
                self._needed.set()

        self._threads.on_submit = on_submit
        self._watching = threading.Thread(target=self._watch, name="mixserve-stalled", daemon=True)
        self._watching.start()

    def handler(self, method: str, answer: Answer) -> grpc.RpcMethodHandler:
        """A gRPC handler that streams the replies that `answer` yields to calls of `method`."""

        def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            peer = context.peer()
            self._refuse(context, method, lambda: self._threads.check(peer))
            request = self.first.take_one(requests, context)
            account = self._unread.open(peer, context.cancel)
            return self._in_turns(answer(request, context, account), context, account, peer)

        # gRPC's (experimental) way to give a method its own threads.
        stream.experimental_thread_pool = self._threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.stream_stream_rpc_method_handler(stream)

    def close(self) -> None:
        """End the threads after the streams that they have."""
        self._closed = True
        self._needed.set()
        self._threads.shutdown(wait=False)
        self._watching.join()

    def _in_turns(
        self, replies: Replies, context: grpc.ServicerContext, account: ReplyAccount, peer: str
    ) -> Iterator[bytes]:
        """`replies`, until another stream waits for a thread. The client asks again for the rest."""
        try:
            for reply in replies:
                self._sending[context] = _Sending(time.monotonic(), peer)
                account.sending()
                yield reply  # gRPC returns here when its flow control has room, so a stalled reader blocks this thread
                account.sent(len(reply))
                self._sending.pop(context, None)  # None: `_watch` has taken it, and cancels the call
                # Bounding streams by bytes instead would cost a lone reader one request for every few batches.
                if self._threads.waiting:
                    return
        finally:
            self._sending.pop(context, None)
            account.close()
            replies.close()  # now, not when it is collected: it ends the call that the server counts

    def _watch(self) -> None:
        while not self._closed:
            if self._needed.wait(_LOOK_EVERY_S):
                self._needed.clear()
                if not self._closed:
                    time.sleep(_BLOCKED_S)  # the time after which streams count as blocked, and the pause between looks
            try:
                self._look()
            except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                self._failures.exception("cannot end stalled streams")
            if self._threads.waiting:
                self._needed.set()

    def _look(self) -> None:
        now = time.monotonic()
        sending = sorted(self._sending.copy().items(), key=lambda one: one[1].since)
        blocked = sum(now - one.since >= _BLOCKED_S for _, one in sending)
        self._threads.set_blocked(blocked)
        # Otherwise those who wait do so for threads that work: to end streams that are blocked would not help them.
        needed = self._threads.waiting if blocked >= _MOST_BLOCKED else 0
        of_one = Counter(one.peer for _, one in sending)
        share = len(sending) / max(1, len(of_one))
        # Those of the connection with the most go first: a reader that stalls harms itself before others.
        sending.sort(key=lambda one: (-of_one[one[1].peer] if needed else 0, one[1].since))
        for context, one in sending:
            stalled_s, is_greedy = now - one.since, of_one[one.peer] >= share
            before_others_s = _GREEDY_STALLED_S if is_greedy else _STALLED_BEFORE_OTHERS_S
            if stalled_s < (before_others_s if needed > 0 else _STALLED_S):
                continue
            # The pop decides between this thread and the stream's: only one of them gets the entry.
            if self._sending.pop(context, None) is not None:
                needed -= 1
                context.cancel()
                self.ended.warn(
                    "%s took nothing for %.0f s: ending its stream. A client asks again by itself when it reads on",
                    one.peer,
                    stalled_s,
                )
