"""The job of deploy/slurm, with processes of this machine as its nodes: trainers find servers, and outlive them."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.processes import DEADLINE_S, write_mixture

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "deploy" / "slurm"
# More than the 20 s that calls have, and what a shell's sleep may add.
DRAINED_S = 30
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="the nodes are 127.0.0.2 and so on, in bash"
)

# Reads until the file `enough` is there, or SIGTERM comes, and notes what it read.
TRAINER = """
import hashlib, json, os, pathlib, signal, sys
from mixserve_client import MixClient

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("SIGTERM"))
folder, number = pathlib.Path(sys.argv[1]), os.environ["SLURM_PROCID"]
addresses = os.environ["MIXSERVE_ADDRESS"].split(",")
client = MixClient.connect(addresses, tls=os.environ.get("CA"), token_file=os.environ.get("TOKEN_FILE"), patience_s=80)
batches, digest, count = client.batches(16, key=int(number)), hashlib.sha256(), 0
while not told and not (folder / "enough").exists():
    digest.update(next(batches)["tokens"].tobytes())
    count += 1
    (folder / f"progress-{number}").write_text(str(count))
report = {"addresses": addresses, "transport": client.transport, "count": count, "digest": digest.hexdigest()}
report["told"] = bool(told)
report["node"] = os.environ["SLURMD_NODENAME"]
(folder / f"report-{number}").write_text(json.dumps(report))
sys.exit(int(os.environ.get("EXIT_CODE", "0")))
"""


class Job:
    """A run of train.sbatch, as Slurm's daemon starts it on the first node."""

    def __init__(self, folder: Path, config: Path, nodes: int, environ: Mapping[str, str]):
        self.folder, self.config = folder, config
        commands = folder / "commands"
        commands.mkdir()
        for name in ("srun", "scancel", "scontrol"):
            stand_in = shlex.join([sys.executable, str(ROOT / "tests" / "slurm" / "stand_in.py"), name])
            (commands / name).write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n')
            (commands / name).chmod(0o755)
        # Slurm copies the script into a folder of its own.
        script = shutil.copy(SCRIPTS / "train.sbatch", folder / "slurm_script")
        (folder / "train.py").write_text(TRAINER)
        self.log = folder / "job.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [script, sys.executable, str(folder / "train.py"), str(folder)],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ
                | {
                    "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "SLURM_JOB_ID": "17",
                    "SLURM_JOB_NODELIST": f"127.0.0.[2-{nodes + 1}]",
                    "SLURM_SUBMIT_DIR": str(ROOT),
                    "STAND_IN_STEPS": str(folder / "steps"),
                    "MIXSERVE_RUN": str(folder / "run"),
                    "MIXSERVE_MIXTURE": str(config),
                }
                | environ,
            )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.02)

    def progress(self) -> list[int]:
        """How many batches each trainer has read, of those that have read one."""
        return [int(file.read_text() or "0") for file in sorted(self.folder.glob("progress-*"))]

    def end(self) -> int:
        """The trainers have enough; returns the job's exit code."""
        (self.folder / "enough").touch()
        return self.process.wait(DRAINED_S)

    def reports(self) -> list[dict]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("report-*"))]

    def server_logs(self) -> dict[str, str]:
        return {file.stem: file.read_text() for file in sorted((self.folder / "run").glob("server-*.log"))}

    def server_pids(self) -> list[int]:
        found = list[int]()
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended
                continue
            if "serve" in words and str(self.config) in words:
                found.append(int(file.parent.name))
        return sorted(found)

    def kill(self) -> None:
        """Kill what is left of it, the groups of its tasks too."""
        groups = [self.process.pid] if self.process.poll() is None else []
        for file in self.folder.glob("steps/*/groups"):
            groups += map(int, file.read_text().split())
        for group in groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def text(self) -> str:
        return "\n".join([self.log.read_text(), *self.server_logs().values()])


@pytest.fixture
def submit(tmp_path):
    """Starts a job; what is left of it ends with the test."""
    jobs = list[Job]()

    def start(config: Path, nodes: int, **environ: str) -> Job:
        jobs.append(Job(tmp_path, config, nodes, environ))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@contextmanager
def local(config: Path) -> Iterator:
    with local_client(build_nodes(load_config(config), config)) as client:
        yield client


def check_batches(job: Job) -> None:
    with local(job.config) as client:
        for number, report in enumerate(job.reports()):
            batches, digest = client.batches(16, key=number), hashlib.sha256()
            for _ in range(report["count"]):
                digest.update(next(batches)["tokens"].tobytes())
            assert report["digest"] == digest.hexdigest(), report


def test_a_server_beside_the_trainers_of_each_node(tmp_path, submit):
    job = submit(write_mixture(tmp_path), 2, MIXSERVE_TRAINERS_PER_NODE="2")
    job.wait_for(lambda: len(job.progress()) == 4 and min(job.progress()) > 50)
    assert job.end() == 0, job.text()
    reports = job.reports()
    assert [report["node"] for report in reports] == ["127.0.0.2", "127.0.0.2", "127.0.0.3", "127.0.0.3"]
    (first,), (same,), (other,), _ = [report["addresses"] for report in reports]
    assert first == same != other
    assert all(address.startswith("127.0.0.1:") for address in (first, other))
    assert all("shared memory" in report["transport"] for report in reports)
    check_batches(job)
    assert job.server_pids() == []
    assert [log.count("INFO stopped") for log in job.server_logs().values()] == [1, 1]


@NEEDS_OPENSSL
def test_servers_on_nodes_of_their_own_are_started_again(tmp_path, submit):
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("servers", "IP:127.0.0.2, IP:127.0.0.3")
    config = write_mixture(tmp_path)
    content = yaml.safe_load(config.read_text())
    content["server"] = {"tls": {"certificate": str(pair.certificate), "key": str(pair.key)}, "tokens": "tokens.yaml"}
    config.write_text(yaml.safe_dump(content))
    token = tmp_path / "token"
    with token.open("w") as out:
        new = ("token", "new", "reader", "--name", "trainers", "--file", str(tmp_path / "tokens.yaml"))
        subprocess.run([sys.executable, "-m", "mixserve", *new], stdout=out, check=True)
    token.chmod(0o600)
    job = submit(config, 3, MIXSERVE_NODES="2", CA=str(authority.ca), TOKEN_FILE=str(token))
    job.wait_for(lambda: bool(job.progress()) and min(job.progress()) > 50)
    addresses = sorted(file.read_text().strip() for file in (tmp_path / "run" / "addresses").iterdir())
    killed, kept = job.server_pids()
    os.kill(killed, signal.SIGKILL)
    # The other one serves meanwhile.
    before = job.progress()[0]
    job.wait_for(lambda: job.progress()[0] > before + 50)
    job.wait_for(lambda: sorted(log.count(" serving on ") for log in job.server_logs().values()) == [1, 2])
    assert kept in job.server_pids()
    before = job.progress()[0]
    job.wait_for(lambda: job.progress()[0] > before + 50)
    assert job.end() == 0, job.text()
    assert "the server ended with 137, and starts again in 1 s" in job.log.read_text()
    (report,) = job.reports()
    assert report["node"] == "127.0.0.4"
    assert sorted(report["addresses"]) == addresses
    assert [address.partition(":")[0] for address in addresses] == ["127.0.0.2", "127.0.0.3"]
    # At the same port, or the trainers would not have found it.
    for log in job.server_logs().values():
        assert set(re.findall(r"INFO serving on (\S+)", log)) <= set(addresses)
        assert log.count("INFO stopped") == 1
    check_batches(job)
    assert job.server_pids() == []


def test_the_end_of_the_time_reaches_the_trainers_first(tmp_path, submit):
    job = submit(write_mixture(tmp_path), 1, EXIT_CODE="3", MIXSERVE_SERVE_OPTIONS="--log-format json")
    job.wait_for(lambda: bool(job.progress()) and min(job.progress()) > 50)
    job.process.send_signal(signal.SIGTERM)  # as `--signal=B:TERM@120` does
    assert job.process.wait(DRAINED_S) == 3, job.text()
    (report,) = job.reports()  # it had time to write it
    assert report["told"]
    check_batches(job)
    (log,) = job.server_logs().values()
    assert json.loads(log.splitlines()[-1])["message"] == "stopped"
    assert job.server_pids() == []


def test_a_job_without_a_mixture_ends(tmp_path, submit):
    job = submit(tmp_path / "missing.yaml", 2)
    assert job.process.wait(DEADLINE_S) == 1
    assert "cannot serve" in job.log.read_text()
    assert "cannot be read" in job.log.read_text()
    assert job.reports() == []


def test_a_job_without_nodes_for_trainers_ends(tmp_path, submit):
    job = submit(write_mixture(tmp_path), 2, MIXSERVE_NODES="2")
    assert job.process.wait(DEADLINE_S) == 2
    assert "leaves none of the job's 2 nodes for trainers" in job.log.read_text()
