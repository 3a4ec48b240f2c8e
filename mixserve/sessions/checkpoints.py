"""Checkpoints of sessions on disk: written by Orbax, renamed into place when complete, each file with its hash.

A checkpoint is a folder NAME.NUMBER. Numbers grow with every save of a session, so that saving a name again leaves no
moment without a checkpoint of that name. In the folder, `orbax/` is an Orbax checkpoint of two items, `state` (JSON,
with placeholders for arrays) and `arrays`; `manifest.json` describes it and has the SHA-256 of every file.
"""

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mixserve.disk import sync, write_and_sync
from mixserve.module.state import State
from mixserve.sessions.manifest import (
    CHECKPOINT_BYTES,
    DESCRIBED,
    FILES,
    FORMAT,
    MANIFEST,
    ORBAX,
    Manifest,
    damage_error,
    hash_files,
    manifest_hash,
    read_manifest,
    verify,
)
from mixserve.sessions.orbax_files import read_orbax, write_orbax
from mixserve.sessions.storage import StateFolder, make_folder, storing
from mixserve.sessions.unchanged import Unchanged
from mixserve_client.errors import CorruptCheckpoint, StorageFailed, UnknownCheckpoint
from mixserve_client.forks import renew_in_forks
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.sessions import is_name

_logger = logging.getLogger("mixserve")
_UNDELETED = LimitedLog(_logger)

MOST_CHECKPOINTS, MOST_SESSIONS = 1000, 10_000
# What lists need not read again: the names of sessions that have few, and manifests.
_MOST_NAMED, _MOST_NAMES, _MOST_DESCRIBED = 10_000, 20, 10_000
_FOLDER = re.compile(r"(?P<name>.+)\.(?P<number>\d{10,17})", re.ASCII)
# Reads take no lock. A read that finds its checkpoint deleted meanwhile is retried this often.
_ATTEMPTS = 10

T = TypeVar("T")


class _Found(NamedTuple):
    """A checkpoint's folder; numbers grow with every save."""

    number: int
    name: str
    path: Path


class Checkpoints:
    """The checkpoints of one mixture's sessions. Thread-safe.

    Reading, describing and deleting take no lock. A save takes one only to choose a number and rename; Orbax itself
    does one thing at a time in the process.
    """

    def __init__(self, folder: StateFolder, mixture: str):
        self._folder = folder
        self._path = folder.checkpoints(mixture)
        self._mixture = mixture
        self._names: Unchanged[tuple[str, ...]] = Unchanged(_MOST_NAMED, settled=True, is_small=_is_small)
        self._described: Unchanged[dict[str, Any]] = Unchanged(_MOST_DESCRIBED)
        self._lock = threading.Lock()
        renew_in_forks(self, Checkpoints._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def save(self, session: str, name: str, state: State, fingerprint: str, keep_last: int | None) -> dict[str, Any]:
        """Save `state` as the checkpoint `name`, replacing an earlier one. Returns its description.

        Deletes all but the newest `keep_last` checkpoints of the session (None: deletes none). Raises StorageFailed;
        then nothing has changed.
        """
        self._check_room(session, name, keep_last)
        with storing(f"the checkpoint {name!r} of the session {session!r}"):
            made = self._folder.unfinished()
            try:
                manifest = self._write(made, session, name, state, fingerprint)
                self._put_into_place(made, session, name)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        # The new checkpoint is safe by now, so a failure to delete old ones must not fail the save.
        try:
            self._delete_old(session, keep_last)
        except OSError as error:
            _UNDELETED.warn("cannot delete old checkpoints of the session %r: %s", session, error)
        return _describe(manifest)

    def load(self, session: str, name: str) -> tuple[State, str]:
        """The state in the checkpoint `name`, and its mixture's fingerprint.

        Raises UnknownCheckpoint and CorruptCheckpoint.
        """
        return self._look_up(session, name, _load)

    def describe_all(self, session: str) -> list[dict[str, Any]]:
        """Descriptions of a session's checkpoints, the oldest first; {"name", "damaged"} of one that cannot be read."""
        descriptions: list[dict[str, Any]] = []
        for _ in range(_ATTEMPTS):
            newest = sorted({checkpoint.name: checkpoint for checkpoint in self._find_all(session)}.values())
            pairs = [(checkpoint, self._describe_at(checkpoint)) for checkpoint in newest]
            # What looks damaged and is gone was being deleted while we read it.
            descriptions = [said for checkpoint, said in pairs if "damaged" not in said or _is_there(checkpoint)]
            if len(descriptions) == len(pairs):
                break
        return descriptions

    def describe(self, session: str, name: str) -> dict[str, Any]:
        """The description of the checkpoint `name`. Raises UnknownCheckpoint."""
        try:
            return self._look_up(session, name, lambda checkpoint: _describe(read_manifest(checkpoint.path)))
        except CorruptCheckpoint as error:
            return {"name": name, "damaged": str(error)}

    def names(self, session: str) -> tuple[str, ...]:
        """The names of a session's checkpoints, the oldest first."""
        # Reversed twice: dict.fromkeys keeps the first of equal names, and the last save of a name is the one to keep.
        return tuple(dict.fromkeys(checkpoint.name for checkpoint in reversed(self._find_all(session))))[::-1]

    def names_by_session(self) -> dict[str, tuple[str, ...]]:
        """The names of the checkpoints of all sessions that have some, the oldest first."""
        try:
            with os.scandir(self._path) as folders:
                sessions = [(folder.name, folder.stat()) for folder in folders if is_name(folder.name)]
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = ((name, self._names_of(name, state)) for name, state in sessions)
        return {name: names for name, names in found if names}

    def _names_of(self, session: str, state: os.stat_result) -> tuple[str, ...]:
        """The names of a session's checkpoints. A save or deletion changes the time of the folder, whose `state` is."""
        return self._names.get(session, state, lambda: self.names(session))

    def delete(self, session: str, name: str) -> dict[str, Any]:
        """Delete the checkpoint `name`. Returns its description. Raises UnknownCheckpoint and StorageFailed."""
        description = self.describe(session, name)
        with storing(f"the deletion of the checkpoint {name!r} of the session {session!r}"):
            for checkpoint in self._find_all(session):
                if checkpoint.name == name:
                    self._remove(checkpoint)
        return description

    def _check_room(self, session: str, name: str, keep_last: int | None) -> None:
        """Raises StorageFailed if there would be too many checkpoints."""
        names = self.names(session)
        count = len({*names, name})
        if min(count, keep_last or count) > MOST_CHECKPOINTS:
            raise StorageFailed(
                f"the session {session!r} has {len(names)} checkpoints, at most {MOST_CHECKPOINTS} are allowed; delete "
                "some, or save with keep_last"
            )
        if not names and self._path.is_dir() and sum(1 for _ in self._path.iterdir()) >= MOST_SESSIONS:
            raise StorageFailed(
                f"the mixture {self._mixture!r} has checkpoints of {MOST_SESSIONS} sessions, and no more are allowed; "
                "delete all checkpoints of some sessions"
            )

    def _write(self, made: Path, session: str, name: str, state: State, fingerprint: str) -> Manifest:
        """Write a checkpoint to the folder `made`. Returns its manifest. Raises OSError and StorageFailed."""
        made.mkdir()
        write_orbax(made / ORBAX, state)
        manifest: Manifest = {
            "format": FORMAT,
            "version": version("mixserve"),
            "mixture": self._mixture,
            "session": session,
            "name": name,
            "fingerprint": fingerprint,
            "index": state["index"],
            "epoch": state["epoch"],
            "saved_at": time.time(),
            "files": hash_files(made),
        }
        manifest["bytes"] = sum(file["bytes"] for file in manifest["files"].values())
        if manifest["bytes"] > CHECKPOINT_BYTES or len(manifest["files"]) > FILES:
            raise StorageFailed(
                f"a checkpoint may have {CHECKPOINT_BYTES} bytes in {FILES} files, this one has {manifest['bytes']} in "
                f"{len(manifest['files'])}: reset the session's statistics, or make them smaller"
            )
        manifest["sha256"] = manifest_hash(manifest)
        # After all other files, which `hash_files` has synced: a manifest on disk means a complete checkpoint.
        write_and_sync(made / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(made)
        return manifest

    def _put_into_place(self, made: Path, session: str, name: str) -> None:
        """Rename the folder `made` to NAME.NUMBER. Raises OSError."""
        place = self._path / session
        self._folder.grow(sum(path.lstat().st_size for path in made.rglob("*") if path.is_file()))
        with self._folder.writing():
            make_folder(place)
            # A rename cannot replace a folder that is not empty, hence a number, which two saves must not both choose.
            with self._lock:
                number = max((checkpoint.number for checkpoint in self._find_all(session)), default=0) + 1
                made.rename(place / f"{name}.{number:010d}")
            sync(place)

    def _look_up(self, session: str, name: str, look: Callable[[_Found], T]) -> T:
        """`look` at the newest checkpoint of that name, and again at its successor if it was replaced meanwhile.

        Raises UnknownCheckpoint and CorruptCheckpoint.
        """
        for _ in range(_ATTEMPTS):
            checkpoint = self._newest(session, name)
            try:
                return look(checkpoint)
            except CorruptCheckpoint:
                if _is_there(checkpoint):
                    raise
        return look(self._newest(session, name))

    def _find_all(self, session: str) -> list[_Found]:
        """The folders of a session's checkpoints, the oldest first; both, if a name was saved twice."""
        place = self._path / session
        if not place.is_dir():
            return []
        matches = ((path, _FOLDER.fullmatch(path.name)) for path in place.iterdir())
        found = (_Found(int(match["number"]), match["name"], path) for path, match in matches if match)
        return sorted(checkpoint for checkpoint in found if is_name(checkpoint.name))

    def _newest(self, session: str, name: str) -> _Found:
        found = self._find_all(session)
        matches = [checkpoint for checkpoint in found if checkpoint.name == name]
        if not matches:
            known = ", ".join(sorted({repr(checkpoint.name) for checkpoint in found})) or "none"
            raise UnknownCheckpoint(
                f"the session {session!r} of the mixture {self._mixture!r} has no checkpoint {name!r}; it has "
                f"{known:.1000}"
            )
        return matches[-1]

    def _describe_at(self, checkpoint: _Found) -> dict[str, Any]:
        """As `_describe`, or why it cannot be read. Reads a manifest only if it has changed."""
        path = checkpoint.path / MANIFEST
        try:
            if checkpoint.path.is_symlink():  # which is an error
                return _describe(read_manifest(checkpoint.path))
            return dict(
                self._described.get(str(path), os.lstat(path), lambda: _describe(read_manifest(checkpoint.path)))
            )
        except OSError as error:
            return {"name": checkpoint.name, "damaged": str(damage_error(path, error.strerror or str(error)))}
        except CorruptCheckpoint as error:
            return {"name": checkpoint.name, "damaged": str(error)}

    def _delete_old(self, session: str, keep_last: int | None) -> None:
        """Delete checkpoints whose name was saved again, and all but the newest `keep_last`. Raises OSError."""
        found = self._find_all(session)
        newest: dict[str, _Found] = {checkpoint.name: checkpoint for checkpoint in found}
        kept = set(sorted(newest.values())[-keep_last:] if keep_last else newest.values())
        for checkpoint in found:
            if checkpoint not in kept:
                self._remove(checkpoint)

    def _remove(self, checkpoint: _Found) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError):  # another thread is deleting it too
            self._folder.remove(checkpoint.path)


def _load(checkpoint: _Found) -> tuple[State, str]:
    """The state and the fingerprint of a checkpoint. Raises CorruptCheckpoint."""
    manifest = verify(checkpoint.path)
    try:
        state = read_orbax(checkpoint.path / ORBAX)
    except Exception as error:  # Orbax raises many kinds
        raise damage_error(checkpoint.path / ORBAX, f"Orbax cannot read it: {error!s:.300}") from error
    return state, manifest["fingerprint"]


def _is_small(names: tuple[str, ...]) -> bool:
    return len(names) <= _MOST_NAMES


def _describe(manifest: Manifest) -> dict[str, Any]:
    return {entry: manifest[entry] for entry in DESCRIBED}


def _is_there(checkpoint: _Found) -> bool:
    return os.path.lexists(checkpoint.path)
