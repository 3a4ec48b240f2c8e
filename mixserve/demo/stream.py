"""A client -> the batches that the demo trains on, and one digest of all of them in a row."""

import hashlib
from collections.abc import Mapping

import numpy as np

from mixserve_client import BatchIterator, MixClient

BATCH_SIZE = 16
KEY = 2026


def open_stream(client: MixClient, steps: int, *, prefetch: int) -> BatchIterator:
    """The first `steps` batches of the client's only mixture."""
    return client.batches(BATCH_SIZE, KEY, stop=steps * BATCH_SIZE, prefetch=prefetch)


def chained(digest: str, batch: Mapping[str, np.ndarray]) -> str:
    """The digest of the batches so far and of `batch` after them; the digest of no batch is the empty string."""
    link = hashlib.sha256(digest.encode())
    for name, array in sorted(batch.items()):
        link.update(f"{name} {array.dtype} {array.shape}\n".encode())
        link.update(array.tobytes())
    return link.hexdigest()
