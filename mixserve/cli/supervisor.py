"""Starts the workers of `mixserve serve --processes`, starts them again when they end, and drains all at the end."""

import logging
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mixserve.cli.notify import Notifier
from mixserve.cli.signals import Signals
from mixserve.cli.worker_link import (
    ALL_SERVE,
    BEAT,
    DRAIN,
    DRAINING,
    END,
    GO,
    PACKET_BYTES,
    RELOAD,
    RELOADED,
    SERVING,
    SOME_SERVE,
    STUCK,
    WARM,
    Place,
    decode_stuck,
    encode_stuck,
)
from mixserve_client.schema.stats import Metric, counter, gauge

_logger = logging.getLogger("mixserve")

_LOOK_EVERY_S = 0.5
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_STEADY_S = 10.0  # a worker that has served for so long did not fail at its start
_LATE_S = 30.0  # that workers may need beyond grace_s, such as for programs that still compile
_SILENT_S = 10.0  # without a beat; then a worker hangs
_RELOAD_S = 10.0  # for which workers are waited for
_FAILED = 1


@dataclass
class _Worker:
    """The worker of one number: its process, if there is one, and how those before it ended."""

    place: Place
    process: "subprocess.Popen[bytes] | None" = None
    link: socket.socket | None = None
    serving_since: float | None = None
    beat_at: float = 0.0
    stuck: frozenset[str] = frozenset()  # its mixtures that get no records
    failures: int = 0  # in a row, of processes that did not serve for long
    start_at: float = field(default_factory=time.monotonic)
    starts: int = 0


class Supervisor:
    """Keeps one process for each of `places`; `command` starts one if the descriptor of its link is added.

    The first worker starts alone: what it prepares and compiles the others find, and what is wrong is said once.
    """

    def __init__(
        self,
        command: Sequence[str],
        places: Sequence[Place],
        tell_health: Callable[[bool], None],
        tell_stuck: Callable[[frozenset[str]], None] = lambda _: None,
        read_again: Callable[[], bool] = lambda: False,
        notifier: Notifier | None = None,
    ):
        """`tell_health` gets whether all workers serve, and `tell_stuck` the mixtures that get no records in one.

        `read_again` is called for a reload, and says whether workers should reload, too.
        """
        self._command = tuple(command)
        self._tell_stuck = tell_stuck
        self._stuck = frozenset[str]()
        self._workers = [_Worker(place) for place in places]
        self._tell_health = tell_health
        self._selector = selectors.DefaultSelector()
        self._digest: bytes | None = None  # of the mixtures that all must serve; known when the first worker is warm
        self._first_code = 0  # of a first worker that ended before it was warm
        self._all_serve = self._have_served = False
        self._read_again = read_again
        self._notifier = notifier or Notifier({})
        self._reloading: dict[int, float] | None = None  # by the numbers of workers, until when they are waited for
        self._turn_at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        """Whether this process and all workers that serve do their chores: a restart would help if not."""
        since = time.monotonic() - _SILENT_S
        beats = [worker.beat_at for worker in self._workers if worker.serving_since is not None]
        return min(beats, default=since) >= since and self._turn_at >= since

    def stats(self) -> Iterator[Metric]:
        """The metrics of this process; thread-safe."""
        serving = sum(worker.serving_since is not None for worker in self._workers)
        yield gauge(
            "mixserve_workers",
            "Processes of this server, those that serve and those that start, end or wait for their start.",
            {("serving",): serving, ("missing",): len(self._workers) - serving},
            ("state",),
        )
        yield counter(
            "mixserve_worker_restarts_total",
            "How often a process was started in place of one that had ended.",
            {(str(worker.place.number),): max(0, worker.starts - 1) for worker in self._workers},
            ("worker",),
        )

    def run(self, signals: Signals, grace_s: float) -> int:
        """Serve until a signal, then drain. Returns the exit code: the first worker's, if it cannot start."""
        self._selector.register(signals.woken, selectors.EVENT_READ)
        self._notifier.watch(lambda: self.is_alive)
        try:
            while not signals.was_told:
                code = self._turn(signals)
                if code is not None:
                    return code
            self._drain(signals, grace_s)
            return 0
        finally:
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.kill()
                    worker.process.wait()
            self._selector.close()

    def _turn(self, signals: Signals) -> int | None:
        """Start what is due, and wait for news. The exit code if the first worker ended before it was warm."""
        self._turn_at = time.monotonic()
        if self._have_served and signals.take_reload():
            self._reload()
        self._note_reloaded()
        for worker in self._workers if self._digest is not None else self._workers[:1]:
            if worker.process is None and worker.start_at <= time.monotonic():
                self._start(worker)
        self._wait(signals, _LOOK_EVERY_S)
        if self._digest is None and self._workers[0].process is None:
            return self._first_code
        return None

    def _wait(self, signals: Signals, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj == signals.woken:
                signals.drain()
            else:
                self._hear(key.data)
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is not None:
                self._note_end(worker, worker.process.returncode)

    def _start(self, worker: _Worker) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Not forked: a new process has no threads of gRPC or JAX that were lost on the way. In a group of its own,
            # so that Ctrl-C at a terminal reaches this process alone, which lets all finish their calls.
            worker.process = subprocess.Popen(
                [*self._command, str(theirs.fileno())], pass_fds=[theirs.fileno()], process_group=0
            )
        worker.link, worker.serving_since = ours, None
        worker.starts += 1
        with suppress(OSError):  # it has ended already, which `_wait` notices
            ours.send(worker.place.encode())
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> None:
        assert worker.link is not None
        try:
            word = worker.link.recv(PACKET_BYTES)
        except OSError:
            word = b""
        if word.startswith(WARM):
            self._compare(worker, word.removeprefix(WARM))
        elif word == SERVING:
            worker.serving_since = worker.beat_at = time.monotonic()
            self._note_change()
            self._send(worker, encode_stuck(self._stuck))
        elif word == BEAT:
            worker.beat_at = time.monotonic()
        elif word == RELOADED:
            if self._reloading is not None:
                self._reloading.pop(worker.place.number, None)
        elif word.startswith(STUCK):
            worker.stuck = decode_stuck(word)
            self._note_stuck()
        elif word == DRAINING:
            worker.serving_since = None
            self._note_change()
        elif not word:  # its process ends, or has ended
            self._unlink(worker)

    def _compare(self, worker: _Worker, digest: bytes) -> None:
        """Let the worker serve if its mixtures are those of the first."""
        if self._digest is None:
            self._digest = digest
        if digest == self._digest:
            self._send(worker, GO)
            return
        _logger.error(
            "worker %d would serve other mixtures than the server did when it started: the configuration or the data "
            "have changed. Put them back, or restart the server to serve them as they are now",
            worker.place.number,
        )
        self._send(worker, END)

    def _note_end(self, worker: _Worker, code: int) -> None:
        assert worker.process is not None
        self._unlink(worker)
        now = time.monotonic()
        steady = worker.serving_since is not None and now - worker.serving_since >= _STEADY_S
        worker.failures = 0 if steady else worker.failures + 1
        delay_s = min(_FIRST_DELAY_S * 2 ** min(worker.failures - 2, 10), _LONGEST_DELAY_S)
        worker.start_at = now + (delay_s if worker.failures > 1 else 0.0)
        if self._digest is not None:
            _logger.warning(
                "worker %d (process %d) %s; another one starts in %.1f s",
                worker.place.number,
                worker.process.pid,
                _describe_end(code),
                worker.start_at - now,
            )
        elif code < 0:
            _logger.error("the first worker %s while it started", _describe_end(code))
        self._first_code = code if code >= 0 else _FAILED
        worker.process, worker.serving_since, worker.stuck = None, None, frozenset()
        self._note_change()
        self._note_stuck()

    def _note_change(self) -> None:
        """Tell health, and all workers, whether all serve."""
        all_serve = all(worker.serving_since is not None for worker in self._workers)
        if all_serve and not self._have_served:
            _logger.info("serving on %s", self._workers[0].place.address)
        elif all_serve and not self._all_serve:
            _logger.info("all %d workers serve again", len(self._workers))
        if all_serve and not self._have_served:
            self._notifier.ready(self._status())
        else:
            self._notifier.status(self._status())
        if all_serve or self._all_serve:
            self._tell_health(all_serve)
            for worker in self._workers:
                self._send(worker, ALL_SERVE if all_serve else SOME_SERVE)
        self._all_serve, self._have_served = all_serve, self._have_served or all_serve

    def _note_stuck(self) -> None:
        """Tell health, and all workers, which mixtures get no records in any of them."""
        stuck = frozenset[str]().union(*(worker.stuck for worker in self._workers))
        if stuck != self._stuck:
            self._stuck = stuck
            self._tell_stuck(stuck)
            for worker in self._workers:
                self._send(worker, encode_stuck(stuck))

    def _status(self) -> str:
        serving = sum(worker.serving_since is not None for worker in self._workers)
        return f"{serving} of {len(self._workers)} workers serve on {self._workers[0].place.address}"

    def _reload(self) -> None:
        """Read the configuration again, and let the workers that serve do so; others have just read it, or will."""
        self._notifier.reloading("reading its files again")
        self._reloading = {}
        if self._read_again():
            until = time.monotonic() + _RELOAD_S
            for worker in self._workers:
                if worker.serving_since is not None:
                    self._reloading[worker.place.number] = until
                    self._send(worker, RELOAD)

    def _note_reloaded(self) -> None:
        """Tell the service manager when all workers have read their files again."""
        if self._reloading is None:
            return
        serving = {worker.place.number for worker in self._workers if worker.serving_since is not None}
        if any(number in serving and until > time.monotonic() for number, until in self._reloading.items()):
            return
        self._reloading = None
        self._notifier.ready(self._status())

    def _drain(self, signals: Signals, grace_s: float) -> None:
        self._notifier.stopping(f"finishing calls, for up to {grace_s:g} s")
        _logger.info("draining: running calls have %.0f s to finish; a second signal ends them", grace_s)
        self._tell_health(False)
        for worker in self._workers:
            self._send(worker, DRAIN)
        running = [worker for worker in self._workers if worker.process is not None]
        until = time.monotonic() + grace_s + _LATE_S
        while any(worker.process is not None and worker.process.poll() is None for worker in running):
            if time.monotonic() > until:  # it is stopped, or waits for a disk that hangs; `run` ends it
                _logger.warning("workers did not end within %.0f s: ending them", grace_s + _LATE_S)
                break
            for key, _ in self._selector.select(_LOOK_EVERY_S / 10):
                if key.fileobj == signals.woken:
                    signals.drain()
                else:
                    self._hear_at_end(key.data)
        for worker in running:
            assert worker.process is not None
            if worker.process.returncode:
                _logger.warning("worker %d %s", worker.place.number, _describe_end(worker.process.returncode))
            self._unlink(worker)  # its end may not have been heard
        _logger.info("stopped")

    def _hear_at_end(self, worker: _Worker) -> None:
        assert worker.link is not None
        with suppress(BlockingIOError):
            word = b""
            with suppress(ConnectionError):
                word = worker.link.recv(PACKET_BYTES)
            if not word:
                self._unlink(worker)

    def _send(self, worker: _Worker, word: bytes) -> None:
        if worker.link is not None:
            with suppress(OSError):  # it has ended, which `_wait` notices
                worker.link.send(word)

    def _unlink(self, worker: _Worker) -> None:
        if worker.link is not None:
            self._selector.unregister(worker.link)
            worker.link.close()
            worker.link = None


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"
