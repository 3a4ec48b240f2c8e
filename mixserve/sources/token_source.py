"""Flat sequences of token ids -> a source whose records are windows of one length."""

import errno
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from mixserve.sources.array_like import is_array
from mixserve.sources.array_source import ArraySource
from mixserve.sources.digest import digest_blocks
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import show

Tokens = str | PathLike[str] | np.ndarray | Sequence[int]

_NPY_MAGIC = b"\x93NUMPY"


class TokenSource:
    """Record r is the tokens [r*L, (r+1)*L) of all inputs, one after another; L is `sequence_length`.

    Inputs are files of plain token ids, memory-mapped, or one-dimensional arrays or lists. A partial last window is
    dropped.
    Records have one field, `field`, of the dtype `as_dtype` (default: the stored one).
    """

    def __init__(
        self,
        tokens: Tokens | Iterable[Tokens],
        *,
        sequence_length: int,
        dtype: Any = None,
        as_dtype: Any = None,
        field: str = "tokens",
        name: str | None = None,
    ):
        """`dtype` is the dtype of tokens in files, and required for files.

        Raises ValueError if the size of a file, which the error names, is not a multiple of the dtype's, if a file is
        an `.npy` file, if inputs store different dtypes, if tokens do not fit into `as_dtype`, or if all inputs hold
        less than one window; TypeError for inputs and dtypes of other kinds; OSError if a file cannot be read.
        """
        sequence_length = check_integer("sequence_length", sequence_length, 1)
        parts = [_open_tokens(part, _dtype("dtype", dtype)) for part in _inputs(tokens)]
        stored = {part.dtype for part in parts}
        if len(stored) != 1:
            raise ValueError(f"all inputs of a TokenSource must store the same dtype, got {sorted(map(str, stored))}")
        dtype_name(parts[0].dtype)
        self.name = name
        self._field = field
        self._as_dtype = _dtype("as_dtype", as_dtype) or parts[0].dtype
        dtype_name(self._as_dtype)
        if not np.can_cast(parts[0].dtype, self._as_dtype):
            raise ValueError(
                f"tokens of dtype {parts[0].dtype} do not all fit into {self._as_dtype}; choose a wider one"
            )
        # Not the parts themselves: a pickle would hold their tokens twice.
        self._inputs = [(_label(number, part), len(part)) for number, part in enumerate(parts)]
        self._windows = _windows(parts, sequence_length)
        if not self._windows:
            count = sum(len(part) for part in parts)
            raise ValueError(f"the inputs hold {count} tokens, less than one window of {sequence_length}")
        self._rows = ArraySource(*({field: window} for window in self._windows))

    def __len__(self) -> int:
        return len(self._rows)

    def element_spec(self) -> ElementSpec:
        return {self._field: jax.ShapeDtypeStruct(self._windows[0].shape[1:], self._as_dtype)}

    def take(self, record_ids: RecordIds) -> Records:
        return {self._field: self._rows.take(record_ids)[self._field].astype(self._as_dtype)}

    def locate(self, record_id: int) -> str:
        """The file, or the number of the input, and the token in it at which the record begins."""
        first = record_id * self._windows[0].shape[1]
        for label, count in self._inputs:
            if first < count:
                return f"{label}, token {first:,}"
            first -= count
        raise IndexError(f"record_id must be below {len(self)}, got {record_id}")

    def blocks(self) -> Sequence[Mapping[str, np.ndarray]]:
        return self._rows.blocks()

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        return digest_blocks(self.blocks())

    def __repr__(self) -> str:
        length = self._windows[0].shape[1]
        return f"TokenSource({self._field}: {self._as_dtype.name}[{length}], length={len(self)})"


def _inputs(tokens: Any) -> list[Any]:
    """The inputs, one or several. Raises TypeError, or ValueError if there are none."""
    if isinstance(tokens, str | PathLike) or is_array(tokens):
        return [tokens]
    if not isinstance(tokens, Iterable):
        raise TypeError(f"tokens must be files, or arrays or lists of token ids, got {show(tokens)}")
    inputs = list(cast(Iterable[Any], tokens))
    if not inputs:
        raise ValueError("a TokenSource needs at least one file, array or list of token ids, got none")
    # One list of numbers is one input; a list of lists is several.
    return [inputs] if isinstance(inputs[0], Integral) else inputs


def _label(number: int, part: np.ndarray) -> str:
    return str(part.filename) if isinstance(part, np.memmap) else f"input {number}"


def _dtype(name: str, dtype: Any) -> np.dtype | None:
    try:
        return None if dtype is None else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as 'uint16' or 'uint32', got {show(dtype)}") from None


def _open_tokens(tokens: Any, dtype: np.dtype | None) -> np.ndarray:
    if isinstance(tokens, str | PathLike):
        return _map_file(Path(fspath(cast("str | PathLike[str]", tokens))), dtype)
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"an array of tokens must have one dimension, got the shape {array.shape}")
    if array.dtype.kind not in "biufcV":
        raise TypeError(f"tokens must be files, or arrays or lists of token ids, got {show(tokens)}")
    return np.ascontiguousarray(array)


def _map_file(path: Path, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None:
        raise ValueError(f"dtype is required for token files: pass that of the tokens in {path} (uint16, uint32, …)")
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "tokens must be files, got a folder; pass a list of the files in it", str(path)
        )
    with path.open("rb") as file:
        if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:  # its header would be read as tokens
            raise ValueError(
                f"{path} is an .npy file, not plain token ids: pass np.load(..., mmap_mode='r') of it, or write its "
                "ids with array.tofile(...)"
            )
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, which is not a multiple of the {dtype.itemsize} bytes of {dtype}")
    # NumPy cannot map an empty file.
    return np.memmap(path, dtype, mode="r") if size else np.empty(0, dtype)


def _windows(parts: Sequence[np.ndarray], length: int) -> list[np.ndarray]:
    """Blocks of windows, in order: a view of each part, and a copy of each window that spans parts."""
    blocks: list[np.ndarray] = []
    head = np.empty(0, parts[0].dtype)  # the tokens of a window that begins in earlier parts
    for part in parts:
        missing = -len(head) % length
        if len(part) < missing:
            head = np.concatenate([head, part])
            continue
        if missing:
            blocks.append(np.concatenate([head, part[:missing]])[None])
        count = (len(part) - missing) // length
        if count:
            blocks.append(part[missing : missing + count * length].reshape(count, length))
        head = part[missing + count * length :]
    return blocks
