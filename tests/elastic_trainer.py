"""One process of a data-parallel trainer: reads its shard, in step with the others, and may be killed at any time."""

import json
import sys
from pathlib import Path

from mixserve_client import MixClient

STEPS, BATCH_SIZE, KEY = 300, 13, 5  # 2, 3 and 4 processes share this batch unevenly
SAVE_INTERVAL = 7
CHECKPOINT = "checkpoint.json"


def main() -> None:
    """`folder rows index count address`: write the rows of every step as a line of the file `rows`.

    A line of standard input says that all processes have made the last step, as an all-reduce would; a line of standard
    output says that this process has made the next. The first process saves the checkpoint from which all start.
    """
    folder, rows, (index, count), address = Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:5]), sys.argv[5]
    checkpoint = folder / CHECKPOINT
    with MixClient.connect(address) as client, (folder / rows).open("w") as journal:
        batches = client.batches(BATCH_SIZE, KEY, stop=STEPS * BATCH_SIZE, shard=(index, count), provenance=True)
        step = 0
        if checkpoint.exists():
            saved = json.loads(checkpoint.read_text())
            step = saved["step"]
            batches.set_state(saved["iterator"])
        for _ in sys.stdin:
            if index == 0 and step % SAVE_INTERVAL == 0:
                beside = folder / "checkpoint.part"
                beside.write_text(json.dumps({"step": step, "iterator": batches.get_state()}))
                beside.replace(checkpoint)
            batch = next(batches, None)
            if batch is None:
                break
            journal.write(json.dumps([step, {name: array.tolist() for name, array in batch.items()}]) + "\n")
            journal.flush()
            print(step, flush=True)
            step += 1


if __name__ == "__main__":
    main()
