"""Checkpoints of sessions on disk: written by Orbax, renamed into place when they are whole, each file with its hash.

A checkpoint is a folder NAME.NUMBER; numbers grow with every save of a session, so that one name may be saved again
without a moment in which it is not there. In it, `orbax/` is an Orbax checkpoint of two items, `state` (JSON, with
arrays replaced by their places) and `arrays`; `manifest.json` says what it is and holds the SHA-256 of every file.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixserve.sessions.storage import StateFolder, make_folder, storing, sync_folder
from mixserve.state import State
from mixserve_client.errors import CorruptCheckpoint, StorageFailed, UnknownCheckpoint
from mixserve_client.wire.dtypes import dtype_named
from mixserve_client.wire.session import is_name

_logger = logging.getLogger("mixserve")

_FORMAT = 1
_MANIFEST = "manifest.json"
_ORBAX = "orbax"
_FOLDER = re.compile(r"(?P<name>.+)\.(?P<number>\d{10,})")
_DESCRIBED = ("name", "saved_at", "index", "epoch", "fingerprint", "bytes", "version")
_ARRAY = "~array"


class _Found(NamedTuple):
    """A checkpoint's folder; numbers grow with every save."""

    number: int
    name: str
    path: Path


class Checkpoints:
    """Those of one mixture's sessions; safe to use from many threads."""

    def __init__(self, folder: StateFolder, mixture: str):
        self._folder = folder
        self._path = folder.checkpoints(mixture)
        self._mixture = mixture
        self._lock = threading.Lock()

    def save(self, session: str, name: str, state: State, fingerprint: str, keep_last: int | None) -> dict[str, Any]:
        """Keep `state`, in the place of what was kept under that name, and say what was kept.

        Of the session's checkpoints the newest `keep_last` stay, all where it is None. Raises StorageFailed; then
        nothing has changed.
        """
        with self._lock, storing(f"the checkpoint {name!r} of the session {session!r}"):
            found = self._found(session)
            number = max((checkpoint.number for checkpoint in found), default=0) + 1
            made = self._folder.unfinished()
            try:
                made.mkdir()
                _write_orbax(made / _ORBAX, state)
                manifest: dict[str, Any] = {
                    "format": _FORMAT,
                    "version": version("mixserve"),
                    "mixture": self._mixture,
                    "session": session,
                    "name": name,
                    "fingerprint": fingerprint,
                    "index": state["index"],
                    "epoch": state["epoch"],
                    "saved_at": time.time(),
                    "files": _hashes(made),
                }
                manifest["bytes"] = sum(file["bytes"] for file in manifest["files"].values())
                manifest["sha256"] = _manifest_hash(manifest)
                _write_synced(made / _MANIFEST, json.dumps(manifest, indent=1).encode())
                sync_folder(made)
                place = self._path / session
                with self._folder.writing():
                    make_folder(place)
                    made.rename(place / f"{name}.{number:010d}")
                    sync_folder(place)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        try:
            with self._lock:
                self._thin_out(session, keep_last)
        except OSError as error:
            _logger.warning("checkpoints of the session %r that are not wanted any more stay: %s", session, error)
        return _described(manifest)

    def load(self, session: str, name: str) -> tuple[State, str]:
        """The state that was kept under that name, and its mixture's fingerprint.

        Raises UnknownCheckpoint and CorruptCheckpoint.
        """
        with self._lock:
            checkpoint = self._newest(session, name)
            manifest = _read_manifest(checkpoint.path)
            for file, expected in manifest["files"].items():
                _check_file(checkpoint.path / file, expected)
            try:
                state = _read_orbax(checkpoint.path / _ORBAX)
            except Exception as error:  # whatever Orbax raises
                raise _damaged(checkpoint.path / _ORBAX, f"Orbax cannot read it: {error}") from error
        return state, manifest["fingerprint"]

    def described(self, session: str) -> list[dict[str, Any]]:
        """What is kept of a session, in the order in which it was saved; what cannot be read is said to be damaged."""
        with self._lock:
            names = {checkpoint.name: checkpoint for checkpoint in self._found(session)}
            return [_described_at(checkpoint) for checkpoint in sorted(names.values())]

    def described_one(self, session: str, name: str) -> dict[str, Any]:
        """What is kept under that name. Raises UnknownCheckpoint."""
        with self._lock:
            return _described_at(self._newest(session, name))

    def names(self, session: str) -> tuple[str, ...]:
        """The names of what is kept of a session, in the order in which it was saved."""
        return tuple(dict.fromkeys(checkpoint.name for checkpoint in reversed(self._found(session))))[::-1]

    def sessions(self) -> list[str]:
        """The sessions that have checkpoints."""
        folders = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(path.name for path in folders if is_name(path.name) and self._found(path.name))

    def delete(self, session: str, name: str) -> dict[str, Any]:
        """Delete what is kept under that name, and say what it was. Raises UnknownCheckpoint and StorageFailed."""
        with self._lock, storing(f"the deletion of the checkpoint {name!r} of the session {session!r}"):
            described = _described_at(self._newest(session, name))
            for checkpoint in self._found(session):
                if checkpoint.name == name:
                    self._folder.remove(checkpoint.path)
        return described

    def _found(self, session: str) -> list[_Found]:
        """The folders of a session's checkpoints, from the oldest on; of a name that was saved twice, both."""
        place = self._path / session
        if not place.is_dir():
            return []
        matches = ((path, _FOLDER.fullmatch(path.name)) for path in place.iterdir())
        return sorted(_Found(int(match["number"]), match["name"], path) for path, match in matches if match)

    def _newest(self, session: str, name: str) -> _Found:
        found = self._found(session)
        named = [checkpoint for checkpoint in found if checkpoint.name == name]
        if not named:
            known = ", ".join(sorted({repr(checkpoint.name) for checkpoint in found})) or "none at all"
            raise UnknownCheckpoint(
                f"the session {session!r} of the mixture {self._mixture!r} has no checkpoint {name!r}, but "
                f"{known:.1000}"
            )
        return named[-1]

    def _thin_out(self, session: str, keep_last: int | None) -> None:
        """Delete what was saved again under its name, and all but the newest `keep_last`."""
        newest: dict[str, _Found] = {checkpoint.name: checkpoint for checkpoint in self._found(session)}
        kept = sorted(newest.values())[-keep_last:] if keep_last else list(newest.values())
        for checkpoint in self._found(session):
            if checkpoint not in kept:
                self._folder.remove(checkpoint.path)


def _described(manifest: dict[str, Any]) -> dict[str, Any]:
    return {entry: manifest[entry] for entry in _DESCRIBED}


def _described_at(checkpoint: _Found) -> dict[str, Any]:
    try:
        return _described(_read_manifest(checkpoint.path))
    except CorruptCheckpoint as error:
        return {"name": checkpoint.name, "damaged": str(error)}


def _write_orbax(path: Path, state: State) -> None:
    """Raises OSError, for whatever Orbax raises too."""
    from orbax import checkpoint as orbax

    arrays: dict[str, Any] = {}
    skeleton = _without_arrays(state, arrays)
    items = {"state": orbax.args.JsonSave(skeleton)} | ({"arrays": orbax.args.PyTreeSave(arrays)} if arrays else {})
    try:
        with orbax.Checkpointer(orbax.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, orbax.args.Composite(**items))
    except OSError:
        raise
    except Exception as error:  # TensorStore says a full disk with a ValueError
        raise StorageFailed(f"Orbax cannot write the checkpoint on the server: {error}") from error


def _read_orbax(path: Path) -> State:
    from orbax import checkpoint as orbax

    items: dict[str, Any] = {"state": orbax.args.JsonRestore()}
    handlers: dict[str, Any] = {"state": orbax.JsonCheckpointHandler()}
    if (path / "arrays").exists():
        items["arrays"], handlers["arrays"] = orbax.args.PyTreeRestore(), orbax.PyTreeCheckpointHandler()
    with orbax.Checkpointer(orbax.CompositeCheckpointHandler(**handlers)) as checkpointer:
        restored = checkpointer.restore(path, orbax.args.Composite(**items))
    return _with_arrays(restored.state, restored.arrays if "arrays" in items else {})


def _without_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    """`value` for JSON; its arrays go into `arrays`. Those without elements, which Orbax refuses, stay."""
    if isinstance(value, dict):
        # Pairs: keys may be numbers, which JSON would turn into strings.
        return {"~dict": [[key, _without_arrays(child, arrays)] for key, child in value.items()]}
    if isinstance(value, list):
        return [_without_arrays(child, arrays) for child in value]
    if isinstance(value, np.ndarray):
        if not value.size:
            return {"~empty": [value.dtype.name, list(value.shape)]}
        name, dtype = str(len(arrays)), value.dtype
        # Orbax's store has not all dtypes that NumPy has not itself: their bytes are kept.
        arrays[name] = value if dtype.isbuiltin == 1 else np.ascontiguousarray(value).view(np.uint8)
        return {_ARRAY: [name, dtype.name, list(value.shape)]}
    return value


def _with_arrays(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_with_arrays(child, arrays) for child in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "~dict":
        return {key: _with_arrays(child, arrays) for key, child in content}
    if kind == _ARRAY:
        name, dtype, shape = content
        return np.asarray(arrays[name]).view(dtype_named(dtype)).reshape(shape)
    return np.empty(content[1], dtype_named(content[0]))


def _hashes(folder: Path) -> dict[str, Any]:
    """The size and hash of every file below `folder`, all of which are made to last. Raises OSError."""
    hashes: dict[str, Any] = {}
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place) / file
            with path.open("rb+") as opened:
                os.fsync(opened.fileno())
            hashes[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
        sync_folder(Path(place))
    return dict(sorted(hashes.items()))


def _check_file(path: Path, expected: Any) -> None:
    """Raises CorruptCheckpoint."""
    try:
        found = {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    if found["bytes"] != expected["bytes"]:
        raise _damaged(path, f"it has {found['bytes']} bytes, {expected['bytes']} were written")
    if found != expected:
        raise _damaged(path, "its bytes are not those that were written")


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["sha256"] != _manifest_hash(manifest):
            raise ValueError("its bytes are not those that were written")
        missing = [entry for entry in (*_DESCRIBED, "format", "files") if entry not in manifest]
        if missing:
            raise ValueError(f"it does not say {', '.join(missing)}")
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    if manifest["format"] != _FORMAT:
        raise CorruptCheckpoint(
            f"{path} has the format {manifest['format']}, this server reads {_FORMAT}; use the mixserve that wrote it, "
            f"{manifest['version']}"
        )
    return manifest


def _manifest_hash(manifest: dict[str, Any]) -> str:
    said = {entry: value for entry, value in manifest.items() if entry != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _damaged(path: Path, why: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"the checkpoint's file {path} is damaged: {why}. Restore another checkpoint")
