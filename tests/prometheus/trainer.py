"""A trainer that counts what it reads, and lets Prometheus read its client's metrics.

`python -m tests.prometheus.trainer ADDRESS NUMBER OF`. Prints where its metrics are. Reads until a line comes on its
standard input, then prints what it has counted, as JSON, and ends with its standard input.
"""

import json
import select
import sys
import time
from itertools import count

from mixserve_client import MixClient
from mixserve_client.prometheus import serve_metrics

BATCH_SIZE, BATCHES = 256, 250  # of all trainers together; of an iterator
STEP_S = 0.02


def main() -> None:
    address, number, of = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    counted = {"batches": 0, "records": 0, "bytes": 0, "waited_s": 0.0, "lasted_s": 0.0}
    by_source = dict[str, int]()
    with MixClient.connect(address, name=f"trainer-{number}") as client, serve_metrics(client, 0) as metrics:
        leaves = client.mixture().leaves
        print(metrics.address, flush=True)
        # All that an iterator requests is read, so that both ends count the same.
        for first in count(0, BATCH_SIZE * BATCHES):
            batches = client.batches(
                BATCH_SIZE,
                key=1,
                start=first,
                stop=first + BATCH_SIZE * BATCHES,
                shard=(number, of),
                provenance=True,
            )
            began = None  # when the first batch came: until then the iterator starts, and does not wait
            while True:
                came = time.perf_counter()
                batch = next(batches, None)
                now = time.perf_counter()
                if batch is None:
                    break
                if began is None:
                    began = now
                else:
                    counted["waited_s"] += now - came
                counted["batches"] += 1
                counted["records"] += len(batch["source_id"])
                counted["bytes"] += sum(array.nbytes for array in batch.values())
                for source, name in enumerate(leaves):
                    by_source[name] = by_source.get(name, 0) + int((batch["source_id"] == source).sum())
                time.sleep(STEP_S)
            assert began is not None
            counted["lasted_s"] += time.perf_counter() - began
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        sys.stdin.readline()
        print(json.dumps(counted | {"by_source": by_source}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
