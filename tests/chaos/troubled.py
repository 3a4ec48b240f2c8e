"""A source of rows that hangs while one file exists, and is slow while another one does. Stands beside a mixture.yaml.

It imports nothing of the tests: `mixserve serve` finds it as a user's module.
"""

import time
from pathlib import Path

import numpy as np

from mixserve import ArraySource


def make(rows: int, length: int, hang_file: str, slow_file: str) -> "Troubled":
    return Troubled(rows, length, Path(hang_file), Path(slow_file))


class Troubled:
    """`rows` records of `length` tokens."""

    def __init__(self, rows: int, length: int, hangs: Path, is_slow: Path):
        self._hangs, self._is_slow = hangs, is_slow
        self._tokens = np.random.default_rng(1).integers(0, 1 << 16, (rows, length)).astype(np.uint16)
        self._spec = ArraySource({"tokens": self._tokens}).element_spec()

    def __len__(self) -> int:
        return len(self._tokens)

    def element_spec(self):
        return self._spec

    def take(self, record_ids):
        while self._hangs.exists():
            time.sleep(0.01)
        if self._is_slow.exists():
            time.sleep(float(self._is_slow.read_text() or 0))
        return {"tokens": self._tokens[record_ids]}
