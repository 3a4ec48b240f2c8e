"""The bytes of placement `device` beside those of placement `host`, position by position."""

import time

import jax.numpy as jnp
import numpy as np

from benchmarks.device.table import Table
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

RECORDS = (70_001, 20_011, 9_973)
WEIGHTS = (0.5, 0.3, 0.2)
SIZE = 1 << 16
# A row of every width, and floats of any bits: NaNs with payloads, infinities and denormals among them.
_BITS = {
    "bool": np.uint8,
    "uint8": np.uint8,
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "int32": np.uint32,
    "float32": np.uint32,
    "float64": np.uint64,
}


def measure(positions: int) -> Table:
    """Compare `positions` positions in each mode. Raises AssertionError at the first batch that differs."""
    sources = [ArraySource(_records(number, count)) for number, count in enumerate(RECORDS)]
    return Table(
        "The same bytes on host and device",
        [_compare(sources, mode, positions) for mode in ("categorical", "epoch")],
        [
            f"rows with a field of each of {', '.join(_BITS)}, of random bits, in batches of {SIZE} rows",
            "`different`: positions whose bytes differ between placements `host` and `device`",
        ],
    )


def _records(seed: int, count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {}
    for name, bits in _BITS.items():
        drawn = random.integers(
            0, 2 if name == "bool" else np.iinfo(bits).max, (count, 3), bits, endpoint=name != "bool"
        )
        made[name] = drawn.view(jnp.dtype(name))
    return made


def _compare(sources: list[ArraySource], mode: str, positions: int) -> dict[str, object]:
    host, device = (
        MixDataSourcesNode(
            MixDataSourcesConfig(num_sources=len(sources), weights=WEIGHTS, sampling=mode, placement=placement), sources
        )
        for placement in ("host", "device")
    )
    words, different, began = np.array([0, 21], np.uint32), 0, time.perf_counter()
    for start in range(0, positions, SIZE):
        size = min(SIZE, positions - start)
        rows = []
        for node in (host, device):
            out = {field.name: np.empty((size, *field.shape), field.dtype) for field in node.mixture.fields}
            node.read_into(start, words, out)
            rows.append({name: array.reshape(size, -1).view(np.uint8) for name, array in out.items()})
        unequal = np.zeros(size, bool)
        for name, array in rows[0].items():
            unequal |= (array != rows[1][name]).any(axis=1)
        different += int(unequal.sum())
    seconds = time.perf_counter() - began
    return {"mode": mode, "positions": f"{positions:,}", "different": different, "seconds": f"{seconds:.0f}"}
