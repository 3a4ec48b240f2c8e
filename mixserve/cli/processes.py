"""From a number of processes to a supervisor of as many workers, with their addresses, sockets, health and metrics."""

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from mixserve.cli.notify import Notifier
from mixserve.cli.signals import Signals
from mixserve.cli.supervisor import Supervisor
from mixserve.cli.worker_link import Place, stats_sockets
from mixserve.config import MOST_PROCESSES, ConfigError
from mixserve.listening import holding, sharing
from mixserve.reach import Reach
from mixserve_client.schema.stats import Metric
from mixserve_client.schema.text import show

_logger = logging.getLogger("mixserve")

_LONGEST_SOCKET_PATH = 90  # of a folder for sockets, whose paths may have 107 bytes


def count_processes(wanted: str | int) -> int:
    """The number of processes that a flag or a file asks for. Raises ConfigError."""
    if wanted == "auto":
        return min(MOST_PROCESSES, max(1, len(os.sched_getaffinity(0)) // 2)) if sys.platform == "linux" else 1
    try:
        count = int(wanted)
    except ValueError:
        count = 0
    if not 1 <= count <= MOST_PROCESSES:
        raise ConfigError(f"--processes must be in 1..{MOST_PROCESSES}, or auto, got {show(wanted)}")
    if count > 1 and sys.platform != "linux":
        raise ConfigError(
            f"--processes {count} needs Linux, whose SO_REUSEPORT spreads connections over processes; here one process "
            "serves a port. Start several servers at ports of their own, and pass all addresses to MixClient.connect"
        )
    return count


def supervise(
    address: str,
    count: int,
    worker_port: int | None,
    reach: Reach,
    signals: Signals,
    grace_s: float,
    mixtures: Sequence[str],
    read_again: Callable[[], bool],
    notifier: Notifier,
) -> int:
    """Serve `mixtures` at `address` with `count` workers until a signal; each runs this process's own command. Returns
    the exit code.

    `read_again` reads the configuration at a reload, and says whether workers should do so, too.

    Their own ports follow `worker_port`; None: the kernel chooses them. Raises OSError if a port is taken.
    """
    host, _, _ = address.rpartition(":")
    _, *others = reach.addresses(address, processes=count, worker_port=worker_port)
    with ExitStack() as held, _socket_folder() as folder:
        signals.is_serving = True  # from now on there is something to end
        # Until others have theirs: the kernel must not choose one of these for them.
        fixed = held.enter_context(holding(*others))
        address = held.enter_context(sharing(address))
        # Held like the shared one, so that a worker's successor has the address that clients know.
        own = [
            held.enter_context(sharing(f"{host}:{worker_port + number if worker_port else 0}"))
            for number in range(count)
        ]
        fixed.close()
        tell_health, tell_stuck = held.enter_context(_health(reach, mixtures))
        told = [f":{one.rpartition(':')[2]}" for one in own]
        places = [Place(number, address, own, told, str(folder / "state.sock")) for number in range(count)]
        # Of this process's own arguments, so that workers have the same options, of Python too.
        command = [sys.executable, *sys.orig_argv[1:], "--worker"]
        supervisor = Supervisor(command, places, tell_health, tell_stuck, read_again, notifier)
        held.enter_context(_metrics(reach, stats_sockets(folder, count), supervisor.stats))
        return supervisor.run(signals, grace_s)


@contextmanager
def _metrics(reach: Reach, sockets: Sequence[str], own: Callable[[], Iterable[Metric]]) -> Generator[None]:
    """Answers with the metrics of all workers, and this process's `own`, at the port for that, in this process."""
    if reach.metrics_address is None:
        yield
        return
    from mixserve.serving.metrics_port import MetricsPort
    from mixserve.serving.stats_socket import of_workers

    port = MetricsPort(lambda: chain(own(), of_workers(sockets)), reach.metrics_address)
    port.start()
    _logger.info("metrics on http://%s/metrics", port.address)
    try:
        yield
    finally:
        port.close()


@contextmanager
def _health(
    reach: Reach, mixtures: Sequence[str]
) -> Generator[tuple[Callable[[bool], None], Callable[[frozenset[str]], None]]]:
    """Answers health alone at its port, in this process, which has nothing else to do; the block tells it whether all
    workers serve, and which mixtures get no records."""
    if reach.health_address is None:
        yield (lambda _: None), (lambda _: None)
        return
    from mixserve.serving.health import Health
    from mixserve.serving.health_port import HealthPort

    stuck = frozenset[str]()

    def tell_stuck(names: frozenset[str]) -> None:
        nonlocal stuck
        stuck = names

    health = Health(lambda: {name: name not in stuck for name in mixtures})
    port = HealthPort(health, reach.health_address)
    port.start()
    _logger.info("health on %s", port.address)
    try:
        yield (lambda serves: health.serving() if serves else health.stopping()), tell_stuck
    finally:
        port.stop()
        health.close()


@contextmanager
def _socket_folder() -> Generator[Path]:
    """A folder that only this user can open, for sockets."""
    with TemporaryDirectory(prefix="mixserve-", ignore_cleanup_errors=True) as name, ExitStack() as other:
        if len(os.fsencode(name)) > _LONGEST_SOCKET_PATH:
            name = other.enter_context(TemporaryDirectory(prefix="mixserve-", dir="/tmp", ignore_cleanup_errors=True))
        yield Path(name)
