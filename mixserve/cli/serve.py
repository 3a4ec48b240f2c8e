"""A configuration file -> a server that runs until it is told to stop."""

import logging
import math
import os
import select
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mixserve.address import joined
from mixserve.config import Config, ConfigError, checked_seconds, load_config

_logger = logging.getLogger("mixserve")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY_S = 1.0
_PROGRAMS_S = 20.0


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
) -> None:
    """Serve until SIGTERM or SIGINT; flags come before the file's own values. Raises ConfigError and OSError."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    _logger.setLevel(logging.INFO)
    # A handler runs in the main thread, between two of its steps. One that waits for a lock has no next step if the
    # signal came just before the wait, or to another thread: only a byte in a pipe is waited for without a race.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    is_serving = was_told = False

    def stop(*_: object) -> None:
        nonlocal was_told
        if not is_serving:
            os._exit(0)  # nothing has begun that could be finished
        if was_told:
            os._exit(1)
        was_told = True

    def hear_signals() -> None:
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, stop)

    hear_signals()
    _check_grace(grace_s)
    config = load_config(config_file)
    ttl_s = config.server.session_ttl_s if session_ttl_s is None else _ttl_s(session_ttl_s)
    if state_dir is None and config.server.state_dir is not None:
        state_dir = config_file.parent / config.server.state_dir
    state_dir = None if state_dir is None else state_dir.absolute()
    memory = _chosen(shared_memory, config.server.shared_memory, config_file)
    address = _address(config.server.host if host is None else host, config.server.port if port is None else port)
    with _compiling(config, _chosen(compilation_cache, config.server.compilation_cache, config_file)):
        from mixserve.build import build_nodes, starting
        from mixserve.serving import serve

        nodes = build_nodes(config, config_file, placement=placement)
        _logger.info("warming up: %s", ", ".join(f"{name} ({len(node)} records)" for name, node in nodes.items()))
        with starting(config_file):
            server = serve(nodes, address, shared_memory=memory, state_dir=state_dir, session_ttl_s=ttl_s)
    _logger.info(
        "sessions are kept in %s", "memory alone: they end with this process" if state_dir is None else state_dir
    )
    from mixserve.mixture import programs

    is_serving = True
    hear_signals()  # again: a source's code may have set them for itself, as asyncio does
    while not was_told:
        # Should code of the user's undo that later, a signal is heard within a second all the same.
        if select.select([woken], [], [], _LOOK_EVERY_S)[0]:
            os.read(woken, 1)
    _logger.info("draining: running calls have %.0f s; a second signal ends them", grace_s)
    finished = server.stop(grace_s)
    _logger.info("stopped")
    if not finished:
        _logger.warning("calls were still running after %.0f s; they are dropped", grace_s)
    programs.finish(_PROGRAMS_S)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)  # the interpreter would wait for threads of calls, and of the user's own code


@contextmanager
def _compiling(config: Config, cache: bool | str) -> Generator[None, None, None]:
    """Begin to load or compile what these mixtures need most likely, while all else is loaded; what their sources turn
    out to need besides comes later."""
    from mixserve.mixture import programs
    from mixserve.mixture.compilation_cache import choose_folder
    from mixserve.mixture.draw import Parts

    choose_folder(cache if isinstance(cache, bool) else Path(cache))
    sizes, parts = programs.first_sizes(programs.PLAN_SIZES), Parts(long=False, fetch=False)
    for mixture in config.mixtures.values():
        if mixture.sampling == "categorical":
            count = len(mixture.sources)
            programs.begin({*programs.draws(count, parts, sizes), programs.probe_scores(count)})
    try:
        yield
    except BaseException:
        # The command ends with an error: no signal turns it into a success, and it waits for no more programs.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        programs.drop_unstarted()
        raise


def _chosen(flag: bool | str | None, configured: bool | str, config_file: Path) -> bool | str:
    """The flag, else the file's own value, whose folders are relative to the file."""
    if flag is not None:
        return flag
    return str(config_file.parent / configured) if isinstance(configured, str) else configured


def _address(host: str, port: int) -> str:
    """Raises ConfigError: the file's host is checked already."""
    try:
        return joined(host, port)
    except ValueError as error:
        raise ConfigError(f"--host: {error}") from error


def _check_grace(flag: float) -> None:
    """Raises ConfigError."""
    if not 0 <= flag < math.inf:
        raise ConfigError(f"--grace-s must be a finite number of seconds, zero or more, got {flag}")


def _ttl_s(flag: float) -> float:
    """Raises ConfigError."""
    try:
        return checked_seconds(flag)
    except ValueError as error:
        raise ConfigError(f"--session-ttl-s {error}") from error
