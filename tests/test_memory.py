"""The server's memory stays below its limit, and goes back when it is free."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.attacks.raw import GET_BATCH_AT, RawConnection, batch_request
from benchmarks.common.usage import memory_bytes
from mixserve.limits import ServerLimits
from mixserve.serving import memory
from mixserve.serving.allocator import free_bytes
from mixserve.serving.memory import MIB, MemoryWatch, allowed_bytes, default_reply_bytes, own_bytes
from mixserve.serving.unread import UnreadReplies
from tests.processes import DEADLINE_S
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell how much memory there is")

ROWS = 1024  # of the attacked mixture: 16 MiB
SERVER = """
import logging, sys
from benchmarks.attacks.server import serve
from mixserve.limits import ServerLimits
from mixserve.serving.memory import own_bytes
logging.basicConfig(level=logging.WARNING)
with serve(limits=ServerLimits(memory_limit=int(sys.argv[1]) << 20, reply_bytes=1 << 30)) as address:
    print(own_bytes(), address, flush=True)
    sys.stdin.read()
"""


def own(pid: int) -> int:
    return (memory_bytes(pid, "RssAnon") or 0) + (memory_bytes(pid, "RssShmem") or 0)


def start(limit_mib: int) -> tuple[subprocess.Popen[str], int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(limit_mib)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    at_start, address = process.stdout.readline().split()
    return process, int(at_start), address


def attack(address: str) -> list[RawConnection]:
    """16 connections that ask for 15 GiB, and take nothing."""
    connections = [RawConnection(address) for _ in range(16)]
    for connection in connections:
        for number in range(60):
            connection.call(GET_BATCH_AT, batch_request(number, ROWS))
    return connections


def test_the_server_stays_below_its_limit_and_gives_memory_back() -> None:
    probe, at_start, _ = start(1 << 20)
    probe.communicate(timeout=DEADLINE_S)
    limit = at_start // MIB + 400
    process, at_start, address = start(limit)
    try:
        peak, until, connections = 0, time.monotonic() + 8, attack(address)
        while time.monotonic() < until:
            peak = max(peak, own(process.pid))
            if not any(connection.calls_under_way() for connection in connections):
                for connection in connections:
                    connection.close()
                connections = attack(address)
            time.sleep(0.01)
        for connection in connections:
            connection.close()
        assert at_start + 100 * MIB < peak < limit * MIB
        wait_until(
            lambda: own(process.pid) < at_start + 64 * MIB, "that its memory shrinks", 40
        )  # in a quiet moment, which comes after 5 s
    finally:
        _, said = process.communicate(timeout=DEADLINE_S)
    assert "gets Overloaded" in said
    assert "Traceback" not in said


def make_watch(limit: int | None, figures: list[int]) -> tuple[UnreadReplies, MemoryWatch]:
    unread = UnreadReplies(512 * MIB)
    return unread, MemoryWatch(limit, unread, own=lambda: figures[0])


def test_the_closer_the_limit_the_fewer_replies(caplog: pytest.LogCaptureFixture) -> None:
    figures = [400 * MIB]
    unread, watch = make_watch(1000 * MIB, figures)
    assert unread.most_bytes == 150 * MIB
    figures[0] = 960 * MIB
    watch.look()
    assert unread.most_bytes == 10 * MIB
    assert "memory_limit is 1000 MiB: it accepts 10 MiB of replies" in caplog.text
    figures[0] = 1100 * MIB
    watch.look()
    assert unread.most_bytes == 0
    figures[0] = 100 * MIB
    watch.look()
    assert unread.most_bytes == 225 * MIB
    unread, watch = make_watch(None, figures)
    watch.look()
    assert unread.most_bytes == 512 * MIB


def test_what_is_kept_for_reuse_goes_in_a_quiet_moment() -> None:
    now, shrunk, unread = [0.0], list[float](), UnreadReplies(512 * MIB)
    watch = MemoryWatch(None, unread, [lambda: shrunk.append(now[0])], clock=lambda: now[0])
    for second in range(60):
        now[0] = float(second)
        if second < 20 or second == 45:
            account = unread.open("one", lambda: None)
            account.reserve(100 * MIB)
            account.close()
        watch.look()
    assert shrunk == [24.0, 50.0]  # not while it is busy, and not when nothing has happened since


def test_figures_are_of_this_process() -> None:
    before = own_bytes()
    taken = bytearray(64 * MIB)
    after = own_bytes()
    assert before is not None
    assert after is not None
    assert after - before >= 60 * MIB
    del taken
    assert free_bytes() >= 0


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/pod/one\n", {"pod/one/memory.max": "max", "pod/memory.max": str(1000 * MIB)}, 900 * MIB),
        ("0::/pod/one\n", {"pod/one/memory.max": str(100 * MIB), "pod/memory.max": str(1000 * MIB)}, 90 * MIB),
        ("0::/not/seen/here\n", {"memory.max": str(1000 * MIB)}, 900 * MIB),
        ("4:cpu,memory:/pod\n0::/\n", {"memory/pod/memory.limit_in_bytes": str(1000 * MIB)}, 900 * MIB),
        ("4:memory:/a/b\n", {"memory/memory.limit_in_bytes": str(1000 * MIB)}, 900 * MIB),
    ],
)
def test_the_limit_of_the_control_groups_is_found(
    cgroup: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup").write_text(cgroup)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
    assert allowed_bytes() == expected
    assert allowed_bytes(4) == expected // 4


def test_without_control_groups_the_machine_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    found = allowed_bytes()
    assert found is not None
    assert found > 100 * MIB


def test_the_default_of_replies_follows_the_limit() -> None:
    assert default_reply_bytes(None) == default_reply_bytes(64 << 30) == 512 * MIB
    assert default_reply_bytes(1 << 30) == 128 * MIB


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reply_bytes": 0}, "reply_bytes must be a positive integer, got 0"),
        ({"memory_limit": 1.5}, "memory_limit must be a positive integer, got 1.5"),
        ({"streams_per_connection": None}, "streams_per_connection must be a positive integer, got None"),
        ({"request_timeout_s": 0}, "request_timeout_s must be a number of seconds above 0, got 0"),
        ({"request_timeout_s": float("inf")}, "request_timeout_s must be a number of seconds above 0, got inf"),
        ({"max_connection_age_s": True}, "max_connection_age_s must be a number of seconds above 0, got True"),
    ],
)
def test_wrong_limits_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServerLimits(**given)  # pyright: ignore[reportArgumentType]
