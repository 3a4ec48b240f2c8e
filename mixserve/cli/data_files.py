"""Files and folders -> groups of files of one kind, by their names and first bytes. Reads little of few files."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mixserve.sources import magic
from mixserve.sources.crc32c import crcs_of_words
from mixserve.sources.registry import KINDS

MOST_ENTRIES = 5000
_HEAD_BYTES = 1024
_LOOKED_AT = 8  # files of a folder that have one ending
_LARGEST_INDEX = 64 << 20
_IDS = (".bin", ".npy", ".ids", ".tokens", ".u16", ".u32")  # files without a header that may have ids
_BESIDE = ("dataset_dict.json", "dataset_infos.json")  # belong to data sets in the folders beside them
# What files begin with that no kind serves, and what to do.
_FOREIGN = (
    (magic.GZIP, "compressed by gzip: decompress it"),
    (magic.ZSTD, "compressed by zstd: decompress it"),
    (magic.XZ, "compressed by xz: decompress it"),
    (magic.ARROW, "an Arrow file alone: kind hf serves folders that save_to_disk wrote"),
    (magic.GIT_LFS, "a Git LFS pointer: fetch the file with git lfs pull"),
)


@dataclass
class Group:
    """Files or folders of one kind in `folder`; `what` is `arrays`, `npz`, … where a kind has several formats."""

    kind: str
    folder: Path
    paths: list[Path]
    beside: list[str]  # all names in the folder, which a pattern may match
    what: str = ""

    @cached_property
    def nbytes(self) -> int:
        """The size of the files, of folders that of the first files in them."""
        paths = self.paths
        if self.kind == "megatron":
            paths = [*paths, *(path.with_suffix(".bin") for path in paths)]
        inner = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
        return sum(file.stat().st_size for file in islice(inner, 2 * MOST_ENTRIES) if file.is_file())


@dataclass
class Looked:
    """What was found: groups, and what no kind was recognised in, with the reason."""

    groups: list[Group]
    unknown: list[tuple[Path, str]]
    entries: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether there is more than was looked at."""
        return self.entries > MOST_ENTRIES


def look_at(paths: Iterable[Path]) -> Looked:
    """The groups in these files and folders, and in the folders below. Raises OSError if a path cannot be read."""
    looked = Looked([], [])
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        if path.is_dir():
            _visit(path, looked)
        else:
            path.stat()  # raises if it is not there
            by_folder.setdefault(path.parent, []).append(path)
    for folder, files in by_folder.items():
        # A pattern for these files must not match others.
        _group_files(folder, files, [entry.name for entry in folder.iterdir()], looked)
    return looked


def _visit(folder: Path, looked: Looked) -> None:
    """Look at a folder and those below. A stack: folders may be nested deeper than functions can be."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        entries = sorted((entry for entry in os.scandir(here) if not entry.name.startswith(".")), key=lambda e: e.name)
        names = [entry.name for entry in entries]
        looked.entries += len(names)
        kind = _kind_of_folder(here, names)
        if kind is not None:
            beside = [entry.name for entry in here.parent.iterdir()]
            _add(Group(kind, here.parent, [here], beside, _format_of(here) if kind == "zarr" else ""), looked)
            continue
        if looked.is_cut:
            entries = entries[: max(0, MOST_ENTRIES - looked.entries)]
        files = [Path(entry.path) for entry in entries if entry.is_file() and entry.name not in _BESIDE]
        _group_files(here, files, names, looked)
        if not looked.is_cut:
            waiting += [Path(entry.path) for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]


def _kind_of_folder(folder: Path, names: Sequence[str]) -> str | None:
    if "state.json" in names and any(name.endswith(".arrow") for name in names):
        return "hf"
    if "index.json" in names and _is_mds(folder / "index.json"):
        return "mds"
    is_zarr = "zarr.json" in names or (folder / ".zgroup").exists() or (folder / ".zarray").exists()
    return "zarr" if is_zarr else None


def _format_of(zarr: Path) -> str:
    if (zarr / ".zarray").exists():
        return "zarr array"
    try:
        found: Any = json.loads((zarr / "zarr.json").read_bytes())
        return f"zarr {found['node_type']}"
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return "zarr group"


def _is_mds(index: Path) -> bool:
    try:
        found: Any = json.loads(index.read_bytes()) if index.stat().st_size <= _LARGEST_INDEX else {}
        return found["version"] == 2 and "shards" in found
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        return False


def _add(group: Group, looked: Looked) -> None:
    if group.kind in KINDS:
        looked.groups.append(group)
    else:
        what = f"it seems to be {group.kind}, which this version of mixserve has no kind for"
        looked.unknown += [(path, what) for path in group.paths]


def _group_files(folder: Path, files: Sequence[Path], beside: list[str], looked: Looked) -> None:
    """Add the groups of the files of one folder."""
    by_ending: dict[str, list[Path]] = {}
    for file in files:
        by_ending.setdefault(re.sub(r"\d+", "#", file.suffix), []).append(file)
    kinds: dict[tuple[str, str], list[Path]] = {}
    for alike in by_ending.values():
        for file, (kind, said) in zip(alike, _kinds_of(alike), strict=True):
            if kind:
                kinds.setdefault((kind, said), []).append(file)
            else:
                looked.unknown.append((file, said))
    indices = {file.with_suffix("") for file in kinds.get(("megatron", ""), [])}
    for (kind, what), found in kinds.items():
        own = [file for file in found if not (kind == "tokens" and file.with_suffix("") in indices)]
        if own:
            _add(Group(kind, folder, own, beside, what), looked)


def _kinds_of(files: Sequence[Path]) -> list[tuple[str, str]]:
    """The kind of each file, and its format; or an empty text, and the reason. Looks at all only if some differ."""
    places = sorted({len(files) * i // _LOOKED_AT for i in range(_LOOKED_AT)} | {len(files) - 1})
    found = {_kind_of(files[place]) for place in places}
    return [found.pop()] * len(files) if len(found) == 1 else [_kind_of(file) for file in files]


def _kind_of(file: Path) -> tuple[str, str]:
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError as error:
        return "", f"it cannot be read: {error.strerror}"
    if not head:
        return "", "it is empty"
    for begin, said in _FOREIGN:
        if head.startswith(begin):
            return "", said
    for begin, kind, what in (
        (magic.MEGATRON_INDEX, "megatron", ""),
        (magic.PARQUET, "parquet", ""),
        (magic.ARRAY_RECORD, "array_record", ""),
        (magic.HDF5, "hdf5", ""),
        (magic.NPY, "arrays", "npy"),
        (magic.ZIP, "arrays", "npz"),
    ):
        if head.startswith(begin):
            return kind, what
    if head[257:262] == b"ustar":
        return "webdataset", ""
    if len(head) >= 12 and crcs_of_words(_first_word(head))[0] == int.from_bytes(head[8:12], "little"):
        return "tfrecord", ""
    if file.suffix == ".safetensors" and head[8:9] == b"{":
        return "arrays", "safetensors"
    if file.suffix in _IDS:
        is_llm_c = int.from_bytes(head[:4], "little") in magic.LLM_C_DTYPES
        return "tokens", "llm.c" if is_llm_c else "plain"
    return "", "no kind has files that begin like this"


def _first_word(head: bytes) -> np.ndarray:
    return np.frombuffer(head[:8], np.uint8)[None]


def pattern_of(group: Group) -> list[str]:
    """The names of the group's files in its folder, as one pattern if one matches these and no other."""
    names = [path.name for path in group.paths]
    if group.kind == "megatron":
        names = [name.removesuffix(".idx") for name in names]
        beside = [name.removesuffix(".idx") for name in group.beside if name.endswith(".idx")]
    else:
        beside = group.beside
    if len(names) == 1:
        return names
    endings = {Path(name).suffix for name in names}
    written = re.match(r"\.[A-Za-z_]+", Path(names[0]).suffix)
    begin, end = _common_begin(names), _common_begin([name[::-1] for name in names])[::-1]
    candidates = [f"*{ending}" for ending in endings if ending] if len(endings) == 1 else []
    candidates += [f"*{written[0]}*"] if written else []
    for pattern in (*candidates, f"{begin.rstrip('0123456789')}*", f"{begin}*", f"{begin}*{end}"):
        plain = pattern.replace("*", "", 1) if pattern.count("*") == 1 else pattern.strip("*")
        matched = {name for name in beside if not name.startswith(".") and fnmatchcase(name, pattern)}
        if matched == set(names) and not set("[]?*$~") & set(plain) and "$" not in str(group.folder):
            return [pattern]
    return names


def _common_begin(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:count]
