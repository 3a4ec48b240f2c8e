"""One batch of a running server -> the terminal, or a file."""

from pathlib import Path

import numpy as np

from mixserve.cli.connecting import Connection
from mixserve_client import InvalidRequest
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.tree import flatten


def run(
    address: str,
    connection: Connection,
    *,
    start: int,
    size: int,
    key: int,
    mixture: str | None,
    out: Path | None,
    timeout_s: float,
) -> None:
    """Fetch rows [start, start + size) and show them, or write them to `out`. Raises MixserveError and OSError."""
    if out is not None and out.suffix != ".npz":  # np.savez would append .npz without a word
        raise InvalidRequest(f"--out must be an .npz file, got {out}")
    with connection.connect(address, patience_s=timeout_s) as client:
        # By the paths of fields, since records may be nested.
        batch = flatten(client.get_batch_at(start, size, key, mixture=mixture, timeout_s=timeout_s))
    if out is not None:
        batch = {name or "record": array for name, array in batch.items()}
        np.savez(out, allow_pickle=False, **batch)
        print(f"{out}: {', '.join(batch)}, {size} rows from position {start}")
        return
    for name, array in batch.items():
        print(f"{name or 'record'}: {dtype_name(array.dtype)}{list(array.shape)}")
        print(np.array2string(array, threshold=200, edgeitems=4))
