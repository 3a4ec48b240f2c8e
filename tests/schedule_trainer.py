"""A trainer that changes its weights, journals the digest of every batch, and may be killed at any time."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixserve_client import MixClient

STEPS, BATCH_SIZE, KEY = 120, 24, 11
CHANGES = {31: (0.1, 0.9), 62: (0.5, 0.5), 93: (0.95, 0.05)}  # weights by the step before which they are scheduled
SAVE_INTERVAL = 7
JOURNAL, STATE = "journal.jsonl", "state.json"

Entry = dict[str, Any]


def train(client: MixClient, prefetch: int, state: Entry | None, save: Callable[[Entry], None]) -> Iterator[Entry]:
    """Yields the journal's entry of each step, from `state` on if there is one."""
    batches = client.batches(BATCH_SIZE, KEY, stop=STEPS * BATCH_SIZE, provenance=True, prefetch=prefetch)
    step = 0
    if state is not None:
        step = state["step"]
        batches.set_state(state["iterator"])
    while step < STEPS:
        if step in CHANGES:
            batches.schedule_weights(CHANGES[step])
        position = batches.get_state()["position"]
        batch = next(batches)
        yield {"step": step, "position": position, "digest": digest(batch)}
        step += 1
        if step % SAVE_INTERVAL == 0 or step == STEPS:
            save({"step": step, "iterator": batches.get_state()})


def digest(batch: dict[str, np.ndarray]) -> str:
    """The digest of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, array in sorted(batch.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return found.hexdigest()


def main(folder: Path, prefetch: int, *addresses: str) -> None:
    """Train in `folder`, from the servers at `addresses`.

    Standard input says, line by line, up to which step the trainer may continue.
    """
    state = json.loads((folder / STATE).read_text()) if (folder / STATE).exists() else None

    def save(state: Entry) -> None:
        beside = folder / "state.part"
        beside.write_text(json.dumps(state))
        beside.replace(folder / STATE)

    with MixClient.connect(addresses, patience_s=60) as client, (folder / JOURNAL).open("a") as journal:
        journal.write("\n")  # ends the line that a killed trainer may have left unfinished
        allowed = 0
        for entry in train(client, prefetch, state, save):
            print(json.dumps(entry), file=journal, flush=True)
            os.fsync(journal.fileno())
            while entry["step"] >= allowed:
                allowed = int(sys.stdin.readline())
