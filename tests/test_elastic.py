"""A run whose number of processes changes at each kill of all: its global batches equal those of an undisturbed run."""

import json
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixserve_client import MixClient
from tests import elastic_trainer
from tests.elastic_trainer import BATCH_SIZE, CHECKPOINT, KEY, STEPS
from tests.processes import DEADLINE_S, server_process, write_mixture

COUNTS = (1, 4, 2, 3)
KILLS = (61, 140, 222)  # kills in the middle of these steps

Rows = dict[str, list[Any]]


@contextmanager
def trainers(folder: Path, address: str, run: int, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of one run; all end with the block, whatever the test does."""
    made = list[subprocess.Popen[str]]()
    try:
        for index in range(count):
            command = [sys.executable, elastic_trainer.__file__, str(folder), f"rows-{run}-{index}-{count}"]
            made.append(
                subprocess.Popen(
                    [*command, str(index), str(count), address],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        yield made
    finally:
        for process in made:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


def allow_step(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def read_step(process: subprocess.Popen[str]) -> int | None:
    """The step that the process has made; None if it has made all."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line or process.wait(DEADLINE_S) == 0, "a trainer failed"
    return int(line) if line else None


def rows_by_step(folder: Path) -> dict[int, dict[tuple[int, int], dict[int, Rows]]]:
    """Rows of every shard, by step, run and number of processes; a line that a kill cut off does not count."""
    found = defaultdict[int, dict[tuple[int, int], dict[int, Rows]]](lambda: defaultdict(dict))
    for path in folder.glob("rows-*"):
        run, index, count = map(int, path.name.split("-")[1:])
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                step, rows = json.loads(line)
                found[step][run, count][index] = rows
    return found


def test_the_number_of_processes_changes_and_the_global_batches_do_not(tmp_path):
    rng = random.Random(0)
    with server_process(write_mixture(tmp_path, sampling="epoch")) as server:
        address = server.address()
        for run, count in enumerate(COUNTS):
            kill_in = KILLS[run] if run < len(KILLS) else None
            with trainers(tmp_path, address, run, count) as processes:
                step = -1
                while step is not None:
                    if step + 1 == kill_in:
                        for process in rng.sample(processes, len(processes)):
                            if rng.random() < 0.7:
                                allow_step(process)
                            process.kill()
                        break
                    for process in processes:
                        allow_step(process)
                    steps = {read_step(process) for process in processes}
                    assert len(steps) == 1
                    step = steps.pop()
            assert json.loads((tmp_path / CHECKPOINT).read_text())["step"] <= (STEPS if kill_in is None else kill_in)
        with MixClient.connect(address) as client:
            quiet = [
                {name: array.tolist() for name, array in batch.items()}
                for batch in client.batches(BATCH_SIZE, KEY, stop=STEPS * BATCH_SIZE, provenance=True)
            ]
    found = rows_by_step(tmp_path)
    assert len(quiet) == STEPS
    assert sorted(found) == list(range(STEPS))
    by_count = Counter[int]()
    for step, runs in found.items():
        for (_, count), shards in runs.items():
            for index, rows in shards.items():
                part = slice(index * BATCH_SIZE // count, (index + 1) * BATCH_SIZE // count)
                assert rows == {name: values[part] for name, values in quiet[step].items()}
        whole = [count for (_, count), shards in runs.items() if len(shards) == count]
        assert whole, f"no run has all rows of step {step}"
        by_count.update(whole)
    assert sum(by_count.values()) > STEPS, "no step was made again, so no kill cost a step"
    assert all(by_count[count] > 50 for count in COUNTS), dict(by_count)
