"""A language model in PyTorch, trained on a mixture of two texts, with checkpoints of model, optimizer and data.

    python examples/torch_language_model.py [--steps 100]

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
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torchdata.stateful_dataloader import StatefulDataLoader

from mixserve import serve
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.corpus import mixture_file, write_corpora
from mixserve_client import MixClient
from mixserve_client.torch import RemoteIterableDataset

BATCH_SIZE, KEY = 8, 7
INTERVAL = 20  # steps between checkpoints
WIDTH, HEADS, BLOCKS, LENGTH = 64, 4, 2, 128


def train(address: str, folder: Path, steps: int, report: Callable[[int, Any, Any], None]) -> "LanguageModel":
    """Train a model on the server's mixture, from the checkpoint in `folder` if there is one."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # several threads would add up in another order
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with MixClient.connect(address) as client:
        dataset = RemoteIterableDataset(
            client, batch_size=BATCH_SIZE, key=KEY, stop=steps * BATCH_SIZE, provenance=True
        )
        loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
        folder.mkdir(exist_ok=True)
        done, checkpoint = 0, folder / "checkpoint.pt"
        if checkpoint.exists():
            saved = torch.load(checkpoint)
            done = saved["step"]
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["data"])  # each worker resumes after this step
        for step, batch in enumerate(loader, done + 1):  # tensors
            losses = learn(model, optimizer, batch["tokens"])
            if step % INTERVAL == 0:
                parts = {"model": model, "optimizer": optimizer, "data": loader}
                save(checkpoint, {"step": step} | {name: part.state_dict() for name, part in parts.items()})
            report(step, losses, batch["source_id"])
    return model


def learn(model: "LanguageModel", optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> torch.Tensor:
    """Take a step on rows of bytes; returns the loss of each row before the step, in bits per byte."""
    tokens = tokens.long()
    logits = model(tokens[:, :-1])
    nats = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    bits = nats.mean(dim=1) / math.log(2)
    optimizer.zero_grad()
    bits.mean().backward()
    optimizer.step()
    return bits.detach()


def save(path: Path, what: dict[str, Any]) -> None:
    """Replace the file at `path` atomically: after a kill it is either the old checkpoint or the new one."""
    beside = path.with_suffix(".part")
    torch.save(what, beside)
    beside.replace(path)


class LanguageModel(nn.Module):
    """A small transformer: logits of the next byte at every position."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal attention, then a perceptron at each position."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.into_heads, self.out_of_heads = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.into_heads(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out_of_heads(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.widen(self.perceptron_norm(x))))


def digest(model: LanguageModel) -> str:
    """The SHA-256 of all parameters with their names."""
    parameters = hashlib.sha256()
    for name, parameter in model.named_parameters():
        parameters.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        parameters.update(parameter.detach().numpy().tobytes())
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
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
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
        # torchdata deprecates `set_vital`, and calls it itself.
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
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
    with tempfile.TemporaryDirectory(prefix="torch-language-model-") as name:
        folder = Path(name)
        corpora = write_corpora(folder)
        for corpus in corpora:
            print(f"{corpus.name}: {corpus.size_bytes / 1e6:.1f} MB, {corpus.share:.0%} of the rows")
        killed, quiet = (Run([corpus.name for corpus in corpora]) for _ in range(2))
        file = mixture_file(folder)
        with serve(build_nodes(load_config(file), file)) as server:  # as `mixserve serve mixture.yaml` does
            print("with a kill, losses in bits per byte:")
            kill_at = steps // 2 // INTERVAL * INTERVAL + INTERVAL // 2
            go_on(killed, server.address, folder / "killed", steps, kill_at)
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
