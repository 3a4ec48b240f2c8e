"""An example of a trainer: it reads, prints how it gets on, checks what it reads, and goes on where it was.

RANK and WORLD_SIZE say which rows of each batch are its own. SIGTERM saves the position, and ends it with 0.
"""

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from mixserve_client import MixClient
from mixserve_client.prometheus import serve_metrics

BATCH_SIZE, KEY = 64, 7
SAVE_EVERY, CHECK_EVERY = 100, 250  # steps
rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
steps = int(os.environ["TRAINER_STEPS"])
step_s = float(os.environ.get("TRAINER_STEP_S", "0.02"))  # what a step of your model takes
checkpoint = Path(os.environ["TRAINER_CHECKPOINTS"]) / f"rank-{rank}.json"

told_to_stop = threading.Event()


def save(step: int, digest: str, data: dict) -> None:
    """Write it beside the old one and rename it, so that a kill leaves a whole file."""
    new = checkpoint.with_suffix(".new")
    new.write_text(json.dumps({"step": step, "digest": digest, "data": data}))
    new.rename(checkpoint)


signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
client = MixClient.connect(
    os.environ["MIXSERVE_ADDRESS"].split(","),
    tls=os.environ["MIXSERVE_CA"],
    token_file=os.environ["MIXSERVE_TOKEN_FILE"],
    name=f"trainer-{rank}",
)
with client, serve_metrics(client, 9091, "0.0.0.0"):
    batches = client.batches(BATCH_SIZE, KEY, shard=(rank, ranks))
    step, digest = 0, ""
    if checkpoint.exists():
        saved = json.loads(checkpoint.read_text())  # and load the model
        step, digest = saved["step"], saved["digest"]
        batches.set_state(saved["data"])
        print(f"goes on after step {step}", flush=True)
    first, began, waited, longest = step, time.perf_counter(), 0.0, 0.0
    while step < steps and not told_to_stop.is_set():
        asked = time.perf_counter()
        batch = next(batches)
        now = time.perf_counter()
        if step == first:
            began = now  # the servers may have started with it, which is no wait of a run
        else:
            waited, longest = waited + now - asked, max(longest, now - asked)
        digest = hashlib.sha256(digest.encode() + batch["tokens"].tobytes()).hexdigest()
        time.sleep(step_s)  # in place of a training step
        if step % CHECK_EVERY == 0:
            # Whichever replica answers, and however often: a position has the same bytes.
            again = client.get_batch_at(step * BATCH_SIZE, BATCH_SIZE, key=KEY)["tokens"]
            first, end = rank * BATCH_SIZE // ranks, (rank + 1) * BATCH_SIZE // ranks
            if not np.array_equal(again[first:end], batch["tokens"]):
                raise SystemExit(f"step {step} is not what it was")
        step += 1
        if step % SAVE_EVERY == 0:
            save(step, digest, batches.get_state())
            share = waited / (time.perf_counter() - began)
            told = f"waited {share:.1%}, at most {longest:.2f} s, digest {digest[:16]}, {client.transport}"
            print(f"step {step}: {told}", flush=True)
            began, waited, longest = time.perf_counter(), 0.0, 0.0
    save(step, digest, batches.get_state())
    print(f"ended after step {step}: digest {digest[:16]}", flush=True)
