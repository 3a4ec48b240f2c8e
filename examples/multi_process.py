"""Data-parallel training in several processes that are killed, and continued by another number of processes.

    python examples/multi_process.py [--processes 4 2] [--steps 60]

A trainer needs only `train`. The rest writes two texts, serves them, starts the first number of processes, kills them
all with SIGKILL, starts the next number, which resumes from the checkpoint, and so on; at the end it compares all
global batches and losses with those of one process that reads the same mixture without a server.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixserve import MixDataSourcesNode, local_client, serve
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.corpus import mixture_file, write_corpora
from mixserve_client import MixClient
from mixserve_client.jax import global_batches

BATCH_SIZE, KEY = 24, 7
INTERVAL = 10  # steps between checkpoints
CONTEXT, WIDTH, HIDDEN = 8, 16, 64
MOST_PROCESSES = 4
TOLERANCE = 1e-4  # of losses: another number of devices adds up in another order, and each step builds on the last


def train(client: MixClient, folder: Path, steps: int, report: Callable[[int, Any, Any], None]) -> None:
    """Train on the devices of all processes, from the newest checkpoint in `folder` if there is one.

    Every process calls this, and requests only its own rows.
    """
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    learn_together = jax.jit(learn, out_shardings=everywhere)
    with (
        global_batches(client, BATCH_SIZE, KEY, by_rows, stop=steps * BATCH_SIZE) as batches,
        ocp.training.Checkpointer(folder) as checkpoints,
    ):
        learner, done = jax.jit(new_learner, out_shardings=everywhere)(), 0
        if checkpoints.latest is not None:
            done = checkpoints.latest.step
            saved = checkpoints.load_checkpointables(done, {"learner": learner, "data": batches})
            learner = saved["learner"]  # on these devices, not those that saved it; `batches` is at the checkpoint
        for step, batch in enumerate(batches, done + 1):
            learner, loss = learn_together(learner, batch["tokens"])
            if step % INTERVAL == 0:
                checkpoints.save_checkpointables(step, {"learner": learner, "data": batches})
            report(step, loss, batch["tokens"])


def new_learner() -> dict[str, Any]:
    """An untrained model of the next byte, given the eight before it, and its optimizer's state."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"embed": (256, WIDTH), "widen": (CONTEXT * WIDTH, HIDDEN), "head": (HIDDEN, 256)}
    model = {
        name: jax.random.normal(key, shape) * shape[0] ** -0.5
        for (name, shape), key in zip(shapes.items(), keys, strict=True)
    }
    return {"model": model, "optimizer": OPTIMIZER.init(model)}


def learn(learner: dict[str, Any], tokens: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """The learner after a step on rows of bytes, and the mean loss before the step, in nats per byte."""
    loss, gradients = jax.value_and_grad(mean_loss)(learner["model"], tokens)
    updates, optimizer = OPTIMIZER.update(gradients, learner["optimizer"])
    return {"model": optax.apply_updates(learner["model"], updates), "optimizer": optimizer}, loss


def mean_loss(model: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """The mean over all bytes of all rows, on all devices."""
    known = tokens.shape[1] - CONTEXT
    embedded = model["embed"][tokens.astype(jnp.int32)]
    context = jnp.concatenate([embedded[:, place : place + known] for place in range(CONTEXT)], axis=-1)
    logits = jax.nn.relu(context @ model["widen"]) @ model["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, CONTEXT:].astype(jnp.int32)).mean()


OPTIMIZER = optax.adam(1e-2)


@contextmanager
def trainers(count: int, address: str, folder: Path, steps: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run `train` together; the first one reports each step. Killed at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, "--steps", str(steps), "--train", address, str(folder), coordinator]
    processes = [
        subprocess.Popen(
            [*command, str(count), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


class Run:
    """The reports of a run: the loss of each step and the digest of its global batch."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.digests: dict[int, str] = {}
        self.repeated = 0

    def note(self, step: int, loss: float, digest: str) -> None:
        """Add a report. A repeated step must have had the same batch."""
        self.repeated += step in self.digests
        if self.digests.setdefault(step, digest) != digest:
            sys.exit(f"step {step} has another batch than before the processes were killed")
        self.losses[step] = loss
        if step % INTERVAL == 0:
            print(f"  step {step:>4}   loss {loss:.4f}")

    def digest(self) -> str:
        """The digest of all batches in order."""
        return hashlib.sha256("".join(self.digests[step] for step in sorted(self.digests)).encode()).hexdigest()


def go_on(run: Run, count: int, address: str, folder: Path, steps: int, kill_at: int | None) -> None:
    """Start processes, and kill them all after the step `kill_at`; the first one waits for a line after each step."""
    print(f"{count} {'processes' if count > 1 else 'process'}:")
    with trainers(count, address, folder, steps) as processes:
        first = processes[0]
        for line in first.stdout:
            if not line.startswith("{"):
                continue  # Gloo prints its peers to stdout
            told = json.loads(line)
            run.note(**told)
            if told["step"] == kill_at:
                print(f"  step {kill_at:>4}   all killed (SIGKILL)")
                return
            os.write(first.stdin.fileno(), b"\n")
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit(f"the processes failed with exit statuses {statuses}")


def make_report(note: Callable[..., None]) -> Callable[[int, Any, Any], None]:
    """A `report` that gives `note` the step, the loss and the digest of the global batch, in the first process only."""

    def report(step: int, loss: Any, tokens: Any) -> None:
        # All rows of all processes: a collective operation, so every process must call it.
        rows = process_allgather(tokens, tiled=True)
        if jax.process_index() == 0:
            note(step=step, loss=float(loss), digest=hashlib.sha256(rows.tobytes()).hexdigest())

    return report


def tell(**what: Any) -> None:
    """Report to the parent process, and wait for its line."""
    print(json.dumps(what), flush=True)
    sys.stdin.readline()


def one_of_several(address: str, folder: str, coordinator: str, count: str, number: str, steps: int) -> None:
    """Run as the process `number` of `count`."""
    jax.distributed.initialize(coordinator, int(count), int(number))
    with MixClient.connect(address) as client:
        train(client, Path(folder), steps, make_report(tell))


def alone(nodes: dict[str, MixDataSourcesNode], folder: Path, steps: int) -> Run:
    """Train in this process, on one device and without a server."""
    run = Run()
    print("one process, without a server:")
    with local_client(nodes) as client:
        train(client, folder, steps, make_report(run.note))
    return run


def main() -> None:
    """Run everything, or, with --train, one of several processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    counts = range(1, MOST_PROCESSES + 1)
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[4, 2], choices=counts, help="before and after each kill"
    )
    parser.add_argument("--steps", type=int, default=60, help=f"a multiple of {INTERVAL}")
    parser.add_argument("--train", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps, starts = arguments.steps, len(arguments.processes)
    if steps % INTERVAL or steps < starts * INTERVAL:
        parser.error(f"--steps must be a multiple of {INTERVAL} and at least {starts * INTERVAL}, got {steps}")
    if arguments.train:
        one_of_several(*arguments.train, steps)
        return
    sys.stdout.reconfigure(line_buffering=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="multi-process-") as name:
        folder = Path(name)
        # A restarted process need not compile again.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        write_corpora(folder)
        file, together = mixture_file(folder), Run()
        nodes = build_nodes(load_config(file), file)
        with serve(nodes) as server:  # as `mixserve serve mixture.yaml` does
            for start, count in enumerate(arguments.processes, 1):
                kill_at = steps * start // starts // INTERVAL * INTERVAL + INTERVAL // 2 if start < starts else None
                go_on(together, count, server.address, folder / "checkpoints", steps, kill_at)
        single = alone(nodes, folder / "alone", steps)
    if together.digests != single.digests:
        sys.exit("the batches differ")
    furthest = max(abs(together.losses[step] / loss - 1) for step, loss in single.losses.items())
    if furthest > TOLERANCE:
        sys.exit(f"the losses differ by up to {furthest:.1e} of themselves")
    said = f"{steps} global batches, {together.repeated} of them twice, are those of one process; "
    said += f"losses differ by {furthest:.0e} of themselves at most"
    print(f"{said}: digest {single.digest()[:16]}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
