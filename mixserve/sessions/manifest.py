"""A checkpoint's manifest: what it says, and whether the files beside it are those that it names.

Checkpoints may have been copied from anywhere. So nothing is opened that is not a regular file inside the checkpoint's
own folder, nothing is read before its size is known, and nothing is restored unless every byte has been compared.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, cast

from mixserve.sessions.storage import open_regular, sync_folder
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
    """The size and hash of every file below `folder`, all of which are made to last. Raises OSError."""
    hashes: dict[str, Any] = {}
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place) / file
            with path.open("rb+") as opened:
                os.fsync(opened.fileno())
                size, digest = os.fstat(opened.fileno()).st_size, _digest(opened)
            hashes[str(path.relative_to(folder))] = {"bytes": size, "sha256": digest}
        sync_folder(Path(place))
    return dict(sorted(hashes.items()))


def manifest_hash(manifest: Manifest) -> str:
    """What a manifest says of itself under `sha256`."""
    said = {entry: value for entry, value in manifest.items() if entry != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a checkpoint's folder, whose entries are what they must be. Raises CorruptCheckpoint."""
    path = folder / MANIFEST
    if folder.is_symlink():
        raise damaged(folder, "it is a link, which is not followed")
    try:
        with open_regular(path, _MANIFEST_BYTES) as (file, _):
            manifest: Any = json.loads(file.read(_MANIFEST_BYTES))
        if not isinstance(manifest, dict):
            raise ValueError(f"it must be a dict, and is a {type(manifest).__name__}")
        said = cast(Manifest, manifest)
        if said.get("sha256") != manifest_hash(said):
            raise ValueError("its bytes are not those that were written")
        missing = [entry for entry in (*DESCRIBED, "format", "files") if entry not in said]
        if missing:
            raise ValueError(f"it does not say {', '.join(missing)}")
        is_ours = type(said["format"]) is int and said["format"] == FORMAT
        if is_ours:
            _check_entries(said)
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{error!s:.300}") from error
    if not is_ours:
        raise CorruptCheckpoint(
            f"{_shown(path)} has the format {said['format']!r:.20}, this server reads {FORMAT}; use the mixserve that "
            f"wrote it, {said['version']!r:.40}"
        )
    return said


def verified(folder: Path) -> Manifest:
    """The manifest, where the files of the checkpoint are exactly those that it names. Raises CorruptCheckpoint."""
    manifest = read_manifest(folder)
    named, found = manifest["files"], _sizes(folder)
    found.pop(MANIFEST, None)
    for name, expected in named.items():
        if name not in found:
            raise damaged(folder / name, "it is not a file of this checkpoint")
        if found[name] != expected["bytes"]:
            raise damaged(folder / name, f"it has {found[name]} bytes, {expected['bytes']} were written")
    for name in found:
        if name not in named:
            raise damaged(folder / name, "it is not among the files that were written")
    for name, expected in named.items():
        _check_content(folder / name, expected)
    return manifest


def damaged(path: Path, why: str) -> CorruptCheckpoint:
    """The error for a file that is not what was written."""
    return CorruptCheckpoint(f"the checkpoint's file {_shown(path)} is damaged: {why}. Restore another checkpoint")


def _check_entries(manifest: Manifest) -> None:
    """Raises ValueError, naming the entry."""
    for entry, (is_right, allowed) in _ENTRIES.items():
        if not is_right(manifest[entry]):
            raise ValueError(f"its entry {entry} must be {allowed}, and is {manifest[entry]!r:.100}")
    for name, said in cast(dict[str, Any], manifest["files"]).items():
        if not name.startswith(f"{ORBAX}/") or not isinstance(said, dict):
            raise ValueError(
                f"it may name files in {ORBAX}/ only, each with its bytes and sha256, and names {name!r:.100}"
            )
        entries = cast(dict[str, Any], said)
        if not _is_count(entries.get("bytes")) or not isinstance(entries.get("sha256"), str):
            raise ValueError(f"it does not say how many bytes {name!r:.100} has, and which")
    total = sum(file["bytes"] for file in manifest["files"].values())
    if total != manifest["bytes"] or total > CHECKPOINT_BYTES:
        raise ValueError(f"its files have {total} bytes; {manifest['bytes']} are said, {CHECKPOINT_BYTES} allowed")


def _is_count(value: Any) -> bool:
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
    """The size of every file below a folder, by its path in it.

    Raises CorruptCheckpoint where there is anything else than files and folders, too many of them, or too deep ones.
    """
    sizes: dict[str, int] = {}
    seen, places = 0, [("", 0)]
    while places:
        inside, depth = places.pop()
        try:
            with os.scandir(folder / inside) as entries:
                for entry in entries:
                    name, seen = f"{inside}{entry.name}", seen + 1
                    if seen > 2 * FILES or depth > _LEVELS:
                        raise damaged(folder, f"it holds more than {FILES} files, or more than {_LEVELS} levels")
                    if entry.is_dir(follow_symlinks=False):
                        places.append((f"{name}/", depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        sizes[name] = entry.stat(follow_symlinks=False).st_size
                    else:
                        raise damaged(folder / name, "it is neither a regular file nor a folder")
        except OSError as error:
            raise damaged(folder / inside, f"it cannot be read: {error.strerror}") from error
    return sizes


def _check_content(path: Path, expected: dict[str, Any]) -> None:
    """Raises CorruptCheckpoint."""
    try:
        with open_regular(path, expected["bytes"]) as (file, _):
            digest = _digest(file)
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from error
    if digest != expected["sha256"]:
        raise damaged(path, "its bytes are not those that were written")


def _digest(file: BufferedReader | BufferedRandom) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(path: Path) -> str:
    """A path for a message, which must be text whatever the bytes of a name are."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
