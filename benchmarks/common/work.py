"""The data of the benchmarks: four sources of records in files, which every server loads, and checks of batches."""

import os
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "benchmarks"
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
RECORDS = 4096  # per source
ROW = 2048  # int32, 8 KiB per record
ROW_BYTES = ROW * 4
SIZES = (8, 32, 256, 1024, 4096)

Batch = np.ndarray | list[np.ndarray]


def paths() -> list[Path]:
    """The files of the sources, in NumPy's format."""
    return [FOLDER / f"{index}.npy" for index in range(len(WEIGHTS))]


def write() -> None:
    """Write the sources, the same bytes on every machine, and delete the logs of earlier runs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for log in FOLDER.glob("*.log"):
        log.unlink()
    rng = np.random.default_rng(0)
    for path in paths():
        # Another benchmark, or a test, may be reading the file.
        unfinished = path.with_name(f"{os.getpid()}-{path.name}")
        np.save(unfinished, rng.integers(0, 1 << 30, (RECORDS, ROW), np.int32))
        unfinished.replace(path)


def load() -> list[np.ndarray]:
    """The sources in memory, each of shape (RECORDS, ROW)."""
    return [np.load(path) for path in paths()]


def accept(batch: Batch, size: int) -> None:
    """Check a contestant's batch (one array, or its pieces in order), and read the last element of each piece.

    Raises ValueError if it is not a batch of `size` records.
    """
    rows = 0
    for piece in batch if isinstance(batch, list) else [batch]:
        if piece.dtype != np.int32 or piece.shape[1:] != (ROW,):
            raise ValueError(f"expected int32 rows of {ROW}, got {piece.dtype} of shape {piece.shape}")
        rows += len(piece)
        piece[-1, -1].item()
    if rows != size:
        raise ValueError(f"expected {size} rows, got {rows}")
