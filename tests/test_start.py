"""A server that is told to stop while it starts: at any time, and from the first moment that it handles signals."""

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mixserve.cli.main import app
from mixserve.cli.serve import run
from tests.forked import Forked
from tests.processes import DEADLINE_S, server_process, write_mixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process listens to is read from /proc")


def hears_sigterm(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_signal_ends_a_server_with_0_before_anything_is_loaded(tmp_path):
    with server_process(write_mixture(tmp_path), real=True) as server:
        deadline = time.monotonic() + DEADLINE_S
        while True:  # it is sampled while it does not run, however slow this process is
            server.process.send_signal(signal.SIGSTOP)
            if hears_sigterm(server.process.pid):
                break
            server.process.send_signal(signal.SIGCONT)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        loaded = Path(f"/proc/{server.process.pid}/maps").read_text()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert server.process.wait(DEADLINE_S) == 0
    assert server.log() == ""
    for library in ("numpy", "grpc", "jaxlib", "pydantic"):
        assert library not in loaded


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.3])
def test_a_signal_at_any_time_ends_a_server_with_0(tmp_path, number, after_s):
    with server_process(write_mixture(tmp_path)) as server:
        server.wait_for_log("warming up")
        time.sleep(after_s)  # any moment will do
        server.process.send_signal(number)
        assert server.process.wait(DEADLINE_S) == 0
    assert "Traceback" not in server.log()


def serve_and_stop_while_it_begins_to_wait(config: str) -> None:
    """Send itself SIGTERM at the moment at which the main thread waits, or has a lock in order to wait."""

    def profile(frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        callers = [frame, frame.f_back, frame.f_back and frame.f_back.f_back]
        if any(caller and caller.f_code is run.__code__ for caller in callers) and (
            called.__name__ in ("select", "read", "get", "allocate_lock")
        ):
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGTERM)

    on_waiting(lambda: sys.setprofile(profile))
    app(["serve", config], prog_name="mixserve")


def serve_and_stop_beside_the_thread_that_waits(config: str) -> None:
    """Another thread gets the SIGTERM while the main thread waits, as if it had come just before."""
    status = Path(f"/proc/self/task/{os.getpid()}/status")

    def stop() -> None:
        switches = set[str]()
        while True:  # until the main thread has been waiting for a while
            before = switches
            switches = {line for line in status.read_text().splitlines() if "ctxt_switches" in line or "State" in line}
            if before == switches and any("sleeping" in line for line in switches):
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                return
            time.sleep(0.2)

    on_waiting(threading.Thread(target=stop, daemon=True).start)
    app(["serve", config], prog_name="mixserve")


def on_waiting(do: Callable[[], Any]) -> None:
    """Run `do` when the server logs its last line before it waits."""

    class Waits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "sessions are kept" in record.getMessage():
                do()

    logging.getLogger("mixserve").addHandler(Waits())


@pytest.mark.parametrize(
    "serve_and_stop", [serve_and_stop_while_it_begins_to_wait, serve_and_stop_beside_the_thread_that_waits]
)
def test_a_signal_at_the_moment_at_which_a_server_begins_to_wait(tmp_path, serve_and_stop):
    process = Forked(serve_and_stop, str(write_mixture(tmp_path, sampling="epoch")), log=tmp_path / "log")
    try:
        assert process.wait(30) == 0
        assert "stopped" in process.log()
    finally:
        process.kill()
