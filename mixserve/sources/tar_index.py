"""A tar file -> where the members of its WebDataset samples lie."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixserve.sources.kept_index import Index
from mixserve.sources.magic import GZIP, XZ, ZSTD
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.text import show, show_names

_BLOCK = 512
# Members that are longer are found by reading their headers, and a little of what follows them, alone.
_READ_BYTES, _READ_AFTER_LONG, _LONG_BYTES = 1 << 20, 4 << 10, 64 << 10
# A sample has a place for each extension of the file: at most so many places, or so many per member.
_FEW_CELLS, _LARGEST_SHARE = 1 << 20, 16
_LONGEST_HEADER = 1 << 20  # of an extended header, which has names
_COMPRESSED = {GZIP: "gzip", b"BZ": "bzip2", XZ[:2]: "xz", ZSTD[:2]: "zstd"}
_META = re.compile(r"(^|/)__[^/]*__($|/)")  # WebDataset's own files
_WITH_DATA, _WITHOUT_DATA = b"0\0007", b"123456"  # types of members


class TarIndex(NamedTuple):
    """The samples of a tar file: of each, and each of `names` (extensions), byte and size of the member; -1 if it has
    none."""

    names: list[str]
    table: Index  # shape (samples, names, 2)


class _Member(NamedTuple):
    name: str
    begin: int
    size: int


def pack_index(index: TarIndex) -> Index:
    """The index as integers alone, as they are kept."""
    names = json.dumps(index.names).encode()
    words = np.frombuffer(names + b" " * (-len(names) % 8), "<i8")
    return np.concatenate([[len(words)], words, index.table.reshape(-1)]).astype(np.int64)


def unpack_index(packed: Index) -> TarIndex:
    """What `pack_index` packed."""
    end = 1 + int(packed[0])
    names = json.loads(packed[1:end].astype("<i8").tobytes())
    return TarIndex(names, packed[end:].reshape(-1, len(names), 2) if names else np.empty((0, 0, 2), np.int64))


def index_tar(file: OpenFile) -> TarIndex:
    """The samples of the file: members that follow one another and have one name up to the first dot.

    What follows the dot, in lower case, is the extension. Members without one, hidden ones, and all that are no regular
    files are left out. Raises ValueError, which names the file, if it is damaged, cut, compressed or no tar file.
    """
    headers = _Headers(file)
    try:
        return _group(file, _members(file, headers))
    except ValueError:
        headers.check()  # whatever else is wrong there, it may be no header at all
        raise


def _group(file: OpenFile, members: Iterator[_Member]) -> TarIndex:
    names: dict[str, int] = {}
    row, last = -1, None
    found: list[tuple[int, int, int, int]] = []  # sample, name, byte and size
    seen: set[str] = set()
    for name, begin, size in members:
        key, extension = split_name(name)
        if not extension:
            continue
        if key != last:
            row, last = row + 1, key
            seen.clear()
        if extension in seen:
            raise ValueError(f"{file.path} has the member {show(name)} twice in one sample")
        seen.add(extension)
        found.append((row, names.setdefault(extension, len(names)), begin, size))
    cells = (row + 1) * len(names)
    if cells > _FEW_CELLS and cells > _LARGEST_SHARE * len(found):
        raise ValueError(
            f"{file.path} has {len(names):,} different extensions in {row + 1:,} samples, such as "
            f"{show_names(list(names)[:3])}: what follows the first dot of a member's name is its extension, so names "
            "of samples must have no dots"
        )
    table = np.full((row + 1, len(names), 2), -1, np.int64)
    if found:
        numbers = np.array(found, np.int64)
        table[numbers[:, 0], numbers[:, 1]] = numbers[:, 2:]
    return TarIndex(list(names), table)


def split_name(name: str) -> tuple[str, str]:
    """The key of the sample, with its folders, and the extension; an empty extension if it is no member of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or ("__" in name and _META.search(name)):
        return name, ""
    return folder + slash + stem, extension.lower()


def _members(file: OpenFile, headers: "_Headers") -> Iterator[_Member]:
    """The regular files in the archive, in order."""
    at = 0
    name, size = None, None  # of the next member, as a header of its own says
    everywhere: dict[str, str] = {}
    while True:
        head = headers.read(at)
        if head is None:
            headers.check()
            headers.check_end(at)
            return
        kind, data = head[156:157], at + _BLOCK
        own = _number(head[124:136])
        if own is None or own < 0:
            raise ValueError(f"{file.path} is damaged at byte {at:,}: it has no size there")
        if kind in b"xgLK":
            if own > _LONGEST_HEADER:
                raise ValueError(f"{file.path} is damaged at byte {at:,}: a header of {own:,} bytes")
            content = headers.data(data, own, at)
            if kind == b"L":
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind != b"K":
                found = _extended(content)
                if any(key.startswith("GNU.sparse.") for key in found):
                    raise ValueError(f"{file.path} has a sparse file at byte {at:,}; write it as a whole one")
                if kind == b"g":
                    everywhere |= found
                else:
                    name, size = found.get("path", name), found.get("size", size)
            at = _after(data, own)
            continue
        if kind == b"S":
            raise ValueError(f"{file.path} has a sparse file at byte {at:,}; write it as a whole one")
        given = size or everywhere.get("size")
        own = int(given) if given is not None and given.isdecimal() else own
        full_name = name or everywhere.get("path") or _name(head)
        is_regular = kind in _WITH_DATA and not full_name.endswith("/")
        if kind not in _WITHOUT_DATA or not kind:
            if data + own > file.size:
                raise ValueError(f"{file.path} ends within the member {show(full_name)}: it is cut")
            at = _after(data, own)
        else:
            at = data
        if is_regular:
            yield _Member(full_name, data, own)
        name = size = None


class _Headers:
    """Headers of a tar file, read in blocks. Their checksums are checked together, before the next block is read."""

    def __init__(self, file: OpenFile):
        self._file = file
        self._begin, self._block = 0, b""
        self._last = 0
        self._unchecked: list[int] = []

    def read(self, at: int) -> bytes | None:
        """The header at `at`, None if the archive ends there."""
        file, place = self._file, at - self._begin
        if not 0 <= place <= len(self._block) - _BLOCK:
            if at + _BLOCK > file.size:
                raise ValueError(
                    f"{file.path} has no end mark: it is cut, or is not a tar file"
                    if at
                    else f"{file.path} is not a tar file: it has {file.size} bytes"
                )
            self.check()
            is_long = at - self._last > _LONG_BYTES
            self._block = file.read(at, min(file.size - at, _READ_AFTER_LONG if is_long else _READ_BYTES))
            self._begin, place = at, 0
        self._last = at
        head = self._block[place : place + _BLOCK]
        if head[0] == 0 and head == bytes(_BLOCK):
            return None
        self._unchecked.append(place)
        if at == 0:
            self.check()
        return head

    def check(self) -> None:
        """Check the checksums of the headers that were read. Raises ValueError for the first that is wrong."""
        places, self._unchecked = self._unchecked, []
        if not places:
            return
        wrong = np.flatnonzero(~_are_headers(np.frombuffer(self._block, np.uint8)[_rows(places)]))
        if len(wrong):
            place = places[int(wrong[0])]
            raise ValueError(_why_not(self._file, self._begin + place, self._block[place : place + 8]))

    def data(self, begin: int, size: int, at: int) -> bytes:
        if begin + size > self._file.size:
            raise ValueError(f"{self._file.path} ends within the header at byte {at:,}: it is cut")
        return self._file.read(begin, size)

    def check_end(self, at: int) -> None:
        """Raises ValueError if other blocks follow the end mark: another archive, which `cat` appended."""
        while at < self._file.size:
            block = self._file.read(at, min(_READ_BYTES, self._file.size - at))
            if block.count(0) != len(block):
                raise ValueError(
                    f"{self._file.path} goes on after its end mark near byte {at:,}: are these archives that were "
                    "joined? Give each as a file of its own"
                )
            at += len(block)


def _why_not(file: OpenFile, at: int, head: bytes) -> str:
    compressed = _COMPRESSED.get(head[:2]) if at == 0 else None
    if compressed:
        return f"{file.path} is compressed ({compressed}): members in the middle cannot be read; decompress it"
    if at == 0:
        return f"{file.path} is not a tar file"
    return f"{file.path} is damaged at byte {at:,}: no header of a member is there"


def _are_headers(heads: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which rows of 512 bytes have the right checksum: the sum of all bytes, of which those of itself are spaces."""
    fields = heads[:, 148:156].tobytes()
    given = np.array([_number(fields[at : at + 8]) or -1 for at in range(0, len(fields), 8)])
    others = np.concatenate([heads[:, :148], heads[:, 156:]], axis=1)
    total = others.sum(1, dtype=np.int64) + 8 * 32
    # Some old programs add signed bytes.
    return (given == total) | (given == total - 256 * (others >= 128).sum(1))


def _rows(places: list[int]) -> npt.NDArray[np.int64]:
    return np.array(places)[:, None] + np.arange(_BLOCK)


def _number(field: bytes) -> int | None:
    """A number of a header: octal digits, or big-endian bytes after one of 0x80 or 0xFF."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    try:
        return int(field.partition(b"\0")[0] or b"0", 8)
    except ValueError:
        return None


def _name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    prefix = head[345:500].partition(b"\0")[0] if head[345] and head[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _extended(content: bytes) -> dict[str, str]:
    """The records `LENGTH KEY=VALUE\\n` of an extended header."""
    found: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at : at + 1].isdigit():
        length, _, _ = content[at : at + 20].partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break
        record = content[at + len(length) + 1 : at + int(length) - 1]
        key, _, value = record.decode("utf-8", "surrogateescape").partition("=")
        found[key] = value
        at += int(length)
    return found


def _after(data: int, size: int) -> int:
    return data + -(-size // _BLOCK) * _BLOCK
