"""Python's collector leaves alone what a server process keeps: it would hold up all calls while it looks there."""

import gc
import shutil
import time

import jax
import numpy as np

from mixserve_client import MixClient
from tests.processes import DEADLINE_S, server_process


class Frozen:
    """Each record is the number of objects that the collector of this process leaves alone."""

    content_id = "is not read for the fingerprint"

    def __len__(self) -> int:
        return 10

    def element_spec(self):
        return {"frozen": jax.ShapeDtypeStruct((), np.int64)}

    def take(self, record_ids):
        return {"frozen": np.full(len(record_ids), gc.get_freeze_count(), np.int64)}


def test_a_server_process_is_not_collected(tmp_path):
    shutil.copy(__file__, tmp_path / "frozen.py")
    config = tmp_path / "mixture.yaml"
    config.write_text(
        "mixtures: {m: {sources: {objects: {kind: factory, function: 'frozen:Frozen', weight: 1}}}}\nserver: {port: 0}"
    )
    with server_process(config) as server, MixClient.connect(server.address()) as client:
        deadline = time.monotonic() + DEADLINE_S
        start = 0
        while client.get_batch_at(start, 1, key=7)["frozen"][0] < 100_000:  # it serves a moment before
            assert time.monotonic() < deadline
            start += 1
