"""A server of a small mixture that stores its sessions in a folder, made to be killed.

It prints `ready` when it could start, starts at the first line of its standard input, prints `serving`, and ends with
its standard input. So the next one is on standby while this one is killed, and tests do not wait for imports.
"""

import sys

import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from tests.processes import ONE_SIZE

MIXTURE = "train"


def make_node() -> MixDataSourcesNode:
    """The served node: an epoch of two sources has some ten batches."""
    rng = np.random.default_rng(0)
    sources = [
        ArraySource(
            {
                "tokens": rng.integers(0, 1 << 30, (length, 8), np.int32),
                "image": rng.normal(size=(length, 3, 2)).astype(np.float32),
            },
            name=name,
        )
        for name, length in (("web", 40), ("code", 24))
    ]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3), plan_sizes=ONE_SIZE), sources)


def main(folder: str, address: str) -> None:
    node = make_node()
    print("ready", flush=True)
    if sys.stdin.readline():
        server = serve({MIXTURE: node}, address, state_dir=folder, shared_memory=False)
        print("serving", flush=True)
        sys.stdin.read()
        server.stop(grace_s=0)
