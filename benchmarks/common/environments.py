"""The environments of peers, which cannot live beside one another."""

import sys
from pathlib import Path

from benchmarks.common.work import ROOT


def python_of(environment: str | None) -> Path:
    """The interpreter of an environment, a folder of .venv-peers; None for the benchmark's own.

    Raises FileNotFoundError if it has not been built.
    """
    if environment is None:
        return Path(sys.executable)
    folder = Path(".venv-peers") / environment
    if not (ROOT / folder / ".ready").exists():
        raise FileNotFoundError(f"there is no environment {folder}: make {folder}/.ready says why")
    return ROOT / folder / "bin" / "python"
