"""`kind: arrays`: `.npz` and `.safetensors` files, or folders of one `.npy` file per field."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from mixserve.sources.fields import choose_names
from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.fields import FixedFields, fixed_field_specs
from mixserve.sources.kinds.files import find_files
from mixserve.sources.magic import NPY, ZIP
from mixserve.sources.open_file import OpenFile
from mixserve.sources.safetensors import map_safetensors
from mixserve_client.errors import SourceChanged
from mixserve_client.schema.dtypes import dtype_named
from mixserve_client.schema.text import describe_error, show

# How files begin that NumPy writes.
_ZIP = ZIP[:2]  # those that are empty or split begin otherwise


class ArraysConfig(SourceConfig):
    """`.npz` files; `.safetensors` files, or folders of one `.npy` file per field, which are memory-mapped.

    `dtypes` has, by field, the names of dtypes that NumPy's format cannot express, such as bfloat16.
    """

    kind: Literal["arrays"]
    path: Paths
    dtypes: dict[str, str] = Field(default={})
    fields: FixedFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.array_source import ArraySource

        paths = find_files(self.path, folder, or_folders=True)
        specs = fixed_field_specs(self.fields)
        wanted = None if specs is None else {spec.source for spec in specs}
        arrays = (_arrays(path, self.dtypes, wanted) for path in paths)
        return ArraySource(*arrays, origins=[str(path) for path in paths], fields=specs)


def _arrays(path: Path, dtypes: dict[str, str], wanted: Collection[str] | None) -> dict[str, np.ndarray]:
    """The `wanted` arrays by name, or all."""
    if path.is_dir():
        arrays = _read_folder(path, wanted)
    else:
        arrays = map_safetensors(path, wanted) if path.suffix == ".safetensors" else _read_file(path, wanted)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"path: {path} holds {show(name)}, which is not an array")
    unknown = dtypes.keys() - arrays.keys()
    if unknown:
        raise ValueError(f"dtypes: {path} has the fields {sorted(arrays)}, not {sorted(unknown)}")
    return {name: _view_as(name, array, dtypes.get(name)) for name, array in arrays.items()}


def _read_folder(path: Path, wanted: Collection[str] | None) -> dict[str, np.ndarray]:
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    if not files:
        raise ValueError(f"path: the folder {path} holds no .npy files")
    return {name: _map_file(files[name]) for name in choose_names(files, wanted, path)}


def _read_file(path: Path, wanted: Collection[str] | None) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        begin = file.read(len(NPY))
        if begin == NPY:
            raise ValueError(f"path: {path} is one array; use an .npz file, or a folder of one .npy file per field")
        if begin[: len(_ZIP)] != _ZIP:
            found = f"begins with {show(begin)}" if begin else "is empty"
            raise ValueError(f"path: {path} cannot be read as arrays: it is no .npz file, it {found}")
        file.seek(0)
        with _naming_damage(path):
            loaded = np.load(file)
            names = list(loaded)
        arrays = dict[str, np.ndarray]()
        for name in choose_names(names, wanted, path):
            with _naming_damage(path, f"the field {show(name, 100)} of "):
                arrays[name] = loaded[name]
    if not arrays:
        raise ValueError(f"path: {path} holds no arrays")
    return arrays


def _map_file(file: Path) -> np.ndarray:
    opened = OpenFile(file)
    with _naming_damage(file):
        loaded = np.load(file, mmap_mode="r")
        if not isinstance(loaded, np.ndarray):
            loaded.close()
            raise ValueError("it is an .npz file under the name of an .npy file")
    if not opened.is_at_path():  # NumPy opens the path twice, once for the header
        raise SourceChanged(f"{file} was replaced while it was opened")
    return loaded


@contextmanager
def _naming_damage(path: Path, field: str = "") -> Generator[None, None, None]:
    """Turns what NumPy raises for a damaged file into a ValueError that names the file, after `field`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise errors of many classes
        said = describe_error(error, 500)
        if str(path) in said:
            raise ValueError(said) from error
        raise ValueError(
            f"path: {field}{path} cannot be read as arrays, it may be cut short or damaged: {said}"
        ) from error


def _view_as(field: str, array: np.ndarray, name: str | None) -> np.ndarray:
    """`array` in the dtype `name`. Raises ValueError unless NumPy stored it as nameless bytes of the same size."""
    try:
        dtype = array.dtype if name is None else dtype_named(name)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"dtypes.{field}: {describe_error(error)}") from None
    if dtype != array.dtype and (array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize):
        raise ValueError(f"dtypes: the field {field!r} is stored as {array.dtype}, and cannot be read as {dtype}")
    return array.view(dtype)
