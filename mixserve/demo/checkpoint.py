"""A trainer's state <-> one file, replaced atomically: after a kill, it is the old one or the new one."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx


def save(path: Path, learner: Any, progress: dict[str, Any]) -> None:
    """Replace the file with the arrays of `learner` and the JSON of `progress`."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(learner))]
    arrays: dict[str, Any] = {f"leaf_{index}": leaf for index, leaf in enumerate(leaves)}
    arrays["progress"] = np.array(json.dumps(progress))
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)  # atomic, because both are in one folder


def restore(path: Path, learner: Any) -> dict[str, Any]:
    """Put the saved arrays into `learner`. Returns the `progress` that was saved with them."""
    # By order of leaves, not by name: `learner` is built by the same code as the saved one.
    leaves, structure = jax.tree.flatten(nnx.state(learner))
    with np.load(path, allow_pickle=False) as saved:
        restored = [jax.numpy.asarray(saved[f"leaf_{index}"]) for index in range(len(leaves))]
        progress = json.loads(str(saved["progress"]))
    nnx.update(learner, jax.tree.unflatten(structure, restored))
    return progress
