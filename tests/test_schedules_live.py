"""Readers that change their weights, while they and their servers are killed, moved and replaced."""

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from mixserve import local_client, serve
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, UnknownSchedule
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.selection import Selection
from mixserve_client.schema.keys import key_words
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_batch_request
from tests.conftest import ROUTES, assert_batches_equal, make_node
from tests.forked import Forked
from tests.ports import free_ports
from tests.processes import DEADLINE_S, server_process, write_mixture
from tests.schedule_trainer import BATCH_SIZE, CHANGES, JOURNAL, KEY, STATE, STEPS, digest, main, train

SAMPLINGS = ("categorical", "epoch")
BLOCK_SIZE = 64
AHEAD = 4  # steps that a trainer may make beyond the one at which a process is killed


class Trainer:
    """`main` of `tests/schedule_trainer.py` in its own process."""

    def __init__(self, folder: Path, prefetch: int, *addresses: str):
        self._folder = folder
        log = folder / f"trainer.{time.monotonic_ns()}.log"
        self.process = Forked(main, folder, prefetch, *addresses, log=log)

    def run_to(self, step: int) -> None:
        """Return after it has journaled `step`; meanwhile it continues up to AHEAD steps further."""
        self.process.tell(str(step + AHEAD))
        self.wait_until(lambda: any(entry["step"] >= step for entry in journal(self._folder)), f"step {step}")

    def wait_until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert self.process.poll() in (None, 0), self.process.log()
            assert time.monotonic() < deadline, f"no {what} in {DEADLINE_S} s"
            time.sleep(0.005)

    def kill(self) -> None:
        self.process.kill(DEADLINE_S)


@contextmanager
def trainer_process(folder: Path, prefetch: int, *addresses: str) -> Iterator[Trainer]:
    trainer = Trainer(folder, prefetch, *addresses)
    try:
        yield trainer
    finally:
        trainer.kill()


def journal(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of all trainers so far; unfinished lines of killed trainers do not count."""
    path = folder / JOURNAL
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def knows(address: str, state: dict[str, Any]) -> bool:
    """Whether the server at `address` knows the schedule of an iterator's state, without sending it."""
    with MixClient.connect(address, patience_s=DEADLINE_S, shared_memory=False) as client:
        mixture = client.mixture()
        view = Selection(mixture, key_words(state["key"]), Schedule.of(mixture, state["schedule"]))
        try:
            client._caller.call(methods.GET_BATCH_AT, encode_batch_request(view.request(0, 1)))
        except UnknownSchedule:
            return False
    return True


def saved_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text())["iterator"]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_trainer_that_is_killed_and_moved_between_servers_reads_what_a_quiet_one_reads(tmp_path, sampling):
    options = {"block_size": BLOCK_SIZE} if sampling == "epoch" else {}
    config = write_mixture(tmp_path, sampling=sampling, **options)
    rng = random.Random(f"kills, {sampling}")
    port = free_ports()
    first, second = f"127.0.0.1:{port}", f"127.0.0.1:{free_ports()}"
    kills = 0
    with ExitStack() as stack:
        server = stack.enter_context(server_process(config, "--port", str(port)))
        replica = stack.enter_context(server_process(config, "--port", second.rpartition(":")[2]))

        # One server: the trainer is killed around the first change of its weights and after it.
        for at in (rng.randrange(8, 20), rng.randrange(28, 32), rng.randrange(38, 42)):
            with trainer_process(tmp_path, rng.choice((0, 2)), first) as trainer:
                trainer.run_to(at)
                trainer.kill()
                kills += 1

        # The server is killed during a trainer that requests every batch, and its successor knows no schedules.
        with trainer_process(tmp_path, 0, first) as trainer:
            trainer.run_to(rng.randrange(46, 50))
            server.kill()
            server = stack.enter_context(server_process(config, "--port", str(port)))
            trainer.run_to(rng.randrange(55, 58))
            assert knows(first, saved_state(tmp_path))
            trainer.run_to(rng.randrange(62, 67))
            trainer.kill()
            kills += 1

        # The server is killed for good; the trainer continues on a replica elsewhere, and is killed there too.
        with trainer_process(tmp_path, 0, first, second) as trainer:
            trainer.run_to(rng.randrange(72, 76))
            replica.address()
            server.kill()
            trainer.run_to(rng.randrange(81, 86))
            assert knows(second, saved_state(tmp_path))
            trainer.kill()
            kills += 1
        for at in (rng.randrange(91, 96), rng.randrange(101, 110)):
            with trainer_process(tmp_path, rng.choice((0, 2)), first, second) as trainer:
                trainer.run_to(at)
                trainer.kill()
                kills += 1
        with trainer_process(tmp_path, 2, second) as trainer:
            trainer.run_to(STEPS - 1)
            trainer.wait_until(lambda: trainer.process.poll() == 0, "end of the trainer")
    assert kills == 7

    with local_client(build_nodes(load_config(config), config)) as client:
        quiet_states = []
        quiet = list(train(client, 2, None, quiet_states.append))
        assert len(quiet) == STEPS
        block = BLOCK_SIZE if sampling == "epoch" else 1
        schedule = [(-(-step * BATCH_SIZE // block) * block, weights) for step, weights in CHANGES.items()]
        for entry in quiet:
            whole = client.get_batch_at(entry["position"], BATCH_SIZE, KEY, schedule=schedule, provenance=True)
            assert digest(whole) == entry["digest"]
    entries = journal(tmp_path)
    assert len(entries) > STEPS, "no step was repeated, so nothing was resumed"
    for entry in entries:
        assert entry == quiet[entry["step"]]
    assert {entry["step"] for entry in entries} == set(range(STEPS))
    assert all(after["step"] <= before["step"] + 1 for before, after in pairwise(entries))
    assert json.loads((tmp_path / STATE).read_text()) == json.loads(json.dumps(quiet_states[-1]))


@pytest.fixture(scope="module")
def nodes():
    return {"categorical": make_node(), "epoch": make_node(sampling="epoch", block_size=BLOCK_SIZE)}


@pytest.fixture(scope="module")
def both_server(nodes):
    with serve(nodes) as running:
        yield running


READERS = {  # weights by the batch before which they are scheduled
    "left": {0: (0.8, 0.1, 0.1), 4: (0.1, 0.1, 0.8), 9: (0.0, 0.5, 0.5)},
    "right": {2: (0.0, 0.0, 1.0), 5: (1.0, 1.0, 1.0), 9: (0.2, 0.3, 0.5)},
}
READER_BATCH, READER_BATCHES = 1500, 14


def read(client: MixClient, mixture: str, reader: str) -> Iterator[dict[str, Any]]:
    batches = client.batches(READER_BATCH, 5, mixture=mixture, provenance=True)
    with batches:
        for number in range(READER_BATCHES):
            if number in READERS[reader]:
                batches.schedule_weights(READERS[reader][number])
            yield next(batches)


@pytest.fixture(scope="module")
def alone(nodes):
    with local_client(nodes) as client:
        return {(mixture, reader): list(read(client, mixture, reader)) for mixture in SAMPLINGS for reader in READERS}


@pytest.fixture(params=ROUTES)
def remote(request, both_server):
    with MixClient.connect(both_server.address, patience_s=20, **ROUTES[request.param]) as client:
        yield client
        assert client.transport.startswith(request.param)


@pytest.mark.parametrize("mixture", SAMPLINGS)
def test_readers_of_one_server_under_different_schedules_do_not_disturb_each_other(remote, alone, mixture):
    pairs = zip(read(remote, mixture, "left"), read(remote, mixture, "right"), strict=True)
    for number, (left, right) in enumerate(pairs):
        assert_batches_equal(left, alone[mixture, "left"][number])
        assert_batches_equal(right, alone[mixture, "right"][number])
        assert left["source_id"].tobytes() != right["source_id"].tobytes()


@pytest.mark.parametrize("mixture", SAMPLINGS)
def test_readers_in_two_threads_do_not_disturb_each_other_either(remote, alone, mixture):
    together = Barrier(2, timeout=DEADLINE_S)

    def run(reader: str) -> None:
        together.wait()
        batches = read(remote, mixture, reader)
        for batch, expected in zip(islice(batches, READER_BATCHES), alone[mixture, reader], strict=True):
            assert_batches_equal(batch, expected)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(run, reader) for reader in READERS]:
            done.result(DEADLINE_S)
