"""What a source is given of its files: one path, or several."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


def as_paths(paths: Paths) -> list[Path]:
    """One path or several. Raises ValueError if there are none."""
    found = [Path(path) for path in ([paths] if isinstance(paths, str | PathLike) else paths)]
    if not found:
        raise ValueError("a source needs at least one file, got none")
    return found
