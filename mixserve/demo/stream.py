"""The batches that the demo trains on, and one digest over all of them."""

import hashlib
from collections.abc import Mapping

import numpy as np

from mixserve_client import BatchIterator, MixClient

BATCH_SIZE = 16
KEY = 2026


def open_stream(client: MixClient, steps: int, *, prefetch: int) -> BatchIterator:
    """The first `steps` batches of the client's only mixture."""
    return client.batches(BATCH_SIZE, KEY, stop=steps * BATCH_SIZE, prefetch=prefetch)


def extend_digest(digest: str, batch: Mapping[str, np.ndarray]) -> str:
    """The digest of earlier batches, with digest `digest`, and `batch`. The digest of no batches is ""."""
    # A chain, not one hash object: a trainer saves it as text, and goes on from it after a kill.
    link = hashlib.sha256(digest.encode())
    for name, array in sorted(batch.items()):
        link.update(f"{name} {array.dtype} {array.shape}\n".encode())
        link.update(array.tobytes())
    return link.hexdigest()
