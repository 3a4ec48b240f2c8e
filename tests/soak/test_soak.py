"""Trainers and replicas that run for long, with failovers now and then: memory, descriptors and threads do not grow.

Each run ends after MIXSERVE_SOAK_S seconds, or when MIXSERVE_SOAK_BATCHES batches were read, whichever comes first.
"""

import os
import random
import re
import shutil
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.certificates import Authority
from tests.chaos.trainer import digest
from tests.forked import Forked
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ServerProcess, server_process, write_mixture
from tests.proxy import Proxy
from tests.soak import trainer
from tests.waiting import wait_until

LASTS_S = float(os.environ.get("MIXSERVE_SOAK_S") or 10)
BATCHES = int(os.environ.get("MIXSERVE_SOAK_BATCHES") or 1_000_000_000)
REPLICAS, SIZE, SAMPLES = 2, 16, 40
PROGRESS_S = 30
# What a straight line through the samples after the first quarter may gain from its beginning to its end. Memory: what
# the allocators of two languages keep more or less of.
MOST_BYTES, MOST_DESCRIPTORS, MOST_THREADS = 32 << 20, 8, 4

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and descriptors are read from /proc")


class Sample(NamedTuple):
    """What a process holds."""

    at_s: float
    resident: int
    descriptors: int
    threads: int


def sample(pid: int, at_s: float) -> Sample | None:
    """None if the process has ended, or is about to."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in found:
        return None
    return Sample(at_s, int(found["VmRSS"].split()[0]) << 10, descriptors, int(found["Threads"]))


class Replica:
    """A server process, and the proxy that cuts it off."""

    def __init__(self, folder: Path, name: str, running: ExitStack):
        self.port, self.bulk_port = free_ports(), free_ports()
        self.proxy = running.enter_context(Proxy(f"127.0.0.1:{self.port}", bulk_port=self.bulk_port))
        self._folder, self._name, self._running = folder, name, running
        self.server: ServerProcess | None = None

    @property
    def host(self) -> str:
        return self.proxy.address.rpartition(":")[0]

    def start(self, authority: Authority | None) -> None:
        config = write_mixture(self._folder, f"{self._name}.yaml")
        options = f"port: {self.port}, bulk_port: {self.bulk_port}"
        if authority is not None:
            pair = authority.issue(self._name, f"IP:{self.host}")
            options += f", tls: {{certificate: {pair.certificate}, key: {pair.key}}}"
        config.write_text(config.read_text().replace("{port: 0}", f"{{{options}}}"))
        self.config = config
        self.server = self._running.enter_context(server_process(config))

    @property
    def pid(self) -> int:
        assert self.server is not None
        return self.server.process.pid


@pytest.mark.alone
@pytest.mark.timeout(300 + 2 * LASTS_S)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_nothing_grows(tls, tmp_path):
    if tls and shutil.which("openssl") is None:
        pytest.skip("the command openssl makes certificates")
    with ExitStack() as running:
        replicas = [Replica(tmp_path, f"replica-{number}", running) for number in range(REPLICAS)]
        authority = Authority(tmp_path / "authority") if tls else None
        for replica in replicas:
            replica.start(authority)
        for replica in replicas:
            assert replica.server is not None
            replica.server.address()
        addresses = [replica.proxy.address for replica in replicas]
        trainers = dict[str, Forked]()
        for key, bulk in enumerate((False, True)):
            ca = None if authority is None else str(authority.ca)
            ordered = addresses if bulk else addresses[::-1]
            log = tmp_path / f"trainer-{key}.log"
            arguments = (ordered, ca, bulk, key, BATCHES // 2, SIZE, LASTS_S)
            trainers["bulk" if bulk else "gRPC"] = Forked(trainer.main, *arguments, log=log)
            running.callback(trainers["bulk" if bulk else "gRPC"].kill)
        processes = {f"replica {number}": replica.pid for number, replica in enumerate(replicas)}
        processes |= {f"trainer over {name}": one.pid for name, one in trainers.items()}
        samples = _watch(processes, trainers, replicas)
        for one in trainers.values():
            assert one.wait(DEADLINE_S) == 0, one.log()[-3000:]
        read = {name: _counted(one) for name, one in trainers.items()}
        print(f"{sum(read.values()):,} batches: {read}")
        _compare(replicas[0].config, trainers)
        _check(samples, sum(read.values()))
        for replica in replicas:
            assert replica.server is not None
            assert "Traceback" not in replica.server.log()


def _watch(processes: dict[str, int], trainers: dict[str, Forked], replicas: list[Replica]) -> dict[str, list[Sample]]:
    """Sample all processes until a trainer ends; now and then a replica is cut off, and comes back."""
    wait_until(lambda: all("at 0 " in one.log() for one in trainers.values()), "a batch for each trainer")
    found, began = defaultdict[str, list[Sample]](list), time.monotonic()
    choice, said_at, step_s = random.Random(0), began, min(LASTS_S / SAMPLES, 10.0)
    cut: Proxy | None = None
    while not any(one.poll() is not None or "done" in one.log()[-40:] for one in trainers.values()):
        now = time.monotonic()
        for name, pid in processes.items():
            if (taken := sample(pid, now - began)) is not None:
                found[name].append(taken)
        # Every second sample or so: cut off for one sample, for good or once.
        if cut is not None:
            cut.restore()
            cut = None
        elif choice.random() < 0.3:
            cut = choice.choice(replicas).proxy
            (cut.cut if choice.random() < 0.5 else cut.drop)(reset=choice.random() < 0.5)
        if now - said_at > PROGRESS_S:
            said_at = now
            print(f"{now - began:7.0f} s  " + ", ".join(
                f"{name} {samples[-1].resident >> 20} MiB, {samples[-1].descriptors} descriptors, "
                f"{samples[-1].threads} threads" for name, samples in found.items()
            ), flush=True)  # fmt: skip
        time.sleep(step_s)
    if cut is not None:
        cut.restore()
    return found


def _counted(one: Forked) -> int:
    done = re.search(r"^done (\d+)$", one.log(), re.MULTILINE)
    assert done is not None, one.log()[-3000:]
    return int(done[1])


def _compare(config: Path, trainers: dict[str, Forked]) -> None:
    """Every hundredth batch is the one of a node in this process."""
    node = build_nodes(load_config(config), config)["train"]
    with local_client({"train": node}) as near:
        for key, one in enumerate(trainers.values()):
            came = re.findall(r"^at (\d+) (\w+)$", one.log(), re.MULTILINE)
            assert [int(number) for number, _ in came] == list(range(0, _counted(one), trainer.EVERY))
            wrong = [
                number for number, said in came if digest(near.get_batch_at(int(number) * SIZE, SIZE, key)) != said
            ]
            assert wrong == []


def _check(samples: dict[str, list[Sample]], batches: int) -> None:
    """Print the slopes, and require that they are flat."""
    steep = list[str]()
    for name, of in samples.items():
        kept = np.array(of[len(of) // 4 :], np.float64)
        lasted_s = kept[-1, 0] - kept[0, 0]
        gains = [float(np.polyfit(kept[:, 0], kept[:, column], 1)[0] * lasted_s) for column in (1, 2, 3)]
        share = lasted_s / of[-1].at_s
        last = of[-1]
        print(
            f"{name:18} {last.resident >> 20:5} MiB {gains[0] / (1 << 20):+7.2f}, {last.descriptors:4} descriptors "
            f"{gains[1]:+6.2f}, {last.threads:4} threads {gains[2]:+6.2f}, along lines through {len(kept)} samples of "
            f"{lasted_s:.0f} s, about {share * batches:,.0f} batches"
        )
        if any(gain > most for gain, most in zip(gains, (MOST_BYTES, MOST_DESCRIPTORS, MOST_THREADS), strict=True)):
            steep.append(name)
    assert steep == []
