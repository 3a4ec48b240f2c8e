"""A method's name -> the threads that answer its calls, and with what. Calls that many others wait for are refused."""

import logging
from functools import partial

import grpc

from mixserve.access.call import error_fields
from mixserve.servicer import Services
from mixserve.servicer.jobs import spread
from mixserve.serving.answers import ALWAYS_ROOM, Answers
from mixserve.serving.call_threads import SingleCalls
from mixserve.serving.guard import Admission, Guard, MakeHandler
from mixserve.serving.session_threads import SessionThreads
from mixserve.serving.streams import StreamThreads
from mixserve_client.errors import Overloaded
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

_MOST_WAITING = 1000  # calls without a thread
_WAITING_RETRY_S = 2.0


class Routes:
    """Makes the gRPC handlers of a server's own methods."""

    def __init__(
        self, answers: Answers, guard: Guard, single: SingleCalls, streams: StreamThreads, sessions: SessionThreads
    ):
        self._answers = answers
        self._guard = guard
        self._single = single
        self._streams = streams
        self._sessions = sessions
        self._full = LimitedLog(_logger, "waiting_calls")  # its count: calls that were refused because too many wait

    def handlers(self, services: Services) -> dict[str, MakeHandler]:
        """What makes the handler of a call that is admitted, by the method's path."""
        return {
            **{path: partial(self._pure_handler, path) for path in services.pure_methods},
            **{path: partial(self._stream_handler, path) for path in services.mix.streams},
            **{path: partial(self._session_handler, path) for path in services.state.methods},
        }

    def _pure_handler(self, path: str, admission: Admission) -> grpc.RpcMethodHandler:
        if self._single.waiting(path) >= _MOST_WAITING:
            return self._refuse_more(path)
        return self._single.handler(path, partial(self._answers.answer, path, admission))

    def _stream_handler(self, path: str, admission: Admission) -> grpc.RpcMethodHandler:
        return self._streams.handler(path, partial(self._answers.stream, path, admission))

    def _session_handler(self, path: str, admission: Admission) -> grpc.RpcMethodHandler:
        if self._sessions.waiting(path) >= _MOST_WAITING and path not in ALWAYS_ROOM:
            return self._refuse_more(path)
        return self._sessions.handler(path, partial(self._answers.answer_session, path, admission))

    def _refuse_more(self, path: str) -> grpc.RpcMethodHandler:
        """Before the call waits, so that no thread is needed to refuse it."""
        waiting = f"{_MOST_WAITING} calls wait for a thread of this server; ask again, or another replica"
        error = Overloaded(waiting, spread(_WAITING_RETRY_S))
        said = "%d calls wait for a thread: others are refused. Add replicas"
        self._full.warn(said, _MOST_WAITING, extra=error_fields(error))
        return self._guard.refusing(path, error)
