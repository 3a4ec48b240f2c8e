"""A state <-> an Orbax checkpoint of two items: `state`, JSON with placeholders for arrays, and `arrays`."""

import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mixserve.module.state import State
from mixserve.sessions.manifest import CHECKPOINT_BYTES
from mixserve_client.errors import StorageFailed
from mixserve_client.schema.dtypes import dtype_named

_DICT, _TUPLE, _ARRAY, _EMPTY = "~dict", "~tuple", "~array", "~empty"
# Orbax numbers its operations for the whole process, and two at a time take each other's signals: they fail, or wait
# for ever. So there is one lock for all mixtures.
_one_at_a_time = threading.Lock()


def write_orbax(path: Path, state: State) -> None:
    """Write `state` to the folder `path`, which Orbax makes. Raises OSError and StorageFailed."""
    from orbax import checkpoint as orbax

    arrays: dict[str, Any] = {}
    skeleton = _without_arrays(state, arrays)
    # Orbax refuses an empty tree of arrays.
    items = {"state": orbax.args.JsonSave(skeleton)} | ({"arrays": orbax.args.PyTreeSave(arrays)} if arrays else {})
    try:
        with _one_at_a_time:
            _save(path, items)
    except OSError:
        raise
    except Exception as error:  # for a full disk, TensorStore raises ValueError
        raise StorageFailed(f"Orbax cannot write the checkpoint on the server: {error}") from error


def read_orbax(path: Path) -> State:
    """The state in a folder whose files have been verified. Raises ValueError, and any error of Orbax."""
    from orbax import checkpoint as orbax

    items: dict[str, Any] = {"state": orbax.args.JsonRestore()}
    handlers: dict[str, Any] = {"state": orbax.JsonCheckpointHandler()}
    if (path / "arrays").exists():
        _check_arrays(path / "arrays")
        items["arrays"], handlers["arrays"] = orbax.args.PyTreeRestore(), orbax.PyTreeCheckpointHandler()
    with _one_at_a_time, orbax.Checkpointer(orbax.CompositeCheckpointHandler(**handlers)) as checkpointer:
        restored = checkpointer.restore(path, orbax.args.Composite(**items))
    return _with_arrays(restored.state, restored.arrays if "arrays" in items else {})


def _save(path: Path, items: dict[str, Any]) -> None:
    from orbax import checkpoint as orbax

    with orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, orbax.args.Composite(**items))


def _check_arrays(path: Path) -> None:
    """Raises ValueError if the arrays' metadata say that they are larger than a checkpoint may be."""
    # The size of the files is no limit: TensorStore fills chunks that are missing on disk with zeros in memory.
    from orbax import checkpoint as orbax

    handler: Any = orbax.PyTreeCheckpointHandler()
    tree = handler.metadata(path).tree
    total = sum(prod(array.shape) * np.dtype(array.dtype).itemsize for array in tree.values())
    if total > CHECKPOINT_BYTES:
        raise ValueError(f"its arrays have {total} bytes, at most {CHECKPOINT_BYTES} are allowed")


def _without_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    """`value` for JSON. Its arrays go into `arrays`, except empty ones, which Orbax refuses."""
    if isinstance(value, dict):
        # As pairs, because keys may be numbers, which JSON would turn into strings.
        return {_DICT: [[key, _without_arrays(child, arrays)] for key, child in value.items()]}
    if isinstance(value, list):
        return [_without_arrays(child, arrays) for child in value]
    if isinstance(value, tuple):  # which JSON would turn into a list
        return {_TUPLE: [_without_arrays(child, arrays) for child in value]}
    if isinstance(value, np.ndarray | np.generic):
        if not value.size:
            return {_EMPTY: [value.dtype.name, list(value.shape)]}
        name, dtype = str(len(arrays)), value.dtype
        # Orbax's store does not have all dtypes from outside NumPy (bfloat16, float8, …), so their bytes are stored.
        stored = np.ascontiguousarray(value)  # at least one-dimensional, which `view` needs
        arrays[name] = stored if dtype.isbuiltin == 1 else stored.view(np.uint8)
        return {_ARRAY: [name, dtype.name, list(value.shape)]}
    return value


def _with_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_arrays(child, arrays) for child in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == _DICT:
        return {key: _with_arrays(child, arrays) for key, child in content}
    if kind == _TUPLE:
        return tuple([_with_arrays(child, arrays) for child in content])
    if kind == _ARRAY:
        name, dtype, shape = content
        return np.asarray(arrays[name]).view(dtype_named(dtype)).reshape(shape)
    dtype, shape = content
    if prod(shape):
        raise ValueError(f"an array without elements cannot have the shape {shape!r:.100}")
    return np.empty(shape, dtype_named(dtype))
