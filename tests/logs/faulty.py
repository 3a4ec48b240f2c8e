"""A source that fails on demand, for servers in this process and in others."""

from pathlib import Path

import jax
import numpy as np

LENGTH = 100


class FaultySource:
    """Rows of one number, that of the record. Raises ValueError while there is a file `path`."""

    content_id = "is not read for the fingerprint"

    def __init__(self, path: Path | str):
        self._path = Path(path)

    def __len__(self) -> int:
        return LENGTH

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        if self._path.exists():
            raise ValueError("the disk of this source\nis on fire")
        return {"x": record_ids.astype(np.int32)}


def make_source(path: str) -> FaultySource:
    """For `kind: factory`."""
    return FaultySource(path)
