"""Configurations of servers whose one source fails on demand, and what they log."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.logs import faulty


def write_faulty(folder: Path, server: str = "port: 0") -> Path:
    """A configuration with the mixture `train` of the source `disk`, which fails while there is a file `fails`."""
    shutil.copy(Path(faulty.__file__), folder / "faulty.py")
    config = folder / "mixture.yaml"
    arguments = json.dumps({"path": str(folder / "fails")})
    config.write_text(
        "mixtures:\n  train:\n    sources:\n"
        f"      disk: {{kind: factory, function: 'faulty:make_source', arguments: {arguments}, weight: 1}}\n"
        f"server: {{{server}}}\n"
    )
    return config


def objects(log: str) -> list[dict[str, Any]]:
    """The lines of a log of JSON objects."""
    return [json.loads(line) for line in log.splitlines()]
