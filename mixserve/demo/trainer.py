"""The trainer process: batches from a server -> a model, a journal of every step, and a state to resume from."""

import argparse
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mixserve.demo.checkpoint import restore, save
from mixserve.demo.journal import JournalWriter
from mixserve.demo.model import new_learner, train_step
from mixserve.demo.stream import BATCH_SIZE, KEY, extend_digest, open_stream
from mixserve.mixture.plan import Planner
from mixserve_client import MixClient, MixtureDescription
from mixserve_client.schema.keys import key_words

JOURNAL = "journal.jsonl"
STATE = "trainer.npz"
PREFETCH = 4
_PATIENCE_S = 120.0


def train(address: str, folder: Path, steps: int) -> None:
    """Train on the first `steps` batches of the server's mixture, resuming from the state in `folder` if any."""
    learner = new_learner()
    with JournalWriter(folder / JOURNAL) as journal, MixClient.connect(address, patience_s=_PATIENCE_S) as client:
        mixture = client.mixture()
        sources = row_sources(mixture, steps)
        batches = open_stream(client, steps, prefetch=PREFETCH)
        step, digest, counts = 0, "", np.zeros(len(mixture.sources), np.int64)
        if (folder / STATE).exists():
            saved = restore(folder / STATE, learner)
            batches.set_state(saved["iterator"])
            step, digest, counts = saved["step"], saved["digest"], np.array(saved["counts"], np.int64)
        journal.write(event="started", step=step)
        while step < steps:
            began = time.perf_counter()
            batch = next(batches)
            waited_s = time.perf_counter() - began
            losses = np.asarray(train_step(*learner, jnp.asarray(batch["tokens"])))
            digest = extend_digest(digest, batch)
            rows = [sources[step] == source for source in range(len(counts))]
            counts += [int(mine.sum()) for mine in rows]
            step += 1
            journal.write(
                event="step",
                step=step,
                losses=[float(losses[mine].mean()) if mine.any() else None for mine in rows],
                counts=counts.tolist(),
                waited_s=waited_s,
                took_s=time.perf_counter() - began,
            )
            if step % save_interval(steps) == 0:
                # Model and iterator in one file: they resume at the same step whenever the process is killed.
                progress = {"step": step, "digest": digest, "counts": counts.tolist(), "iterator": batches.get_state()}
                save(folder / STATE, learner, progress)
                journal.write(event="saved", step=step)
        journal.write(event="finished", step=step, digest=digest)


def row_sources(mixture: MixtureDescription, steps: int) -> np.ndarray:
    """The source of every row of every batch: integers of shape (steps, BATCH_SIZE)."""
    # Without asking the server: the source of a position is a pure function of key, weights and lengths.
    planner = Planner(mixture.weights, [source.length for source in mixture.sources])
    return planner.plan(key_words(KEY), 0, steps * BATCH_SIZE).source_ids.reshape(steps, BATCH_SIZE)


def save_interval(steps: int) -> int:
    """The number of steps between two saved states, in a run of `steps` steps."""
    return max(5, steps // 20)


def main() -> None:
    """Run `train` with arguments from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    arguments = parser.parse_args()
    train(arguments.address, arguments.folder, arguments.steps)


if __name__ == "__main__":
    main()
