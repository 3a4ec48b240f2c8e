"""Trainers of three replicas that fail in every way, again and again: each batch is right and comes once.

MIXSERVE_CHAOS_BATCHES sets the number of batches of all trainers together, MIXSERVE_CHAOS_KINDS what happens to
replicas, MIXSERVE_CHAOS_HARM_S how long at most, and MIXSERVE_CHAOS_WAIT_S the longest wait that is allowed.
MIXSERVE_CHAOS_SEED repeats what happens to each replica, as far as the clock allows. At any time one replica is left
alone.
"""

import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.chaos import trainer
from tests.chaos.replicas import KINDS, MIXTURE, SIZE, Replica, harm, running
from tests.chaos.trainer import HAS_CHECKSUMS, WAYS, digest, reader
from tests.forked import Forked

BATCHES = int(os.environ.get("MIXSERVE_CHAOS_BATCHES") or 300)
SEED = int(os.environ.get("MIXSERVE_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
LONGEST_WAIT_S = float(os.environ.get("MIXSERVE_CHAOS_WAIT_S") or math.inf)
REPLICAS, TRAINERS, HARMED = 3, 4, 2
STEP_S = 0.05
SHORTEST_S, LONGEST_S = 0.5, float(os.environ.get("MIXSERVE_CHAOS_HARM_S") or 6)  # of a harm
PROGRESS_S = 10


def _kinds() -> tuple[str, ...]:
    named = os.environ.get("MIXSERVE_CHAOS_KINDS", "").split()
    assert set(named) <= set(KINDS), f"MIXSERVE_CHAOS_KINDS must be of {KINDS}"
    return tuple(named) or tuple(kind for kind in KINDS if kind != "flips" or HAS_CHECKSUMS)


class Came(NamedTuple):
    """A batch that a trainer got."""

    number: int
    digest: str
    wait_s: float
    late: int


class Trainer:
    """A process that reads, and what it said."""

    def __init__(self, folder: Path, number: int, addresses: list[str], count: int, checksum: bool):
        self.way, self.key, self.count = WAYS[(SEED + number) % len(WAYS)], SEED % 1000 + number, count
        # Each begins with another replica.
        addresses = addresses[number % REPLICAS :] + addresses[: number % REPLICAS]
        place = WAYS.index(self.way)
        self._log = folder / f"trainer-{number}.log"
        self.process = Forked(trainer.main, addresses, place, self.key, count, SIZE, STEP_S, checksum, log=self._log)

    def came(self) -> list[Came]:
        found = re.findall(r"^batch (\d+) (\w+) ([\d.]+) (\d+)$", self._log.read_text(), re.MULTILINE)
        return [Came(int(number), digest, float(wait_s), int(late)) for number, digest, wait_s, late in found]

    @property
    def is_done(self) -> bool:
        """Raises AssertionError if it failed."""
        code = self.process.poll()
        assert code in (None, 0), f"the trainer {self.way.name!r} ended with {code}:\n{self.others()[-6000:]}"
        return code is not None

    def others(self) -> str:
        """Its log without batches."""
        return "\n".join(line for line in self._log.read_text().splitlines() if not line.startswith("batch "))


class Tormentor:
    """Harms one replica again and again, until it is told to end; then the replica is well."""

    def __init__(self, replica: Replica, kinds: tuple[str, ...], few: threading.Semaphore, over: threading.Event):
        self._replica, self._kinds, self._few, self._over = replica, kinds, few, over
        self._choice = random.Random(f"{SEED} {replica.number}")
        self._began = time.monotonic()
        self.harms = Counter[str]()

    def run(self) -> None:
        choice = self._choice
        # All kinds come about equally often, and in the short form too.
        kinds = list[str]()
        while not self._over.wait(choice.uniform(0, 0.5)):
            kinds = kinds or choice.sample(self._kinds, len(self._kinds))
            kind, lasts_s = kinds.pop(), choice.uniform(SHORTEST_S, LONGEST_S)
            made = harm(kind, self._replica, choice)
            with self._few:
                if self._over.is_set():
                    return
                self._say(f"{made.name}, for {lasts_s:.1f} s")
                self.harms[kind] += 1
                made.begin()
                self._over.wait(lasts_s)
                made.end()
                self._say("well again")

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  replica {self._replica.number}: {what}", flush=True)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[Replica]]:
    with running(tmp_path, REPLICAS) as made:
        yield made


@pytest.mark.timeout(300 + BATCHES)
def test_trainers_lose_nothing_whatever_happens_to_replicas(replicas, tmp_path):
    kinds = _kinds()
    print(f"\nMIXSERVE_CHAOS_SEED={SEED} MIXSERVE_CHAOS_BATCHES={BATCHES} MIXSERVE_CHAOS_KINDS='{' '.join(kinds)}'")
    addresses = [replica.proxy.address for replica in replicas]
    few, over, began = threading.Semaphore(HARMED), threading.Event(), time.monotonic()
    checksum = "flips" in kinds and HAS_CHECKSUMS
    trainers = [Trainer(tmp_path, n, addresses, -(-BATCHES // TRAINERS), checksum) for n in range(TRAINERS)]
    # Before harms begin each trainer knows the mixture: the right one is the first that it saw.
    while sum(bool(one.came()) for one in trainers) < sum(not one.is_done for one in trainers):
        time.sleep(0.05)
    tormentors = [Tormentor(replica, kinds, few, over) for replica in replicas]
    with ThreadPoolExecutor(REPLICAS) as threads:
        harming = [threads.submit(one.run) for one in tormentors]
        try:
            _wait(trainers, [*harming], began)
        finally:
            over.set()
            for one in trainers:
                one.process.kill()
        for one in harming:
            one.result()
    _report(trainers, tormentors, replicas, time.monotonic() - began)
    _compare(replicas[0], trainers)
    for replica in replicas:
        assert "Traceback" not in replica.logs()
    assert max(came.wait_s for one in trainers for came in one.came()) <= LONGEST_WAIT_S


def _wait(trainers: list[Trainer], harming: list, began: float) -> None:
    """Return when all trainers are done, and say now and then how far they are."""
    say_at = began + PROGRESS_S
    while sum(one.is_done for one in trainers) < len(trainers):  # looks at all
        assert not any(one.done() for one in harming), [one.result() for one in harming if one.done()]
        if time.monotonic() >= say_at:
            say_at += PROGRESS_S
            counts = ", ".join(f"{len(one.came())}/{one.count}" for one in trainers)
            print(f"{time.monotonic() - began:7.1f} s  batches: {counts}", flush=True)
        time.sleep(0.1)


def _report(trainers: list[Trainer], tormentors: list[Tormentor], replicas: list[Replica], lasted_s: float) -> None:
    harms = sum((one.harms for one in tormentors), Counter[str]())
    print(
        f"{sum(one.count for one in trainers)} batches in {lasted_s:.0f} s under {harms.total()} harms: {dict(harms)}"
    )
    print(f"{sum(replica.proxy.flipped for replica in replicas)} bits were flipped")
    for one in trainers:
        waits = sorted(came.wait_s for came in one.came())
        late = sum(came.late for came in one.came())
        print(
            f"{one.way.name:32} longest wait {waits[-1]:6.2f} s, p99 {waits[int(0.99 * len(waits))]:6.2f} s, "
            f"median {1e3 * waits[len(waits) // 2]:6.1f} ms, {late} times DeadlineExceeded"
        )


def _compare(replica: Replica, trainers: list[Trainer]) -> None:
    """Each batch is the one of a node in this process, and each came once."""
    node = build_nodes(load_config(replica.config), replica.config)[MIXTURE]
    with local_client({MIXTURE: node}) as near:
        for one in trainers:
            came, read = one.came(), reader(near, one.way, one.key, SIZE)
            assert [batch.number for batch in came] == list(range(one.count)), one.way.name
            wrong = [batch.number for batch in came if batch.digest != digest(read(batch.number))]
            assert wrong == [], f"{one.way.name}: wrong batches"
