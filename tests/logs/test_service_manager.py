"""The unit of deploy/systemd under a stand-in for systemd, and what a server tells a service manager."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixserve.cli import supervisor
from mixserve.cli.notify import Notifier
from mixserve.cli.signals import Signals
from mixserve.cli.worker_link import Place
from mixserve_client import MixClient
from tests.logs.manager import DEADLINE_S, Manager
from tests.logs.servers import write_faulty
from tests.processes import write_mixture
from tests.waiting import wait_until

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "mixserve.service"
ONE_AND_TWO = [1, pytest.param(2, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs SO_REUSEPORT"))]


def settings() -> dict[str, list[str]]:
    """The values of each setting of the unit."""
    found = dict[str, list[str]]()
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def command_of_the_unit(config: Path, state: Path) -> list[str]:
    (line,) = settings()["ExecStart"]
    program, *arguments = shlex.split(line.replace("${STATE_DIRECTORY}", str(state)))
    assert program.endswith("/bin/mixserve")
    assert "/etc/mixserve/mixture.yaml" in arguments
    return [sys.executable, "-m", "mixserve", *(str(config) if "/etc/" in one else one for one in arguments)]


@contextmanager
def managed(command: list[str], folder: Path, watchdog_s: float = 0, *, abstract: bool = False) -> Iterator[Manager]:
    made = Manager(command, folder, watchdog_s=watchdog_s, abstract=abstract)
    try:
        yield made
    finally:
        made.close()


def serve_command(config: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "mixserve", "serve", str(config), *flags]


def test_the_unit_starts_reloads_lives_and_stops(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, "port: 0, log_level: info")
    with managed(command_of_the_unit(config, tmp_path / "state"), tmp_path, 0.5) as manager:
        first = manager.wait_for_name("STATUS")
        assert first["STATUS"] == "opening the sources"
        ready = manager.wait_for_name("READY")
        assert not any("WATCHDOG" in message for message in manager.messages)
        address = re.fullmatch(r"serving on (\S+)", ready["STATUS"])[1]
        with MixClient.connect(address) as client:  # at once: READY means that it serves
            client.get_batch_at(0, 1, 0)
            with client.session("run", fresh=True) as session:
                session.save_checkpoint("one")
        assert (tmp_path / "state" / "checkpoints").exists()
        config.write_text(config.read_text().replace("log_level: info", "log_level: debug"))
        assert manager.reload()["STATUS"] == "reading its files again"
        assert "again: log_level is debug" in manager.log()
        for _ in range(4):
            manager.wait_for_name("WATCHDOG")
        assert manager.stop() == 0
        assert manager.messages[-1]["STATUS"] == "finishing calls, for up to 30 s"


@pytest.mark.parametrize("processes", ONE_AND_TWO)
def test_it_is_ready_when_all_processes_serve_and_reloaded_when_all_have(tmp_path: Path, processes: int) -> None:
    config = write_mixture(tmp_path)
    with managed(serve_command(config, "--processes", str(processes)), tmp_path) as manager:
        ready = manager.wait_for_name("READY")
        assert len(re.findall(r"answers, and at|INFO serving on 127", manager.log())) == processes + (processes > 1)
        for _ in range(3):
            before = manager.log().count("again: log_level is info")
            manager.reload()
            assert manager.log().count("again: log_level is info") == before + 1
        if processes > 1:
            pid = manager.process.pid
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            os.kill(int(children[1]), signal.SIGKILL)
            manager.wait_for(lambda message: message.get("STATUS", "").startswith("1 of 2 workers serve on "))
            manager.wait_for(lambda message: message.get("STATUS", "").startswith("2 of 2 workers serve on "))
        config.write_text("nonsense")
        manager.reload()  # the manager must not wait for ever for a reload that was refused
        assert "nothing was reloaded" in manager.log()
        assert manager.messages[-1]["STATUS"] == ready["STATUS"]
        assert manager.stop() == 0


WORKER = """
import os, select, socket, sys
link = socket.socket(fileno=int(sys.argv[2]))  # which the supervisor adds
link.recv(1 << 16)
link.send(b"warm with the same mixtures")
link.recv(100)
link.send(b"serving")
while True:
    if select.select([link], [], [], 0.1)[0] and link.recv(1 << 16) in (b"drain", b""):
        break
    if not os.path.exists(sys.argv[1]):
        link.send(b"beat")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has workers")
def test_a_worker_that_stands_still_ends_the_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_SILENT_S", 0.5)
    monkeypatch.setattr(supervisor, "_RELOAD_S", 0.5)
    hangs, signals = tmp_path / "hangs", Signals()
    signals.is_serving = True
    with managed([sys.executable, "-c", ""], tmp_path) as manager, ThreadPoolExecutor(1) as thread:
        told = Notifier({"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"})
        place = Place(0, "127.0.0.1:1", ["127.0.0.1:2"], [":2"], "/nowhere")
        command = [sys.executable, "-c", WORKER, str(hangs)]
        running = supervisor.Supervisor(command, [place], lambda _: None, read_again=lambda: True, notifier=told)
        code = thread.submit(running.run, signals, 1.0)
        try:
            assert manager.wait_for_name("READY")["STATUS"] == "1 of 1 workers serve on 127.0.0.1:1"
            manager.wait_for_name("WATCHDOG")
            signals.tell_to_reload()  # which this worker does not answer
            manager.wait_for_name("RELOADING")
            manager.wait_for_name("READY")
            hangs.touch()
            wait_until(
                lambda: not manager.poll("WATCHDOG"), "a pause of the watchdog's messages"
            )  # it waits for half a second: several are missing
            hangs.unlink()
            manager.wait_for_name("WATCHDOG")
        finally:
            signals.tell()
        manager.wait_for_name("STOPPING")
        assert code.result(DEADLINE_S) == 0


@pytest.mark.parametrize("processes", ONE_AND_TWO)
def test_what_the_server_starts_does_not_know_the_manager(tmp_path: Path, processes: int) -> None:
    config = write_faulty(tmp_path)
    said = tmp_path / "environment"
    with (tmp_path / "faulty.py").open("a") as file:
        file.write(
            "\nimport os, subprocess, sys\n"
            f"out = open({str(said)!r}, 'a')\n"
            "subprocess.run([sys.executable, '-c', 'import os; print(*os.environ)'], stdout=out, check=True)\n"
        )
    with managed(serve_command(config, "--processes", str(processes)), tmp_path, 10) as manager:
        manager.wait_for_name("READY")
        names = said.read_text().split()
        assert "PATH" in names
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(names)
        if Path("/proc/self/environ").exists():
            children = Path(f"/proc/{manager.process.pid}/task/{manager.process.pid}/children").read_text().split()
            assert not any(b"NOTIFY_SOCKET" in Path(f"/proc/{child}/environ").read_bytes() for child in children)
        assert manager.stop() == 0


def test_a_server_without_a_manager_or_with_one_that_is_gone_serves_all_the_same(tmp_path: Path) -> None:
    for address in ("", "vsock:2:1", str(tmp_path / "nobody"), "@nobody-is-there", "relative/path"):
        variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "no number"}
        notifier = Notifier(variables)
        assert variables == {}
        notifier.watch(lambda: True)
        notifier.ready("serves")
        notifier.reloading("reads")
        notifier.stopping("ends")


def test_the_signs_of_life_of_another_process_are_not_ours(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "import os, time; from mixserve.cli.notify import Notifier; os.environ['WATCHDOG_PID'] = '1'; "
        "n = Notifier(); n.watch(lambda: True); time.sleep(1); n.status('two\\nlines'); n.stopping('ends')",
    ]
    with managed(command, tmp_path, 0.1, abstract=sys.platform == "linux") as manager:
        manager.wait_for_name("STOPPING")
        assert manager.messages == [{"STATUS": "two lines"}, {"STOPPING": "1", "STATUS": "ends"}]


def test_times_of_the_unit_allow_for_those_of_the_server() -> None:
    found = settings()
    grace_s = float(re.search(r"--grace-s (\d+)", found["ExecStart"][0])[1])
    assert float(found["TimeoutStopSec"][0]) >= grace_s + 2 + 20 + 30  # the last of them with several processes
    assert float(found["WatchdogSec"][0]) >= 2 * (10 + 10)  # the chores, and the beats of workers
    assert found["Type"] == ["notify-reload"]
    assert found["NotifyAccess"] == ["main"]
    assert found["RestartPreventExitStatus"] == ["2"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("kind", ["notify-reload", "notify"])
def test_systemd_understands_the_unit(tmp_path: Path, kind: str) -> None:
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if kind == "notify-reload" and int(re.search(r"systemd (\d+)", version)[1]) < 253:
        pytest.skip("this systemd is too old for Type=notify-reload")
    text = UNIT.read_text().replace("/opt/mixserve/bin/mixserve", sys.executable).replace("notify-reload", kind)
    if kind == "notify":
        text = text.replace("#ExecReload", "ExecReload")
    (tmp_path / "mixserve.service").write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "mixserve.service")], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
