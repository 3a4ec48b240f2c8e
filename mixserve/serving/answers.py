"""From an admitted call to its reply: whether the server is ready, whether there is room, and who still waits."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import cast

import grpc

from mixserve import tracing
from mixserve.metrics.calls import CallFigures
from mixserve.pooled_memory import PooledMemory
from mixserve.reply_room import reserving_with
from mixserve.servicer import Services
from mixserve.servicer.jobs import check_wanted
from mixserve.servicer.reply_memory import Message, ReplyMemory
from mixserve.servicer.thread_share import ThreadShare
from mixserve.serving.bulk import BulkPeer
from mixserve.serving.calls import CallCounter
from mixserve.serving.forwarding import StateForwarder
from mixserve.serving.guard import Acting, Admission, Guard
from mixserve.serving.statuses import statuses
from mixserve.serving.unread import ReplyAccount, UnreadReplies
from mixserve.serving.work import MixtureWork
from mixserve_client.errors import InvalidRequest, MixserveError, Unavailable
from mixserve_client.wire import methods

# Their replies are small, and a lease must be renewed however many others wait.
ALWAYS_ROOM = (methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS)


class Answers:
    """Answers admitted calls, in the threads of those who call it, until the server drains. Thread-safe."""

    def __init__(
        self,
        services: Services,
        guard: Guard,
        unread: UnreadReplies,
        work: MixtureWork,
        state: StateForwarder | None,
        figures: CallFigures,
    ):
        """With `state`, calls of sessions go on to the process that keeps them. `figures` counts the calls."""
        self._services = services
        self._guard = guard
        self._unread = unread
        self._work = work
        self._state = state
        self.calls = CallCounter()
        self._figures = figures
        self.not_ready: str | None = "is starting: it compiles programs and reads its sources"
        self.bulk_memory = PooledMemory()

    def answer(self, method: str, admission: Admission, request: bytes, context: grpc.ServicerContext) -> bytes:
        """The reply to a single call."""
        acting = admission.acting(self._peer(context), context.is_active)
        with self.calls, statuses(context, acting.call), self._figures.counting(acting.call), acting:
            self._check_ready()
            check_wanted()  # calls that waited for a thread may have been given up meanwhile
            account = self._open_account(method, context)
            with reserving_with(account.reserve):
                handle = partial(self._services.handle, method, request, self._work.calls, self._work.sessions)
                if tracing.spans is None:
                    reply = handle()
                else:
                    reply = tracing.spans.within_headers(context.invocation_metadata() or (), handle)
            account.settle(len(reply))
            return reply

    def answer_session(self, method: str, admission: Admission, request: bytes, context: grpc.ServicerContext) -> bytes:
        """The reply to a call of a session."""
        if self._state is None:
            return self.answer(method, admission, request, context)
        acting = admission.acting(self._peer(context))
        with self.calls, statuses(context, acting.call), self._figures.counting(acting.call):
            # Not around the call: the worker that answers it logs its refusals.
            with acting:
                self._check_ready()
            account = self._open_account(method, context)
            reply = self._state.call(method, request, context)
            account.settle(len(reply))
            return reply

    def stream(
        self, method: str, admission: Admission, request: bytes, context: grpc.ServicerContext, account: ReplyAccount
    ) -> Generator[bytes]:
        """The replies of a stream over gRPC."""
        acting = admission.acting(self._peer(context), context.is_active)
        replies = self._replies(method, acting, request, account, None, self._work.streams)
        with statuses(context, acting.call), closing(replies):
            yield from cast(Generator[bytes], replies)  # without other memory, replies are bytes objects

    def stream_over_bulk(
        self,
        method: str,
        admission: Admission,
        peer: str,
        request: bytes,
        connection: BulkPeer,
        is_wanted: Callable[[], bool],
    ) -> Generator[Message]:
        """The replies of a stream over a bulk channel."""
        if method not in self._services.mix.streams:
            raise InvalidRequest(f"bulk channels carry streams only, and {method!r:.100} is none")
        account = self._unread.open(connection.key, connection.end)
        acting = replace(admission, method=method).acting(lambda: peer, is_wanted)
        replies = self._replies(method, acting, request, account, self.bulk_memory, self._work.bulk)
        with closing(account), closing(replies):
            try:
                for reply in replies:
                    account.sending()
                    yield reply
                    account.sent(len(reply))
            except MixserveError as error:
                acting.call.fail(error)
                raise

    def _replies(
        self,
        method: str,
        acting: Acting,
        request: bytes,
        account: ReplyAccount,
        memory: ReplyMemory | None,
        share: ThreadShare,
    ) -> Generator[Message]:
        reserving = reserving_with(account.reserve)
        counting = self._figures.counting(acting.call)
        with self.calls, counting, closing(self._services.stream(method, request, memory, share)) as replies:
            with acting:
                self._check_ready()
            while True:
                with acting, reserving:  # not around the yield: the next reply must see rights that were taken away
                    reply = next(replies, None)
                if reply is None:
                    return
                yield reply
                # A stream may end after any reply: the client asks another replica for the rest.
                if self.not_ready is not None:
                    return

    def _open_account(self, method: str, context: grpc.ServicerContext) -> ReplyAccount:
        """An account for the reply of a single call, until the call ends. Raises Overloaded if there is no room."""
        account = self._unread.open(context.peer(), context.cancel)
        if not context.add_callback(account.close):  # the call has ended meanwhile, so that nothing would close it
            raise Unavailable("the caller has ended this call")
        if method not in ALWAYS_ROOM:
            self._unread.check_room(account)
        return account

    def _peer(self, context: grpc.ServicerContext) -> Callable[[], str]:
        return partial(self._guard.peer_of, context)

    def _check_ready(self) -> None:
        if self.not_ready is not None:
            raise Unavailable(f"this server {self.not_ready}")
