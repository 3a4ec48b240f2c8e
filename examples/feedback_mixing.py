"""Weights that follow the loss per source, in a run that survives kills and still gives the same bits.

The rule is DoReMi's (Xie et al. 2023): a source's weight grows with its excess loss, the model's loss beyond that of a
reference, by exponentiated-gradient steps, and is smoothed with the prior; our reference is the best bigram model of
each source alone. ADO (Jiang et al. 2024) lets the weights follow each source's learning speed instead: for that,
replace the body of `next_weights`; nothing else changes.

    python examples/feedback_mixing.py [--steps 400] [--plot feedback_mixing.png]

A trainer needs only `train`. The rest generates three sources, serves them, trains once without kills and once with
SIGKILLs of trainer and server, and compares all batches, all weights and the final models, bit for bit.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixserve_client import MixClient

BATCH_SIZE, KEY = 32, 7
INTERVAL = 10  # steps between changes of the weights, each followed by a checkpoint
STEP_SIZE, SMOOTHING = 0.5, 0.1
AHEAD = 4  # steps that a trainer may be ahead of its last report
RECORDS, SEQUENCE_LENGTH, SPREAD = 2000, 65, 6.0
# Tokens that a source uses, and its prior share: more tokens mean more pairs to learn, which takes longer.
SOURCES = {"easy": (16, 0.5), "medium": (64, 0.3), "hard": (256, 0.2)}
VOCABULARY = sum(tokens for tokens, _ in SOURCES.values())


def train(address: str, folder: Path, steps: int, reference: np.ndarray) -> Iterator[int]:
    """Train a model on the server's mixture, from the checkpoint in `folder` if there is one; yields each step."""
    with MixClient.connect(address) as client:
        mixture = client.mixture()
        prior = np.array(mixture.weights) / sum(mixture.weights)
        batches = client.batches(BATCH_SIZE, KEY, stop=steps * BATCH_SIZE, provenance=True)
        run = Run.new(len(prior))
        if (folder / "checkpoint.npz").exists():
            run = Run.load(folder / "checkpoint.npz")
            batches.set_state(run.iterator)  # position and all weights so far: the server need not remember anything
        weights = run.weights[-1] if len(run.weights) else prior
        for batch in batches:
            losses = learn(run.model, batch["tokens"])
            run.loss_sums += np.bincount(batch["source_id"], losses, minlength=len(prior))
            run.row_counts += np.bincount(batch["source_id"], minlength=len(prior))
            run.step, run.digest = run.step + 1, chain(run.digest, batch)
            if run.step % INTERVAL == 0:
                loss = run.loss_sums / np.maximum(run.row_counts, 1)
                weights = next_weights(weights, loss - reference, prior)
                batches.schedule_weights(weights.tolist())  # from the next batch on
                run.note(loss, weights)
                run.iterator = batches.get_state()
                run.save(folder / "checkpoint.npz")
            yield run.step


def next_weights(weights: np.ndarray, excess: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """DoReMi's step: weights * exp(step size * excess loss), normalised, smoothed with the prior."""
    grown = weights * np.exp(STEP_SIZE * np.maximum(excess, 0))
    return (1 - SMOOTHING) * grown / grown.sum() + SMOOTHING * prior


def learn(model: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The bigram model's loss of every row, in nats per token, before `model` counts the row's pairs."""
    before, after = tokens[:, :-1].astype(np.int64), tokens[:, 1:].astype(np.int64)
    chances = (model[before, after] + 0.01) / (model.sum(axis=1)[before] + 0.01 * VOCABULARY)
    np.add.at(model, (before, after), 1)
    return -np.log(chances).mean(axis=1)


@dataclass
class Run:
    """All that a trainer must remember, in one file; after a kill the file is either the old one or the new one."""

    step: int
    digest: str  # of all batches so far
    iterator: dict[str, Any]
    model: np.ndarray  # how often each token followed each other token
    loss_sums: np.ndarray  # per source, of the rows since the last change of the weights
    row_counts: np.ndarray
    losses: np.ndarray  # one row per change of the weights
    weights: np.ndarray

    @classmethod
    def new(cls, sources: int) -> "Run":
        """A run that has not begun."""
        model, none = np.zeros((VOCABULARY, VOCABULARY), np.int64), np.zeros((0, sources))
        return cls(0, "", {}, model, np.zeros(sources), np.zeros(sources, np.int64), none, none)

    def note(self, loss: np.ndarray, weights: np.ndarray) -> None:
        """Record a change of the weights, and start new sums of losses."""
        self.losses, self.weights = np.vstack([self.losses, loss]), np.vstack([self.weights, weights])
        self.loss_sums, self.row_counts = np.zeros_like(self.loss_sums), np.zeros_like(self.row_counts)

    def save(self, path: Path) -> None:
        """Replace the file at `path` atomically."""
        beside = path.with_suffix(".part")
        with beside.open("wb") as file:
            np.savez(file, **(vars(self) | {"iterator": json.dumps(self.iterator)}))
            file.flush()
            # After a crash of the machine, a rename without fsync may leave an empty file.
            os.fsync(file.fileno())
        beside.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Run":
        """Load what was saved at `path`."""
        with np.load(path) as saved:
            arrays = dict(saved)
        step, digest, iterator = (arrays.pop(name).item() for name in ("step", "digest", "iterator"))
        return cls(step, digest, json.loads(iterator), **arrays)

    def differences(self, other: "Run") -> list[str]:
        """The names of the fields that differ in the other run, compared to the last bit."""
        left, right = ({name: _bits(value) for name, value in vars(run).items()} for run in (self, other))
        return [name for name in left if left[name] != right[name]]


def chain(digest: str, batch: dict[str, np.ndarray]) -> str:
    """The digest of all earlier batches and `batch`."""
    link = hashlib.sha256(digest.encode())
    for name in sorted(batch):
        link.update(f"{name} {batch[name].dtype} {batch[name].shape}".encode())
        link.update(batch[name].tobytes())
    return link.hexdigest()


def write_sources(folder: Path) -> np.ndarray:
    """Write mixture.yaml and its token files; returns the loss of the best bigram model of each source alone."""
    lines = ["mixtures:", "  train:", "    sampling: epoch", "    block_size: 64", "    sources:"]
    rng, first, reference = np.random.default_rng(0), 0, []
    for name, (count, share) in SOURCES.items():
        # Walks over the tokens, all one step at a time: from each token on, some others are likelier.
        chances = rng.dirichlet(np.full(count, SPREAD / count), count).cumsum(axis=1)
        rows = rng.integers(0, count, (RECORDS, SEQUENCE_LENGTH))
        for column in range(1, SEQUENCE_LENGTH):
            passed = chances[rows[:, column - 1]] < rng.random((RECORDS, 1))
            rows[:, column] = np.minimum(passed.sum(axis=1), count - 1)
        pairs = np.zeros((count, count))
        np.add.at(pairs, (rows[:, :-1], rows[:, 1:]), 1)
        reference.append(entropy(pairs) - entropy(pairs.sum(axis=1)))
        (first + rows).astype(np.uint16).tofile(folder / f"{name}.bin")
        settings = f"path: {name}.bin, dtype: uint16, sequence_length: {SEQUENCE_LENGTH}, weight: {share}"
        lines.append(f"      {name}: {{kind: tokens, {settings}}}")
        first += count
    (folder / "mixture.yaml").write_text("\n".join(lines) + "\n")
    return np.array(reference)


def entropy(counts: np.ndarray) -> float:
    """The entropy, in nats, of these counts."""
    chances = counts[counts > 0] / counts.sum()
    return float(-(chances * np.log(chances)).sum())


class Server:
    """`mixserve serve` in a process of its own, always at the same address."""

    def __init__(self, folder: Path):
        # A fixed port, so that a trainer finds the restarted server.
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "mixserve", "serve", str(folder / "mixture.yaml"), "--port", str(port)]
        self._log = folder / "server.log"
        self.start()

    def start(self) -> None:
        """Start the server; it remembers nothing of an earlier one."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.wait()


@contextmanager
def trainer(address: str, folder: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `train` and prints its steps; killed at the end of the block if it still runs."""
    command = [sys.executable, __file__, "--steps", str(steps), "--train", address, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            allow_steps(process, AHEAD)
            yield process
        finally:
            process.kill()


def allow_steps(process: subprocess.Popen[str], steps: int) -> None:
    """Let a trainer make `steps` more steps, if it still runs. Otherwise it would finish before we could kill it."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        os.write(process.stdin.fileno(), b"\n" * steps)


def train_with_kills(server: Server, folder: Path, steps: int, kills: dict[int, str]) -> Run:
    """The run of a trainer that makes `steps` steps; `kills` says which processes are killed at which steps."""
    folder.mkdir()
    left = sorted(kills.items())
    while True:
        with trainer(server.address, folder, steps) as process:
            for line in process.stdout or ():
                if left and int(line) >= left[0][0]:
                    _, victims = left.pop(0)
                    if "server" in victims:
                        server.kill()
                        server.start()
                    if "trainer" in victims:
                        process.kill()
                    print(f"  step {int(line)}: {victims} killed (SIGKILL), started again")
                allow_steps(process, 1)
            status = process.wait()
        if status == 0:
            return Run.load(folder / "checkpoint.npz")
        if status != -signal.SIGKILL:
            sys.exit(f"the trainer failed with exit status {status}")


def table(run: Run, reference: np.ndarray) -> str:
    """Shares and losses per source, as text."""
    headings = ("prior share", "highest", "final share", "first loss", "final loss", "reference")
    lines = [f"{'source':<8}" + "".join(f"{heading:>13}" for heading in headings)]
    for place, (name, (_, prior)) in enumerate(SOURCES.items()):
        weights, losses = run.weights[:, place], run.losses[:, place]
        shares = f"{prior:>13.1%}{weights.max():>13.1%}{weights[-1]:>13.1%}"
        lines.append(f"{name:<8}{shares}{losses[0]:>13.3f}{losses[-1]:>13.3f}{reference[place]:>13.3f}")
    return "\n".join(lines)


def plot(run: Run, reference: np.ndarray, path: Path) -> None:
    """Draw shares and excess losses by step."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: it needs matplotlib")
        return
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    shares, excess = figure.subplots(1, 2)
    steps = INTERVAL * np.arange(1, len(run.weights) + 1)
    for place, name in enumerate(SOURCES):
        shares.plot(steps, run.weights[:, place], label=name)
        excess.plot(steps, run.losses[:, place] - reference[place], label=name)
    shares.set(title="share of the batches", xlabel="step", ylim=(0, None))
    excess.set(title="loss beyond the reference, nats per token", xlabel="step")
    shares.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run everything, or, with --train, only the trainer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help=f"a multiple of {INTERVAL}, at least {8 * INTERVAL}")
    parser.add_argument("--plot", type=Path, help="where to draw a picture of shares and losses")
    parser.add_argument("--train", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps
    if steps % INTERVAL or steps < 8 * INTERVAL:
        parser.error(f"--steps must be a multiple of {INTERVAL} and at least {8 * INTERVAL}, got {steps}")
    if arguments.train:
        address, folder = arguments.train[0], Path(arguments.train[1])
        for step in train(address, folder, steps, np.load(folder.parent / "reference.npy")):
            print(step, flush=True)
            sys.stdin.readline()
        return
    sys.stdout.reconfigure(line_buffering=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="feedback-mixing-") as name:
        folder = Path(name)
        reference = write_sources(folder)
        np.save(folder / "reference.npy", reference)
        server = Server(folder)
        try:
            print("with kills:")
            kills = {steps // 5 + 3: "server", 2 * steps // 5 + 5: "trainer", 3 * steps // 5 + 4: "trainer and server"}
            killed = train_with_kills(server, folder / "killed", steps, kills)
            print("quietly:")
            server.kill()
            server.start()
            quiet = train_with_kills(server, folder / "quiet", steps, {})
        finally:
            server.kill()
    print(table(killed, reference))
    if arguments.plot:
        plot(killed, reference, arguments.plot)
    differences = killed.differences(quiet)
    if killed.step != steps or differences:
        sys.exit(f"the runs differ in {', '.join(differences) or 'their length'}")
    said = f"{steps} batches, {len(killed.weights)} changes of weights and the model are those of the quiet run"
    print(f"{said}: digest {killed.digest[:16]}; {time.monotonic() - began:.0f} s")


def _bits(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


if __name__ == "__main__":
    main()
