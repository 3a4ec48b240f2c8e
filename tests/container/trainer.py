"""A trainer in the client's image: reads batches until SIGTERM, then prints how many, and their digest, as JSON.

The environment variable TRAINER has the arguments of `MixClient.connect`, and with `batches` how many it reads at most.
"""

import hashlib
import json
import os
import signal
import time

from mixserve_client import MixClient

STEP_S = 0.002  # about the pace of a trainer: without it there would be thousands of batches to compare
told = list[int]()
signal.signal(signal.SIGTERM, lambda number, _: told.append(number))

options = json.loads(os.environ["TRAINER"])
most = options.pop("batches", None)
with MixClient.connect(**options) as client:
    batches, step, digest = client.batches(batch_size=8, key=7), 0, ""
    while not told and step != most:
        batch = next(batches)
        digest = hashlib.sha256(digest.encode() + batch["tokens"].tobytes()).hexdigest()
        step += 1
        if step % 20 == 0:
            print(f"step {step}", flush=True)
        time.sleep(STEP_S)
    print(json.dumps({"steps": step, "digest": digest, "transport": client.transport}), flush=True)
