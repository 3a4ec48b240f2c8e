"""A source that hangs while a file exists, for servers in this process and in others."""

import time
from pathlib import Path

import jax
import numpy as np

LENGTH = 1000
_LOOK_EVERY_S = 0.005


class HangingSource:
    """Rows of one number, that of the record. `take` waits while there is a file `path`."""

    content_id = "is not read for the fingerprint"

    def __init__(self, path: Path | str):
        self._path = Path(path)
        self.taken = 0  # how often `take` was called

    def __len__(self) -> int:
        return LENGTH

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        self.taken += 1
        while self._path.exists():
            time.sleep(_LOOK_EVERY_S)
        return {"x": record_ids.astype(np.int32)}


def make_source(path: str) -> HangingSource:
    """For `kind: factory`."""
    return HangingSource(path)
