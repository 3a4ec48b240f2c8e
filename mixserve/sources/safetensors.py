"""Safetensors files -> their tensors, as arrays that are views of the mapped file."""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixserve.sources.fields import choose_names
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.dtypes import dtype_named
from mixserve_client.schema.text import show

_LENGTH_BYTES = 8
_LARGEST_HEAD = 100_000_000  # as in the format's own library
# F4, F6_E2M3 and F6_E3M2 are not among them: several of their values share a byte.
_DTYPES = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{kind}{bits}" for sign, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def map_safetensors(path: Path, wanted: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The `wanted` tensors of the file by name, or all.

    Raises ValueError, which names the file and the tensor, if the file is cut or damaged, a dtype cannot be served, or
    a tensor does not exist; OSError if the file cannot be read.
    """
    file = OpenFile(path)
    try:
        head, begin = _read_head(file)
        tensors = {name: _entry(name, entry) for name, entry in head.items()}
        _check_spans(tensors, file.size - begin)
        names = choose_names(tensors, wanted, "it")
        data = file.map()[begin:]
        return {name: _view(name, tensors[name], data) for name in names}
    except ValueError as error:
        raise ValueError(f"path: {path} cannot be read as safetensors: {error}") from error


class _Tensor(NamedTuple):
    kind: str
    shape: list[int]
    first: int
    stop: int


def _read_head(file: OpenFile) -> tuple[dict[str, Any], int]:
    """The tensors' entries, and the byte at which their data begin."""
    if file.size < _LENGTH_BYTES:
        raise ValueError("it is empty" if file.size == 0 else f"it has only {file.size} bytes")
    length = int.from_bytes(file.read_head(_LENGTH_BYTES), "little")
    if length > min(file.size - _LENGTH_BYTES, _LARGEST_HEAD):
        raise ValueError(
            f"its head would have {length:,} bytes, and the file has {file.size:,}: it is cut, or of another format"
        )
    try:
        head = json.loads(file.read(_LENGTH_BYTES, length), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its head is nested too deeply") from None
    if not isinstance(head, dict):
        raise ValueError(f"its head must be an object, got {show(head)}")
    head.pop("__metadata__", None)
    if not head:
        raise ValueError("it holds no tensors")
    return head, _LENGTH_BYTES + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"its head has a key twice among {show([key for key, _ in pairs])}")
    return found


def _entry(name: str, entry: Any) -> _Tensor:
    try:
        kind, shape, (first, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(kind) is str and all(type(number) is int and number >= 0 for number in (*shape, first, stop)):
            return _Tensor(kind, list(shape), first, stop)
    except (TypeError, ValueError, KeyError):
        pass
    raise ValueError(f"the tensor {show(name)} has the wrong entry {show(entry)} in its head")


def _check_spans(tensors: Mapping[str, _Tensor], size: int) -> None:
    """Raises ValueError unless the tensors fill the file's `size` bytes of data without holes, as the format says."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.first != end or tensor.stop < end or tensor.stop > size:
            raise ValueError(
                f"the tensor {show(name)} has the bytes from {tensor.first:,} to {tensor.stop:,}, and should begin at "
                f"{end:,} and end at {size:,} or before: the file is cut or damaged"
            )
        end = tensor.stop
    if end != size:
        raise ValueError(f"it has {size - end:,} bytes after its last tensor")


def _view(name: str, tensor: _Tensor, data: np.ndarray) -> np.ndarray:
    if tensor.kind not in _DTYPES:
        raise ValueError(
            f"the tensor {show(name)} is {show(tensor.kind)}, which cannot be served; write it as one of "
            f"{', '.join(_DTYPES)}, or choose others by fields"
        )
    dtype = dtype_named(_DTYPES[tensor.kind])
    if tensor.stop - tensor.first != math.prod(tensor.shape) * dtype.itemsize:
        raise ValueError(
            f"the tensor {show(name)}, {tensor.kind}{tensor.shape}, needs {math.prod(tensor.shape) * dtype.itemsize:,} "
            f"bytes, and has {tensor.stop - tensor.first:,}: the file is damaged"
        )
    return data[tensor.first : tensor.stop].view(dtype).reshape(tensor.shape)
