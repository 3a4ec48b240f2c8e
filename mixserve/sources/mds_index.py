"""`index.json` of MosaicML's MDS format -> its shards and columns, checked."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixserve_client.schema.text import show

_SCALARS = {"int": "int64"} | {
    name: name
    for name in (
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}
_ARRAY_DTYPES = {
    code: np.dtype(name)
    for code, name in (
        (8, "uint8"),
        (9, "int8"),
        (16, "uint16"),
        (17, "int16"),
        (18, "float16"),
        (32, "uint32"),
        (33, "int32"),
        (34, "float32"),
        (64, "uint64"),
        (65, "int64"),
        (66, "float64"),
    )
}
_BYTES = ("bytes", "str", "jpeg", "png", "pil")
_TEXTS = ("str_int", "str_float", "json")


class Column(NamedTuple):
    """A column: its encoding, and the bytes of a value if all have the same number.

    `dtype` and `shape` are those of arrays and numbers, None if each value says its own; `kind` is `array`, `bytes`,
    `str_int`, `str_float` or `json`, or why the column cannot be served.
    """

    name: str
    encoding: str
    size: int | None
    kind: str
    dtype: np.dtype | None = None
    shape: tuple[int, ...] | None = None


class Shard(NamedTuple):
    """A shard: its file, and the size, the number of samples and the hashes of it that the index says."""

    path: Path
    size: int
    samples: int
    hashes: str


def read_index(folder: Path) -> tuple[list[Shard], list[Column]]:
    """The shards and columns of the data set in `folder`.

    Raises ValueError, which names the file, for an index that is not of MDS, version 2, that lists compressed shards
    alone, or whose shards have different columns; OSError if it cannot be read.
    """
    path = folder / "index.json"
    content = path.read_bytes()
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    with _naming(path):
        if found["version"] != 2:
            raise ValueError(f"has the version {show(found['version'])}; only 2 can be read")
        shards = [_shard(folder, shard) for shard in found["shards"]]
        if not shards:
            raise ValueError("lists no shards")
        columns = [_columns(shard) for shard in found["shards"]]
        for number, other in enumerate(columns):
            if other != columns[0]:
                raise ValueError(f"gives its shards 0 and {number} different columns")
    return shards, columns[0]


def parse_column(name: str, encoding: str, size: int | None) -> Column:
    """The column of that encoding, such as `ndarray:uint16:512`. Raises ValueError if `size` is not that of it."""
    kind, _, rest = encoding.partition(":")
    found = Column(name, encoding, size, f"its encoding {encoding!r:.100} is not known")
    if kind in _SCALARS and not rest:
        found = found._replace(kind="array", dtype=np.dtype(_SCALARS[kind]), shape=())
    elif kind == "ndarray":
        found = _array_column(found, rest)
    elif kind in _BYTES:
        found = found._replace(kind="bytes")
    elif kind in _TEXTS:
        found = found._replace(kind=kind)
    elif kind == "pkl":
        found = found._replace(kind="it is a pickle, which could run any code when it is read; write it as ndarray")
    elif kind == "str_decimal":
        found = found._replace(kind="decimals have no dtype; write them as float64 or int64")
    needed = None
    if found.kind == "array" and found.dtype is not None and found.shape is not None:
        needed = found.dtype.itemsize * math.prod(found.shape)
    if needed != size and found.kind in ("array", "bytes", *_TEXTS):
        raise ValueError(f"says that values of {name!r:.100} ({encoding:.100}) have {size} bytes; they have {needed}")
    return found


def array_dtype(code: int) -> np.dtype:
    """The dtype of a value that says its own. Raises ValueError for unknown codes."""
    if code not in _ARRAY_DTYPES:
        raise ValueError(f"has an array of the unknown dtype {code}")
    return _ARRAY_DTYPES[code]


def _array_column(column: Column, rest: str) -> Column:
    match = re.fullmatch(r"(\w+)(?::(\d+(?:,\d+)*))?", rest) if rest else None
    if rest and (not match or match[1] not in {dtype.name for dtype in _ARRAY_DTYPES.values()}):
        return column
    dtype = np.dtype(match[1]) if match else None
    shape = tuple(map(int, match[2].split(","))) if match and match[2] else None
    return column._replace(kind="array", dtype=dtype, shape=shape)


def _shard(folder: Path, shard: Mapping[str, Any]) -> Shard:
    if shard["format"] != "mds":
        raise ValueError(f"lists a shard of the format {show(shard['format'])}; only mds can be read")
    if shard["version"] != 2:
        raise ValueError(f"lists a shard of the version {show(shard['version'])}; only 2 can be read")
    raw, samples = shard["raw_data"], shard["samples"]
    name, size = raw["basename"], raw["bytes"]
    if not (type(samples) is int and samples >= 0 and type(size) is int and isinstance(name, str)):
        raise ValueError(f"lists a shard with {show(samples)} samples and {show(size)} bytes")
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"lists the shard {show(name)}, which is not in its folder")
    zipped = shard.get("zip_data")
    if zipped and not path.exists():
        raise ValueError(
            f"lists the compressed shard {show(zipped.get('basename'))} ({show(shard.get('compression'))}): compressed "
            "shards cannot be read in random order; decompress them beside the index, or write them without compression"
        )
    return Shard(path, size, samples, json.dumps(raw.get("hashes"), sort_keys=True))


def _columns(shard: Mapping[str, Any]) -> list[Column]:
    names, encodings, sizes = shard["column_names"], shard["column_encodings"], shard["column_sizes"]
    if not len(names) == len(encodings) == len(sizes) or not all(isinstance(name, str) for name in names + encodings):
        raise ValueError("has column_names, column_encodings and column_sizes that do not belong together")
    return [parse_column(*column) for column in zip(names, encodings, sizes, strict=True)]


class _naming:  # noqa: N801  # it is used like a function
    """Around reading the index: errors name the file."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise ValueError(f"{self._path} is not the index of an MDS data set: it has no {error}") from None
        if isinstance(error, TypeError | AttributeError):
            raise ValueError(f"{self._path} is not the index of an MDS data set: {error}") from None
        if isinstance(error, ValueError):
            raise ValueError(f"{self._path} {error}") from None
