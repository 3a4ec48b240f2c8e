"""A checkpoint's manifest, and the comparison of a checkpoint's files with it.

Checkpoints may have been copied from anywhere. So we open only regular files inside the checkpoint's own folder, read
nothing before its size is known, and restore nothing unless the hash of every file matches.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, cast

from mixserve.disk import sync
from mixserve.sessions.storage import open_regular
from mixserve_client.errors import CorruptCheckpoint
from mixserve_client.schema.sessions import is_name

FORMAT = 1
MANIFEST = "manifest.json"
ORBAX = "orbax"
CHECKPOINT_BYTES = 1 << 30
_MANIFEST_BYTES = 4 << 20
FILES, _LEVELS = 10_000, 8
_LAST = 2**63 - 1
DESCRIBED = ("name", "saved_at", "index", "epoch", "fingerprint", "bytes", "version")

Manifest = dict[str, Any]


def hash_files(folder: Path) -> dict[str, Any]:
    """{path: {"bytes", "sha256"}} of every file below `folder`; syncs files and folders to disk. Raises OSError."""
    hashes: dict[str, Any] = {}
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place) / file
            with path.open("rb+") as opened:
                os.fsync(opened.fileno())
                size, digest = os.fstat(opened.fileno()).st_size, _digest(opened)
            hashes[str(path.relative_to(folder))] = {"bytes": size, "sha256": digest}
        sync(Path(place))
    return dict(sorted(hashes.items()))


def manifest_hash(manifest: Manifest) -> str:
    """The SHA-256 of a manifest's other entries, for its entry `sha256`."""
    # Of sorted JSON, not of the file's bytes: the entry is part of the file that it describes.
    said = {entry: value for entry, value in manifest.items() if entry != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint's folder, with all its entries checked. Raises CorruptCheckpoint."""
    path = folder / MANIFEST
    if folder.is_symlink():
        raise damage_error(folder, "it is a link, and links are not followed")
    try:
        with open_regular(path, _MANIFEST_BYTES) as (file, _):
            manifest: Any = json.loads(file.read(_MANIFEST_BYTES))
        if not isinstance(manifest, dict):
            raise ValueError(f"it must be a dict, and is a {type(manifest).__name__}")
        said = cast(Manifest, manifest)
        if said.get("sha256") != manifest_hash(said):
            raise ValueError("it has changed since it was written: its SHA-256 differs")
        missing = [entry for entry in (*DESCRIBED, "format", "files") if entry not in said]
        if missing:
            raise ValueError(f"it lacks the entries {', '.join(missing)}")
        # A later format may have other entries, so only ours are checked.
        is_ours = type(said["format"]) is int and said["format"] == FORMAT
        if is_ours:
            _check_entries(said)
    except OSError as error:
        raise damage_error(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # json.loads recurses for nested lists
        raise damage_error(path, f"{error!s:.300}") from error
    if not is_ours:
        raise CorruptCheckpoint(
            f"{_show(path)} has the format {said['format']!r:.20}, this server reads {FORMAT}; use the version of "
            f"mixserve that wrote it, {said['version']!r:.40}"
        )
    return said


def verify(folder: Path) -> Manifest:
    """The manifest, if the checkpoint has exactly the files in it, with these hashes. Raises CorruptCheckpoint."""
    manifest = read_manifest(folder)
    named, found = manifest["files"], _sizes(folder)
    found.pop(MANIFEST, None)
    for name, expected in named.items():
        if name not in found:
            raise damage_error(folder / name, "it is missing")
        if found[name] != expected["bytes"]:
            raise damage_error(folder / name, f"it has {found[name]} bytes, {expected['bytes']} were written")
    for name in found:
        if name not in named:
            raise damage_error(folder / name, "the manifest does not list it")
    # Last, and only after all sizes match: hashing is the slow part.
    for name, expected in named.items():
        _check_content(folder / name, expected)
    return manifest


def damage_error(path: Path, why: str) -> CorruptCheckpoint:
    """The error for a file that differs from what was written."""
    return CorruptCheckpoint(f"the checkpoint's file {_show(path)} is damaged: {why}. Restore another checkpoint")


def _check_entries(manifest: Manifest) -> None:
    """Raises ValueError, naming the entry."""
    for entry, (is_right, allowed) in _ENTRIES.items():
        if not is_right(manifest[entry]):
            raise ValueError(f"its entry {entry} must be {allowed}, and is {manifest[entry]!r:.100}")
    for name, said in cast(dict[str, Any], manifest["files"]).items():
        # A path such as orbax/../../x gets no further: the files that are found in the folder have no such names.
        if not name.startswith(f"{ORBAX}/") or not isinstance(said, dict):
            raise ValueError(
                f"it may list only files in {ORBAX}/, each with its bytes and sha256, and lists {name!r:.100}"
            )
        entries = cast(dict[str, Any], said)
        if not _is_count(entries.get("bytes")) or not isinstance(entries.get("sha256"), str):
            raise ValueError(f"it lacks the bytes or the sha256 of {name!r:.100}")
    total = sum(file["bytes"] for file in manifest["files"].values())
    if total != manifest["bytes"] or total > CHECKPOINT_BYTES:
        raise ValueError(
            f"its files have {total} bytes; its entry bytes is {manifest['bytes']}, at most {CHECKPOINT_BYTES} are "
            "allowed"
        )


def _is_count(value: Any) -> bool:
    # bool is a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST


def _is_time(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LAST and math.isfinite(value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 200 and value.isprintable()


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and 0 < len(cast(dict[str, Any], value)) <= FILES


_COUNT, _TEXT = (_is_count, "an integer in 0..2^63 - 1"), (_is_text, "at most 200 printable characters")
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_name, "the name of a checkpoint"),
    "saved_at": (_is_time, "seconds since 1970"),
    "index": _COUNT,
    "epoch": _COUNT,
    "fingerprint": _TEXT,
    "bytes": _COUNT,
    "version": _TEXT,
    "files": (_is_table, f"a dict of 1 to {FILES} files"),
}


def _sizes(folder: Path) -> dict[str, int]:
    """The size of every file below `folder`, by its path in it.

    Raises CorruptCheckpoint if there is anything but files and folders, or if they are too many or too deep.
    """
    sizes: dict[str, int] = {}
    # With a stack of our own, and counted while it runs: the folder may come from anywhere.
    seen, places = 0, [("", 0)]
    while places:
        inside, depth = places.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name, seen = f"{inside}{entry.name}", seen + 1
                    if seen > 2 * FILES or depth > _LEVELS:
                        raise damage_error(folder, f"it has more than {FILES} files, or more than {_LEVELS} levels")
                    if entry.is_dir(follow_symlinks=False):
                        places.append((f"{name}/", depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        sizes[name] = entry.stat(follow_symlinks=False).st_size
                    else:
                        raise damage_error(folder / name, "it is neither a regular file nor a folder")
        except OSError as error:
            raise damage_error(folder / inside, f"it cannot be read: {error.strerror}") from error
    return sizes


def _check_content(path: Path, expected: dict[str, Any]) -> None:
    """Raises CorruptCheckpoint."""
    try:
        with open_regular(path, expected["bytes"]) as (file, _):
            digest = _digest(file)
    except OSError as error:
        raise damage_error(path, f"it cannot be read: {error.strerror}") from error
    if digest != expected["sha256"]:
        raise damage_error(path, "it has changed since it was written: its SHA-256 differs")


def _digest(file: BufferedReader | BufferedRandom) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _show(path: Path) -> str:
    """A path for a message, as printable text: names on disk may be any bytes."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
