"""`mixserve serve`: a configuration file -> a server that runs until a signal."""

import faulthandler
import gc
import logging
import math
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from mixserve.address import join_address
from mixserve.cli.logs import Log
from mixserve.cli.notify import Notifier
from mixserve.cli.processes import count_processes, supervise
from mixserve.cli.reload import Reloader
from mixserve.cli.signals import Signals, hear_no_signals
from mixserve.cli.worker_link import WorkerLink
from mixserve.config import ConfigError, LogFormat, LogLevel, check_seconds, load_config
from mixserve.listening import holding
from mixserve.reach import beside, reachable
from mixserve.server_files import choose_folder, compiling, token_file
from mixserve.trace_export import export_spans
from mixserve_client.schema.text import show
from mixserve_client.schema.zone import MOST_CHARACTERS, is_zone

T = TypeVar("T")

_logger = logging.getLogger("mixserve")

_LEAST_SPANS_S = 1.0  # for the last spans, if no time is left of grace_s
_PROGRAMS_S = 20.0  # for programs that still compile at the end, and are then in the cache


def run(
    config_file: Path,
    *,
    host: str | None,
    port: int | None,
    placement: str | None,
    shared_memory: bool | str | None,
    state_dir: Path | None,
    session_ttl_s: float | None,
    compilation_cache: bool | str | None,
    grace_s: float,
    insecure: bool = False,
    health_port: int | None = None,
    metrics_port: int | None = None,
    processes: str | None = None,
    worker: int | None = None,
    bulk: bool | None = None,
    bulk_port: int | None = None,
    zone: str | None = None,
    log_format: str | None = None,
    log_level: str | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Flags override the file. Raises ConfigError and OSError.

    With several `processes`, this one starts the others and serves nothing itself; `worker` is the descriptor of the
    link that it has to each of them.
    """
    notifier = Notifier()  # first: what is started from here on must not have its variables
    notifier.status("opening the sources")
    signals = Signals()
    link = None if worker is None else WorkerLink(worker, signals.tell, signals.tell_to_reload)
    log = Log(None if link is None else link.place.number)
    # A mapped file that is cut ends the process with SIGBUS: then the log has the stacks of all threads.
    with suppress(OSError, ValueError, RuntimeError):  # a standard error without a descriptor, or none
        faulthandler.enable()
    signals.hear()
    _check_grace(grace_s)
    config = load_config(config_file)
    form: LogFormat = _one_of("--log-format", log_format, LogFormat, config.server.log_format)
    level: LogLevel = _one_of("--log-level", log_level, LogLevel, config.server.log_level)
    log.use(form, level)
    reloader = Reloader(config_file, config, log, has_level=log_level is not None, says_so=link is None)
    ttl_s = config.server.session_ttl_s if session_ttl_s is None else _ttl_s(session_ttl_s)
    if state_dir is None and config.server.state_dir is not None:
        state_dir = beside("state_dir", config.server.state_dir, config_file)
    state_dir = None if state_dir is None else state_dir.absolute()
    memory = choose_folder("shared_memory", shared_memory, config.server.shared_memory, config_file)
    address = _address(config.server.host if host is None else host, config.server.port if port is None else port)
    cache = choose_folder("compilation_cache", compilation_cache, config.server.compilation_cache, config_file)
    tokens = token_file(config, config_file)
    reach = reachable(
        config.server,
        config_file,
        insecure=insecure,
        health_port=health_port,
        metrics_port=metrics_port,
        bulk=bulk,
        bulk_port=bulk_port,
    )
    count = count_processes(config.server.processes if processes is None else processes)
    if link is None and count > 1:
        reach.check(address, has_tokens=tokens is not None)
        own_port, names = config.server.worker_port, tuple(config.mixtures)
        code = supervise(address, count, own_port, reach, signals, grace_s, names, reloader.read, notifier)
        logging.shutdown()
        os._exit(code)
    flush_spans = export_spans()
    place = None if link is None else link.place
    # Opening may take minutes: that a port is taken, or that others can reach it, should be said before.
    ports = reach.addresses(address) if place is None else ()
    with holding(*ports) as held, _heard_unless_it_fails(), compiling(config, cache):
        reach.check(address, has_tokens=tokens is not None)
        from mixserve.build import build_nodes
        from mixserve.located import starting
        from mixserve.serving import serve
        from mixserve.serving.worker import Worker

        nodes = build_nodes(config, config_file, placement=placement)
        _logger.info("warming up: %s", ", ".join(f"{name} ({len(node)} records)" for name, node in nodes.items()))
        held.close()
        as_worker = None
        if link is not None and place is not None:
            own = place.own[place.number]
            state_address = f"unix://{place.state_socket}"
            as_worker = Worker(
                place.number, own, tuple(place.told), state_address, place.stats_sockets, link.wait_to_serve
            )
        with starting(config_file):
            server = serve(
                nodes,
                address if place is None else place.address,
                shared_memory=memory,
                state_dir=state_dir if as_worker is None or as_worker.keeps_state else None,
                session_ttl_s=ttl_s,
                tokens=tokens,
                tls=reach.tls,
                insecure=reach.insecure,
                health_port=reach.health_port if as_worker is None else None,
                health_host=reach.health_host,
                metrics_port=reach.metrics_port if as_worker is None else None,
                metrics_host=reach.metrics_host,
                worker=as_worker,
                bulk=reach.bulk,
                bulk_port=reach.bulk_port,
                limits=config.server.limits,
                zone=config.server.zone if zone is None else _zone(zone),
            )
    if as_worker is None or as_worker.keeps_state:
        _logger.info(
            "sessions are kept in %s", "memory alone: they end with this process" if state_dir is None else state_dir
        )
    from mixserve.mixture import programs

    signals.is_serving = True
    signals.hear()
    status = f"serving on {server.address}"
    if link is not None:
        link.serving(server.tell_health, server.tell_stuck, server.stuck_mixtures, lambda: server.is_alive)
    notifier.ready(status)
    notifier.watch(lambda: server.is_alive)
    # What is there now stays. To look at it, for JAX alone 0.1 to 0.25 s, would hold up all calls at each collection.
    gc.collect()
    gc.freeze()

    def reload() -> None:
        notifier.reloading("reading its files again")
        if reloader.read():
            server.read_files_again()
        if link is not None:
            link.reloaded()
        notifier.ready(status)

    signals.wait(reload)
    notifier.stopping(f"finishing calls, for up to {grace_s:g} s")
    if link is not None:
        link.draining()
    _logger.info("draining: running calls have %.0f s to finish; a second signal ends them", grace_s)
    until = time.monotonic() + grace_s
    finished = server.stop(grace_s)
    flush_spans(max(_LEAST_SPANS_S, until - time.monotonic()))
    _logger.info("stopped")
    if not finished:
        _logger.warning("dropped calls that were still running after %.0f s", grace_s)
    programs.finish(_PROGRAMS_S)
    # By hand, because os._exit flushes nothing. A normal exit would wait for threads of calls and of users' code.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


@contextmanager
def _heard_unless_it_fails() -> Generator[None]:
    """The command ends with an error of the code inside. Our handler would turn that into exit code 0 at a signal."""
    try:
        yield
    except BaseException:
        hear_no_signals()
        raise


def _one_of(flag: str, given: str | None, kind: Any, configured: T) -> T:
    """What the flag says, which must be a value of the Literal `kind`, else what the file says. Raises ConfigError."""
    allowed = get_args(kind)
    if given is None:
        return configured
    if given not in allowed:
        raise ConfigError(f"{flag} must be one of {', '.join(allowed)}, got {show(given)}")
    return cast(T, given)


def _address(host: str, port: int) -> str:
    """Raises ConfigError."""
    try:
        return join_address(host, port)
    except ValueError as error:  # of the flag: the file's host was checked with the file
        raise ConfigError(f"--host: {error}") from error


def _check_grace(flag: float) -> None:
    """Raises ConfigError."""
    if not 0 <= flag < math.inf:
        raise ConfigError(f"--grace-s must be a finite number of seconds, 0 or more, got {flag}")


def _zone(flag: str) -> str:
    """Raises ConfigError."""
    if not is_zone(flag):
        raise ConfigError(f"--zone must be 1 to {MOST_CHARACTERS} printable characters, got {flag!r:.100}")
    return flag


def _ttl_s(flag: float) -> float:
    """Raises ConfigError."""
    try:
        return check_seconds(flag)
    except ValueError as error:
        raise ConfigError(f"--session-ttl-s {error}") from error
