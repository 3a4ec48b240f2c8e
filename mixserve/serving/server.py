"""A servicer on a gRPC port: starts, warms up, answers, drains."""

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import grpc

from mixserve.access.call import Call
from mixserve.access.certificates import Certificates
from mixserve.access.log_fields import add_call_fields
from mixserve.access.tokens import TokenFile
from mixserve.address import check_host
from mixserve.faults import FAULTS
from mixserve.limits import ServerLimits
from mixserve.metrics.calls import CallFigures
from mixserve.servicer import Services
from mixserve.serving.answers import Answers
from mixserve.serving.binding import bind
from mixserve.serving.bulk import BulkChannels
from mixserve.serving.call_threads import SingleCalls
from mixserve.serving.forwarding import StateForwarder, caller_of
from mixserve.serving.grpc_log import limit_grpc_log
from mixserve.serving.guard import Admission, Guard, GuardedHandlers, MakeHandler, peer_of
from mixserve.serving.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from mixserve.serving.health import Health
from mixserve.serving.health_port import HealthPort
from mixserve.serving.memory import MemoryWatch, allowed_bytes, default_reply_bytes
from mixserve.serving.metrics_port import MetricsPort
from mixserve.serving.options import options_of
from mixserve.serving.reflection import METHOD as REFLECTION_METHOD
from mixserve.serving.reflection import Reflection
from mixserve.serving.regularly import Regularly
from mixserve.serving.routes import Routes
from mixserve.serving.server_stats import ServerStats
from mixserve.serving.session_threads import SessionThreads
from mixserve.serving.shared_counts import share_readers
from mixserve.serving.shared_memory import SharedMemory
from mixserve.serving.silent_calls import SilentCalls
from mixserve.serving.stats_socket import StatsSocket, of_workers
from mixserve.serving.statuses import statuses
from mixserve.serving.streams import StreamThreads
from mixserve.serving.unread import UnreadReplies
from mixserve.serving.work import MixtureWork
from mixserve.serving.worker import Worker
from mixserve_client.schema.server import FleetList
from mixserve_client.transport.allocator import keep_freed_memory
from mixserve_client.transport.forking import GATE
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server, decode_server_request, encode_server

_logger = logging.getLogger("mixserve")

_SEND_S = 2.0  # for the last replies on their way, after the calls have finished
_END_S = 5.0  # for gRPC to end the others, which takes it a moment unless it has lost count of them
_EXIT_S = 1.0


class MixServer:
    """A running server, made by `serve`. `address` is where it listens. As a context manager, stops at the end."""

    def __init__(
        self,
        services: Services,
        address: str,
        memory: SharedMemory | None = None,
        *,
        tokens: TokenFile | None = None,
        certificates: Certificates | None = None,
        health_address: str | None = None,
        metrics_address: str | None = None,
        bulk: bool = True,
        bulk_port: int = 0,
        limits: ServerLimits | None = None,
        worker: Worker | None = None,
    ):
        """`memory` has the slots of `services`; the server closes both. With `tokens`, calls need one of them. Without
        `certificates`, no TLS. With `worker`, this is one of several processes at `address`.

        `health_address` is where health alone is answered as well, and `metrics_address` where Prometheus reads
        metrics, both in plain text. With `bulk`, streams also come over bulk channels, at `bulk_port` unless `address`
        is a Unix socket. Raises OSError if it cannot listen.
        """
        # Raises in a process that was forked while a thread was inside gRPC: a server there would hang.
        GATE.check()
        keep_freed_memory()
        self._services = services
        self._memory = memory
        limits = ServerLimits() if limits is None else limits
        memory_limit = limits.memory_limit or allowed_bytes(1 if worker is None else max(1, len(worker.told)))
        self._unread = UnreadReplies(
            limits.reply_bytes or default_reply_bytes(memory_limit), limits.reply_bytes_per_connection
        )
        self._worker = worker
        figures = CallFigures()
        patience_s = limits.request_timeout_s
        self._work = MixtureWork(services.reads_sources, limits)
        self._streams = StreamThreads(
            self._unread, limits.streams_per_connection, _refuse, patience_s, self._work.streams.threads
        )
        self._single = SingleCalls(self._work.calls.threads, patience_s)
        limit_grpc_log()
        add_call_fields()
        self._server = grpc.server(self._single.threads, options=options_of(limits, shares_port=worker is not None))
        self._guard = Guard(tokens, peer_of if worker is None else caller_of, figures.note_refused)
        self._state = StateForwarder(worker.state_address) if worker is not None and not worker.keeps_state else None
        self._answers = Answers(services, self._guard, self._unread, self._work, self._state, figures)
        self._sessions = SessionThreads(
            {method: share.threads for method, share in self._work.sessions.shares.items()},
            services.state.end_silent,
            self._guard.report,
            request_timeout_s=patience_s,
        )
        self._reflection = Reflection((methods.SERVICE_NAME, methods.STATE_SERVICE_NAME, HEALTH_SERVICE_NAME))
        self._server.add_generic_rpc_handlers((GuardedHandlers(self._guard, self._handlers()),))
        self._stuck_elsewhere = frozenset[str]()
        self._fleet = FleetList()
        self._health = Health(self._answering_mixtures)
        self._health.add_to(self._server)
        self._health_port: HealthPort | None = None
        self._metrics_port: MetricsPort | None = None
        self._bulk: BulkChannels | None = None
        if bulk:
            answer, age_s = self._answers.stream_over_bulk, limits.max_connection_age_s
            self._bulk = BulkChannels(answer, self._work.bulk.threads, age_s, request_timeout_s=patience_s)
        self._memory_watch = MemoryWatch(
            memory_limit,
            self._unread,
            (self._answers.bulk_memory.drop_idle, services.mix.drop_old),
            (*self._single.visits, self._streams.visit, *self._sessions.visits),
        )
        self.stats = ServerStats(
            services.stats,
            figures,
            self._work.shares,
            self._unread,
            memory_limit,
            self._answering_mixtures,
            lambda: self._answers.not_ready is None,
            lambda: 0 if self._bulk is None else self._bulk.channels,
            certificates,
        )
        services.collect = self.stats.collect
        self._stats_socket: StatsSocket | None = None
        firsts = *self._single.firsts, self._streams.first, *self._sessions.firsts
        self._silent = SilentCalls(memory_limit, lambda: (*firsts, *self._health.firsts))
        self._chores = Regularly(
            self._guard.start_missing,
            self._reflection.start_missing,
            self._silent.end_most,
            self._single.end_late,
            self._streams.first.end_late,
            self._sessions.end_late,
            self._health.end_late,
            self._unread.end_stalled,
            self._memory_watch.look,
            FAULTS.report,
            lambda: services.mix.present.tell_others(),
        )
        self._tokens = tokens
        self._certificates = certificates
        try:
            self.address = bind(self._server, address, certificates)
            if worker is not None:
                worker.bind(self._server, certificates)
                sockets, number = worker.stats_sockets, worker.number
                services.collect = partial(of_workers, sockets, number, self.stats.collect)
                self._stats_socket = StatsSocket(self.stats.collect, sockets[number])
                share_readers(services.mix.present, worker.readers_file, number, len(sockets))
            if health_address is not None:
                self._health_port = HealthPort(self._health, health_address)
            if metrics_address is not None:
                self._metrics_port = MetricsPort(self.stats.collect, metrics_address)
            if self._bulk is not None and not address.startswith("unix:"):
                # Processes cannot share this one: a token opens a channel of the process that gave it.
                port = bulk_port and bulk_port + (0 if worker is None else worker.number)
                self._bulk.listen(check_host(address.rpartition(":")[0]), port, certificates)
        except BaseException:
            self._server.stop(None)  # or it would keep the port if only that of health is taken
            if self._metrics_port is not None:
                self._metrics_port.close()
            if self._bulk is not None:
                self._bulk.close()
            self._streams.close()
            self._sessions.close()
            self._work.close()
            raise
        self._stopped = threading.Event()
        self._pid = os.getpid()
        GATE.add_server(self)
        _made.add(self)

    @property
    def bulk_port(self) -> int:
        """The port of bulk channels; 0 if none can be opened over TCP."""
        return 0 if self._bulk is None else self._bulk.port

    @property
    def health_address(self) -> str | None:
        """Where the server answers health alone, if it does so on a port of its own."""
        return None if self._health_port is None else self._health_port.address

    @property
    def metrics_address(self) -> str | None:
        """Where Prometheus reads metrics, if it can."""
        return None if self._metrics_port is None else self._metrics_port.address

    def start(self) -> None:
        """Listen, warm up, then serve. Earlier calls get Unavailable, and clients retry."""
        # The port opens first, so that health probes and clients get an answer while programs compile.
        self._server.start()
        if self._health_port is not None:
            self._health_port.start()
            _logger.info("health on %s", self._health_port.address)
        if self._metrics_port is not None:
            self._metrics_port.start()
            _logger.info("metrics on http://%s/metrics", self._metrics_port.address)
        if self._bulk is not None:
            self._bulk.start()
            if self.bulk_port:
                host = self.address.rpartition(":")[0]
                _logger.info("bulk channels on %s:%d", host, self.bulk_port)
            if self._memory is not None:
                self._memory.adopt = self._bulk.adopt
        self._sessions.start()
        self._chores.start()
        if self._worker is None:
            self._services.warm_up()
        self._answers.not_ready = None
        if self._worker is None:
            self._health.serving()
            _logger.info("serving on %s", self.address)
        else:  # the process that started it says when all serve
            _logger.info("answers, and at %s alone", self._worker.address)

    def tell_health(self, is_serving: bool) -> None:
        """Answer health so, as long as this worker serves: it tells of all of them."""
        if is_serving and self._answers.not_ready is None:
            self._health.serving()
        else:
            self._health.stopping()

    def stuck_mixtures(self) -> frozenset[str]:
        """The mixtures that get no records, because threads of this process hang inside their sources."""
        return frozenset(filter(self._work.is_stuck, self._services.mixtures))

    def tell_stuck(self, mixtures: Iterable[str]) -> None:
        """Answer health so that these mixtures get no records: of all workers, as the supervisor says."""
        self._stuck_elsewhere = frozenset(mixtures)

    def tell_fleet(self, fleet: FleetList) -> None:
        """Tell clients from now on that these are the replicas of this server, unless it knows a newer list."""
        self._fleet = max(self._fleet, fleet, key=lambda one: one.version)

    @property
    def is_alive(self) -> bool:
        """Whether this process does its chores, also while it drains: a restart would help if not."""
        return self._chores.is_alive

    def read_files_again(self) -> None:
        """Read the files of tokens and TLS now, rather than when they change; what cannot be used changes nothing.

        The log says what was read, or why it was refused.
        """
        if self._tokens is not None:
            self._tokens.read_again()
        if self._certificates is not None:
            self._certificates.read_again()

    def stop(self, grace_s: float = 30.0) -> bool:
        """Drain, then end: health turns NOT_SERVING, new calls get Unavailable, running ones have `grace_s` seconds.

        False if calls were still running after that: their threads go on. Does nothing in a forked process, since the
        server belongs to its parent.
        """
        if os.getpid() != self._pid:
            return True
        self._answers.not_ready = "is stopping; ask another replica, or wait for its successor"
        self._health.stopping()
        # We count calls ourselves. gRPC's grace would not end while a health watcher stays, and a call that has
        # returned may still have its last reply to send.
        finished = self._answers.calls.wait_for_none(grace_s)
        self._health.wait_for_told(min(grace_s, _EXIT_S))
        self._guard.close()
        if self._bulk is not None:
            self._bulk.close()
        send_s = min(grace_s, _SEND_S)
        if not self._server.stop(grace=send_s).wait(send_s + _END_S):
            _logger.warning("gRPC has calls that do not end: stopping without them")
        if self._health_port is not None:
            self._health_port.stop()
        if self._metrics_port is not None:
            self._metrics_port.close()
        if self._stats_socket is not None:
            self._stats_socket.close()
        GATE.remove_server(self)
        self._health.close()
        self._reflection.close()
        self._single.close()
        self._streams.close()
        self._sessions.close()
        self._work.close()
        self._chores.close()
        if self._state is not None:
            self._state.close()
        # After the calls: this releases the state folder, and another server may write to it from then on.
        self._services.close()
        if self._memory is not None:
            self._memory.close()
        self._stopped.set()
        return finished

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped. False if it has not after `timeout_s` seconds."""
        return self._stopped.wait(timeout_s)

    def end_calls(self) -> None:
        """End running calls within about 2 s: for a server that is not stopped when the interpreter exits."""
        if os.getpid() == self._pid and not self._stopped.is_set():
            self._answers.not_ready = "is stopping; ask another replica, or wait for its successor"
            self._answers.calls.wait_for_none(_EXIT_S)
            self._server.stop(grace=None).wait(_EXIT_S)

    def __enter__(self) -> "MixServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = self._answers.not_ready or "is serving"
        return f"MixServer({self.address!r}, mixtures={list(self._services.mixtures)}, {state.partition(':')[0]})"

    def _handlers(self) -> dict[str, MakeHandler]:
        routes = Routes(self._answers, self._guard, self._single, self._streams, self._sessions)
        return routes.handlers(self._services) | {
            REFLECTION_METHOD: self._reflection.handler,
            methods.GET_SERVER: self._server_handler,
        }

    def _server_handler(self, admission: Admission) -> grpc.RpcMethodHandler:
        return self._single.handler(methods.GET_SERVER, partial(self._describe_server, admission))

    def _describe_server(self, admission: Admission, request: bytes, context: grpc.ServicerContext) -> bytes:
        reply = self._answers.answer(methods.GET_SERVER, admission, request, context)
        described = replace(decode_server(reply), fleet=self._fleet)
        if self._bulk is not None and not decode_server_request(request).without_bulk:
            described = replace(described, bulk=self._bulk.offer(admission))
        return encode_server(described)

    def _answering_mixtures(self) -> dict[str, bool]:
        return {
            name: name not in self._stuck_elsewhere and not self._work.is_stuck(name)
            for name in self._services.mixtures
        }


def _refuse(context: grpc.ServicerContext, method: str, check: Callable[[], None]) -> None:
    with statuses(context, Call(method.rpartition("/")[2])):
        check()


_made: "weakref.WeakSet[MixServer]" = weakref.WeakSet()


@atexit.register
def _end_all_calls() -> None:
    # Exit handlers run in reverse order of registration: this one must run before those that join threads.
    for server in list(_made):
        server.end_calls()
