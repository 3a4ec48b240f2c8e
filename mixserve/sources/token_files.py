"""Files of token ids -> flat arrays. Known headers are read, and files that are known to be something else refused."""

import errno
import io
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from mixserve.sources.magic import (
    ARRAY_RECORD,
    ARROW,
    GIT_LFS,
    GZIP,
    HDF5,
    LLM_C_DTYPES,
    MEGATRON_INDEX,
    NPY,
    PARQUET,
    XZ,
    ZIP,
    ZSTD,
)
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import describe_error, show

Header = Literal["auto", "none", "llm.c", "npy"]

_LLM_C_HEAD_BYTES = 256 * 4
_HEAD_BYTES = 16 << 10  # has every header whole
_GZIP_BYTES = 64 << 10
_GZIP_PROOF_BYTES = 4096  # random bytes never decompress to so many without an error

# The first bytes, what the file is, and what to do with it.
_FOREIGN = (
    (ZIP, "a zip archive, as .npz and .pt files are", "kind: arrays serves .npz files"),
    (GIT_LFS, "a Git LFS pointer", "fetch the file itself with: git lfs pull"),
    (PARQUET, "a Parquet file", "kind: parquet serves it"),
    (ARROW, "an Arrow file", "kind: hf serves folders of Arrow files"),
    (ARRAY_RECORD, "an ArrayRecord or Riegeli file", "kind: array_record serves it"),
    (HDF5, "an HDF5 file", "kind: hdf5 serves it"),
    (ZSTD, "compressed by zstd", "decompress it"),
    (XZ, "compressed by xz", "decompress it"),
    (MEGATRON_INDEX, "the index of a Megatron data set", "kind: megatron serves the data set"),
)
_MARKUP = (b"<!doctype html", b"<html", b"<?xml")


def open_token_file(path: Path, dtype: np.dtype | None, header: Header = "auto") -> np.ndarray:
    """The ids in the file, memory-mapped. `dtype` is that of the ids; a file with a header says it itself.

    Raises ValueError, which names the file, if the file has another dtype or header, is known to be something else than
    token ids, or has another size than its header or dtype asks for; OSError if it cannot be read.
    """
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "tokens must be files, got a folder; pass a list of the files in it", str(path)
        )
    if dtype is None and not path.exists():  # a text that was passed in place of a path, perhaps
        raise ValueError(f"there is no file {path}, and dtype is required for token files without a header")
    file = OpenFile(path)
    if header == "none":
        found = None
    else:
        head = file.read_head(_HEAD_BYTES)
        found = _read_header(file, head, header)
        if found is None and header == "auto":
            _check_not_foreign(file, head)
    if found is None:
        return _plain_ids(file, dtype)
    stored, offset, count = found
    if dtype is not None and dtype != stored:
        raise ValueError(f"the header of {path} says that its ids are {stored}, and dtype is {dtype}: leave dtype out")
    return file.map()[offset : offset + count * stored.itemsize].view(stored)


def _plain_ids(file: OpenFile, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None:
        raise ValueError(
            f"dtype is required for token files without a header: pass that of the tokens in {file.path} (uint16, "
            "uint32, …)"
        )
    if file.size % dtype.itemsize:
        raise ValueError(
            f"{file.path} has {file.size} bytes, which is not a multiple of the {dtype.itemsize} bytes of {dtype}"
        )
    return file.map().view(dtype)


def _read_header(file: OpenFile, head: bytes, header: Header) -> tuple[np.dtype, int, int] | None:
    """Dtype, first byte and number of the ids, None if the file has no header and needs none."""
    magic = int.from_bytes(head[:4], "little")
    if header in ("auto", "npy") and head.startswith(NPY):
        found = _read_npy_header(file, head)
    elif header in ("auto", "llm.c") and magic in LLM_C_DTYPES and len(head) >= 12:
        found = LLM_C_DTYPES[magic], _LLM_C_HEAD_BYTES, int.from_bytes(head[8:12], "little", signed=True)
    elif header == "auto":
        return None
    else:
        raise ValueError(f"{file.path} does not begin with a header of {header}, but with {show(head[:16])}")
    dtype, offset, count = found
    if count < 0 or file.size != offset + count * dtype.itemsize:
        kind = "npy" if head.startswith(NPY) else "llm.c"
        raise ValueError(
            f"{file.path} begins with a header of {kind} that announces {count:,} ids of {dtype}, which makes "
            f"{offset + count * dtype.itemsize:,} bytes, and has {file.size:,}: it was cut or changed. If its first "
            "bytes are ids, say header: none"
        )
    return found


def _read_npy_header(file: OpenFile, head: bytes) -> tuple[np.dtype, int, int]:
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except Exception as error:  # NumPy raises errors of many classes
        raise ValueError(f"the header of the .npy file {file.path} cannot be read: {describe_error(error)}") from error
    if len(shape) != 1:
        raise ValueError(
            f"{file.path} is an .npy file of the shape {shape}, and token ids have one dimension; kind: arrays serves "
            "the rows of arrays"
        )
    try:
        dtype_name(dtype)
    except TypeError as error:
        raise ValueError(f"the .npy file {file.path} cannot be served: {error}") from None
    if dtype.kind not in "iu":
        raise ValueError(f"{file.path} is an .npy file of {dtype}, and token ids are integers")
    return dtype, stream.tell(), shape[0]


def _check_not_foreign(file: OpenFile, head: bytes) -> None:
    """Raises ValueError if the file is known to be something else than ids."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:16].lower()
    found = next((known[1:] for known in _FOREIGN if head.startswith(known[0])), None)
    if text.startswith(_MARKUP):
        found = "a web page or an XML document", "a server's answer was probably saved in place of the file"
    elif head.startswith(GZIP) and _is_gzip(file.read_head(_GZIP_BYTES)):
        found = "compressed by gzip", "decompress it"
    elif _is_arrow_stream(head):
        found = "an Arrow stream", "kind: hf serves folders of them"
    if found is not None:
        what, hint = found
        raise ValueError(f"{file.path} is {what}, not token ids: {hint}. If its bytes are ids, say header: none")


def _is_gzip(data: bytes) -> bool:
    # Two bytes may be a token. Whole or long results are the proof: the end has a checksum.
    unpack = zlib.decompressobj(wbits=31)
    try:
        made = unpack.decompress(data, _GZIP_PROOF_BYTES)
    except zlib.error:
        return False
    return unpack.eof or len(made) == _GZIP_PROOF_BYTES


def _is_arrow_stream(head: bytes) -> bool:
    # A marker, the length of the first message, and its root, a table whose first word is the distance of its vtable.
    if not head.startswith(b"\xff\xff\xff\xff") or len(head) < 16:
        return False
    length, root = np.frombuffer(head, "<i4", 2, offset=4).tolist()
    if length < 16 or length % 8 or not 4 <= root <= length - 4 or 8 + root + 4 > len(head):
        return False
    vtable = root - int.from_bytes(head[8 + root : 12 + root], "little", signed=True)
    return 4 <= vtable <= length - 4
