"""A server that is told to stop while it starts: at any time, and as soon as it can hear it."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes import DEADLINE_S, server_process, write_mixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process listens to is read from /proc")


def hears_sigterm(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert caught is not None
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_a_signal_ends_a_server_with_0_before_anything_is_loaded(tmp_path):
    with server_process(write_mixture(tmp_path), real=True) as server:
        deadline = time.monotonic() + DEADLINE_S
        while True:  # it is looked at while it stands still, however slow this process is
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
