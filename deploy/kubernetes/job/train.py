"""The data part of a trainer: batches from mixserve, resumed after its last checkpoint."""

import hashlib
import json
import os
from pathlib import Path

from mixserve_client import MixClient

steps = int(os.environ["TRAINER_STEPS"])
checkpoint = Path(os.environ["TRAINER_CHECKPOINT"])
client = MixClient.connect(
    os.environ["MIXSERVE_ADDRESS"].split(","),  # one server, or replicas
    tls=os.environ.get("MIXSERVE_CA"),
    token_file=os.environ.get("MIXSERVE_TOKEN_FILE"),
    shared_memory=os.environ.get("MIXSERVE_SHARED_MEMORY", True),
)
batches = client.batches(batch_size=64, key=int(os.environ["MIXSERVE_KEY"]))
step, digest = 0, ""
if checkpoint.exists():
    saved = json.loads(checkpoint.read_text())  # and load the model
    step, digest = saved["step"], saved["digest"]
    batches.set_state(saved["data"])
while step < steps:
    batch = next(batches)
    digest = hashlib.sha256(digest.encode() + batch["tokens"].tobytes()).hexdigest()  # in place of a training step
    step += 1
    if step % 100 == 0 or step == steps:
        # Written beside it, and renamed, so that a kill leaves a whole file.
        new = checkpoint.with_suffix(".new")
        new.write_text(json.dumps({"step": step, "digest": digest, "data": batches.get_state()}))
        new.rename(checkpoint)
        print(f"step {step}: {digest[:16]}, {client.transport}", flush=True)
