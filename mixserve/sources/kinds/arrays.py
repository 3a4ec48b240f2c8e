"""`kind: arrays`: `.npz` files, or folders of one `.npy` file per field."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mixserve.shown import said_by, shown
from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.files import check_is_file, find_files
from mixserve_client.schema.dtypes import dtype_named


class ArraysConfig(SourceConfig):
    """`.npz` files, or folders of one `.npy` file per field, which are memory-mapped.

    `dtypes` names the dtypes that NumPy's format cannot, such as bfloat16, by field.
    """

    kind: Literal["arrays"]
    path: Paths
    dtypes: dict[str, str] = Field(default={})

    def open(self, folder: Path) -> Any:
        from mixserve.sources.array_source import ArraySource

        return ArraySource(*(_arrays(path, self.dtypes) for path in find_files(self.path, folder, or_folders=True)))


def _arrays(path: Path, dtypes: dict[str, str]) -> dict[str, np.ndarray]:
    arrays = _of_folder(path) if path.is_dir() else _of_file(path)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"path: {path} holds {shown(name)}, which is not an array")
    unknown = dtypes.keys() - arrays.keys()
    if unknown:
        raise ValueError(f"dtypes: {path} has the fields {sorted(arrays)}, not {sorted(unknown)}")
    return {name: _as_named(name, array, dtypes.get(name)) for name, array in arrays.items()}


def _of_folder(path: Path) -> dict[str, np.ndarray]:
    files = sorted(path.glob("*.npy"))
    if not files:
        raise ValueError(f"path: the folder {path} holds no .npy files")
    return {file.stem: _mapped(file) for file in files}


def _of_file(path: Path) -> dict[str, np.ndarray]:
    with _damage_named(path), path.open("rb") as file:
        loaded = np.load(file)
        if isinstance(loaded, np.ndarray):
            raise ValueError(f"path: {path} is one array; use an .npz file, or a folder of one .npy file per field")
        arrays = dict(loaded)
    if not arrays:
        raise ValueError(f"path: {path} holds no arrays")
    return arrays


def _mapped(file: Path) -> np.ndarray:
    check_is_file(file)
    with _damage_named(file):
        loaded = np.load(file, mmap_mode="r")
        if not isinstance(loaded, np.ndarray):
            loaded.close()
            raise ValueError("it is an .npz file under the name of an .npy file")
        return loaded


@contextmanager
def _damage_named(path: Path) -> Generator[None, None, None]:
    """What NumPy, zipfile and zlib say of a damaged file, which is many classes, becomes a ValueError that names it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        said = said_by(error, 500)
        if str(path) in said:
            raise ValueError(said) from error
        raise ValueError(f"path: {path} cannot be read as arrays: {said}") from error


def _as_named(field: str, array: np.ndarray, name: str | None) -> np.ndarray:
    """`array` in the dtype that NumPy's format could not name; other dtypes are not reinterpreted."""
    dtype = array.dtype if name is None else dtype_named(name)
    if dtype != array.dtype and (array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize):
        raise ValueError(f"dtypes: the field {field!r} is stored as {array.dtype}, which is not {dtype} unnamed")
    return array.view(dtype)
