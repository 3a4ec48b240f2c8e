"""A language model in Flax NNX, trained on a mixture of two texts, with Orbax checkpoints of model, optimizer and data.

    python examples/flax_language_model.py [--steps 100]

A trainer needs only `train`. The rest writes two texts that every Python contains, serves them, trains once with a
SIGKILL of the trainer and once without, and compares all losses and the final parameters, bit for bit.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
from flax import nnx

from mixserve import serve
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.corpus import mixture_file, write_corpora
from mixserve_client import MixClient
from mixserve_client.jax import device_batches

BATCH_SIZE, KEY = 8, 7
INTERVAL = 20  # steps between checkpoints
WIDTH, HEADS, BLOCKS, LENGTH = 64, 4, 2, 128
NEWEST = ocp.training.preservation_policies.LatestN(2)


def train(address: str, folder: Path, steps: int, report: Callable[[int, Any, Any], None]) -> "LanguageModel":
    """Train a model on the server's mixture, from the newest checkpoint in `folder` on if there is one."""
    model = LanguageModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(optax.warmup_cosine_decay_schedule(0, 4e-3, 20, 400)), wrt=nnx.Param)
    with (
        MixClient.connect(address) as client,
        device_batches(client.batches(BATCH_SIZE, KEY, stop=steps * BATCH_SIZE, provenance=True)) as batches,
        ocp.training.Checkpointer(folder, preservation_policy=NEWEST) as checkpoints,
    ):

        def parts() -> dict[str, Any]:
            return {"model": nnx.state(model), "optimizer": nnx.state(optimizer), "data": batches}

        done = 0
        if checkpoints.latest is not None:
            done = checkpoints.latest.step
            saved = checkpoints.load_checkpointables(done, parts())  # sets `batches` to where it was saved
            nnx.update(model, saved["model"])
            nnx.update(optimizer, saved["optimizer"])
        for step, batch in enumerate(batches, done + 1):  # arrays on the device; the next two are on their way
            losses = learn(model, optimizer, batch["tokens"])
            if step % INTERVAL == 0:
                checkpoints.save_checkpointables(step, parts())  # all three, or nothing
            report(step, losses, batch["source_id"])
    return model


@nnx.jit
def learn(model: "LanguageModel", optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
    """Learn from rows of bytes; the loss of each row before that, in bits per byte."""

    def mean_loss(model: "LanguageModel") -> tuple[jax.Array, jax.Array]:
        tokens_read, tokens_next = tokens[:, :-1].astype(jnp.int32), tokens[:, 1:].astype(jnp.int32)
        nats = optax.softmax_cross_entropy_with_integer_labels(model(tokens_read), tokens_next)
        bits = nats.mean(axis=1) / math.log(2)
        return bits.mean(), bits

    gradients, bits = nnx.grad(mean_loss, has_aux=True)(model)
    optimizer.update(model, gradients)
    return bits


class LanguageModel(nnx.Module):
    """A small transformer: logits of the next byte at every position."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(256, WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(BLOCKS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens) + self.places(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nnx.Module):
    """Causal attention, then a perceptron at each position."""

    def __init__(self, rngs: nnx.Rngs):
        self.attention_norm, self.perceptron_norm = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.widen, self.narrow = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.narrow(jax.nn.gelu(self.widen(self.perceptron_norm(x))))


def digest(model: LanguageModel) -> str:
    """The SHA-256 of all parameters with their names."""
    parameters = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        parameters.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        parameters.update(np.asarray(leaf).tobytes())
    return parameters.hexdigest()


class Run:
    """The reports of one folder's trainers: the losses and sources of each step's rows, and the final digest."""

    def __init__(self, sources: list[str]):
        self.sources = sources
        self.steps: dict[int, dict[str, Any]] = {}
        self.repeated = 0
        self.digest = ""

    def note(self, told: dict[str, Any]) -> None:
        """Add a trainer's report. A repeated step must equal the first one."""
        step = told["step"]
        if "digest" in told:
            self.digest = told["digest"]
            return
        self.repeated += step in self.steps
        if self.steps.setdefault(step, told) != told:
            sys.exit(f"step {step} is another one than before the trainer was killed")
        if step % INTERVAL == 0:
            print(f"  step {step:>4}" + "".join(f"{name:>8} {self.mean(step, name):.3f}" for name in self.sources))

    def mean(self, step: int, source: str) -> float:
        """The mean loss of a source's rows in the interval that ends with `step`."""
        told = [self.steps[step - before] for before in range(INTERVAL)]
        losses, sources = (np.array([one[name] for one in told]) for name in ("losses", "sources"))
        return float(losses[sources == self.sources.index(source)].mean())


def go_on(run: Run, address: str, folder: Path, steps: int, kill_at: int | None = None) -> None:
    """Start a trainer, and kill it after the step `kill_at`; the trainer waits for a line after each step."""
    command = [sys.executable, __file__, "--steps", str(steps), "--train", address, str(folder)]
    # On CPUs the same program gives the same bits; accelerators may need flags for that.
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            for line in process.stdout:
                run.note(told := json.loads(line))
                if told["step"] == kill_at:
                    print(f"  step {kill_at:>4}    trainer killed (SIGKILL)")
                    return
                os.write(process.stdin.fileno(), b"\n")
            if process.wait():
                sys.exit(f"the trainer failed with exit status {process.returncode}")
        finally:
            process.kill()


def tell(**what: Any) -> None:
    """Report to the parent process, and wait for its line."""
    print(json.dumps(what), flush=True)
    sys.stdin.readline()


def main() -> None:
    """Run everything, or, with --train, only the trainer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100, help=f"a multiple of {INTERVAL}, at least {2 * INTERVAL}")
    parser.add_argument("--train", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps
    if steps % INTERVAL or steps < 2 * INTERVAL:
        parser.error(f"--steps must be a multiple of {INTERVAL} and at least {2 * INTERVAL}, got {steps}")
    if arguments.train:
        address, folder = arguments.train
        model = train(
            address,
            Path(folder),
            steps,
            lambda step, losses, sources: tell(step=step, losses=losses.tolist(), sources=sources.tolist()),
        )
        tell(step=steps, digest=digest(model))
        return
    sys.stdout.reconfigure(line_buffering=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flax-language-model-") as name:
        folder = Path(name)
        # A restarted process need not compile again.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        corpora = write_corpora(folder)
        for corpus in corpora:
            print(f"{corpus.name}: {corpus.size_bytes / 1e6:.1f} MB, {corpus.share:.0%} of the rows")
        killed, quiet = (Run([corpus.name for corpus in corpora]) for _ in range(2))
        file = mixture_file(folder)
        with serve(build_nodes(load_config(file), file)) as server:  # as `mixserve serve mixture.yaml` does
            print("with a kill, losses in bits per byte:")
            go_on(
                killed,
                server.address,
                folder / "killed",
                steps,
                kill_at=steps // 2 // INTERVAL * INTERVAL + INTERVAL // 2,
            )
            go_on(killed, server.address, folder / "killed", steps)
            print("quietly:")
            go_on(quiet, server.address, folder / "quiet", steps)
    if killed.steps != quiet.steps or killed.digest != quiet.digest:
        sys.exit("the runs differ")
    said = (
        f"{steps} steps, {killed.repeated} of them made twice; all losses and the parameters are those of the quiet run"
    )
    print(f"{said}: digest {killed.digest[:16]}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
