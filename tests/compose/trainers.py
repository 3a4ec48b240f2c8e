"""Four trainers of one run, as containers: what they print, and what they would have read without any server."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.compose.engine import Engine

RANKS = 4
SERVICES = ("trainer", *(f"trainer-{rank}" for rank in range(1, RANKS)))
BATCH_SIZE, KEY = 64, 7  # of deploy/compose/train.py
_STEP = re.compile(r"^(?:ended after )?step (\d+):.* digest (\w+)", re.MULTILINE)
_WAIT = re.compile(r"at most ([\d.]+) s")


def more_trainers(deploy: Path) -> str:
    """A second file for Compose: the trainer of compose.yaml becomes the first of four."""
    trainer: dict[str, Any] = yaml.safe_load((deploy / "compose.yaml").read_text())["services"]["trainer"]
    del trainer["build"]
    services: dict[str, Any] = {"trainer": {"environment": {"WORLD_SIZE": str(RANKS)}}}
    for rank, service in enumerate(SERVICES[1:], start=1):
        environment = trainer["environment"] | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        services[service] = trainer | {"environment": environment}
    return yaml.safe_dump({"services": services})


def steps(engine: Engine, service: str) -> dict[int, str]:
    """The digests that a trainer has printed, by the number of steps; a step that was printed twice was the same."""
    found = dict[int, str]()
    for step, digest in _STEP.findall(engine.log(service)):
        assert found.setdefault(int(step), digest) == digest, (service, step)
    return found


def longest_wait_s(engine: Engine, service: str) -> float:
    """For a batch, in seconds."""
    return max(map(float, _WAIT.findall(engine.log(service))), default=0.0)


def expected(config: Path, rank: int, at: set[int]) -> dict[int, str]:
    """The digests of a trainer after so many steps, from the node in this process."""
    found, digest = dict[int, str](), ""
    with local_client(build_nodes(load_config(config), config)) as client:
        batches = client.batches(BATCH_SIZE, KEY, shard=(rank, RANKS))
        for step in range(1, max(at) + 1):
            digest = hashlib.sha256(digest.encode() + next(batches)["tokens"].tobytes()).hexdigest()
            if step in at:
                found[step] = digest[:16]
    return found
