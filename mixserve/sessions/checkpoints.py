"""Checkpoints of sessions on disk: written by Orbax, renamed into place when they are whole, each file with its hash.

A checkpoint is a folder NAME.NUMBER; numbers grow with every save of a session, so that one name may be saved again
without a moment in which it is not there. In it, `orbax/` is an Orbax checkpoint of two items, `state` (JSON, with
arrays replaced by their places) and `arrays`; `manifest.json` says what it is and holds the SHA-256 of every file.
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

from mixserve.module.state import State
from mixserve.sessions.manifest import (
    CHECKPOINT_BYTES,
    DESCRIBED,
    FILES,
    FORMAT,
    MANIFEST,
    ORBAX,
    Manifest,
    damaged,
    hash_files,
    manifest_hash,
    read_manifest,
    verified,
)
from mixserve.sessions.orbax_files import read_orbax, write_orbax
from mixserve.sessions.storage import StateFolder, make_folder, storing, sync_folder
from mixserve_client.errors import CorruptCheckpoint, StorageFailed, UnknownCheckpoint
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.sessions import is_name

_logger = logging.getLogger("mixserve")

MOST_CHECKPOINTS, MOST_SESSIONS = 1000, 10_000
_FOLDER = re.compile(r"(?P<name>.+)\.(?P<number>\d{10,17})", re.ASCII)
# What is read while others save and delete is looked at again so many times.
_ATTEMPTS = 10

T = TypeVar("T")


class _Found(NamedTuple):
    """A checkpoint's folder; numbers grow with every save."""

    number: int
    name: str
    path: Path


class Checkpoints:
    """Those of one mixture's sessions; safe to use from many threads.

    Who looks, deletes or describes waits for nobody: the lock is held while a number is chosen and a checkpoint comes
    into its place. Orbax itself does one thing at a time. What is gone when it has been looked at is looked for again.
    """

    def __init__(self, folder: StateFolder, mixture: str):
        self._folder = folder
        self._path = folder.checkpoints(mixture)
        self._mixture = mixture
        self._lock = threading.Lock()
        renew_in_forks(self, Checkpoints._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def save(self, session: str, name: str, state: State, fingerprint: str, keep_last: int | None) -> dict[str, Any]:
        """Keep `state`, in the place of what was kept under that name, and say what was kept.

        Of the session's checkpoints the newest `keep_last` stay, all where it is None. Raises StorageFailed; then
        nothing has changed.
        """
        self._check_room(session, name, keep_last)
        with storing(f"the checkpoint {name!r} of the session {session!r}"):
            made = self._folder.unfinished()
            try:
                manifest = self._written(made, session, name, state, fingerprint)
                self._put_into_place(made, session, name)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        try:
            self._thin_out(session, keep_last)
        except OSError as error:
            _logger.warning("checkpoints of the session %r that are not wanted any more stay: %s", session, error)
        return _described(manifest)

    def load(self, session: str, name: str) -> tuple[State, str]:
        """The state that was kept under that name, and its mixture's fingerprint.

        Raises UnknownCheckpoint and CorruptCheckpoint.
        """
        return self._looked_up(session, name, _loaded)

    def described(self, session: str) -> list[dict[str, Any]]:
        """What is kept of a session, in the order in which it was saved; what cannot be read is said to be damaged."""
        described: list[dict[str, Any]] = []
        for _ in range(_ATTEMPTS):
            newest = sorted({checkpoint.name: checkpoint for checkpoint in self._found(session)}.values())
            pairs = [(checkpoint, _described_at(checkpoint)) for checkpoint in newest]
            described = [said for checkpoint, said in pairs if "damaged" not in said or _is_there(checkpoint)]
            if len(described) == len(pairs):
                break
        return described

    def described_one(self, session: str, name: str) -> dict[str, Any]:
        """What is kept under that name. Raises UnknownCheckpoint."""
        try:
            return self._looked_up(session, name, lambda checkpoint: _described(read_manifest(checkpoint.path)))
        except CorruptCheckpoint as error:
            return {"name": name, "damaged": str(error)}

    def names(self, session: str) -> tuple[str, ...]:
        """The names of what is kept of a session, in the order in which it was saved."""
        return tuple(dict.fromkeys(checkpoint.name for checkpoint in reversed(self._found(session))))[::-1]

    def sessions(self) -> list[str]:
        """The sessions that have checkpoints."""
        folders = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(path.name for path in folders if is_name(path.name) and self._found(path.name))

    def delete(self, session: str, name: str) -> dict[str, Any]:
        """Delete what is kept under that name, and say what it was. Raises UnknownCheckpoint and StorageFailed."""
        described = self.described_one(session, name)
        with storing(f"the deletion of the checkpoint {name!r} of the session {session!r}"):
            for checkpoint in self._found(session):
                if checkpoint.name == name:
                    self._remove(checkpoint)
        return described

    def _check_room(self, session: str, name: str, keep_last: int | None) -> None:
        """Raises StorageFailed where there would be too many checkpoints."""
        names = self.names(session)
        count = len({*names, name})
        if min(count, keep_last or count) > MOST_CHECKPOINTS:
            raise StorageFailed(
                f"the session {session!r} has {len(names)} checkpoints, as many as a server keeps of one; delete some, "
                "or save with keep_last"
            )
        if not names and self._path.is_dir() and sum(1 for _ in self._path.iterdir()) >= MOST_SESSIONS:
            raise StorageFailed(
                f"the server keeps checkpoints of {MOST_SESSIONS} sessions of the mixture {self._mixture!r}, as many "
                "as it can; delete those that are not needed"
            )

    def _written(self, made: Path, session: str, name: str, state: State, fingerprint: str) -> Manifest:
        """The manifest of what is written to `made`. Raises OSError and StorageFailed."""
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
                f"{len(manifest['files'])}: the session's statistics are too large"
            )
        manifest["sha256"] = manifest_hash(manifest)
        _write_synced(made / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(made)
        return manifest

    def _put_into_place(self, made: Path, session: str, name: str) -> None:
        """Raises OSError."""
        place = self._path / session
        self._folder.grow(sum(path.lstat().st_size for path in made.rglob("*") if path.is_file()))
        with self._folder.writing():
            make_folder(place)
            with self._lock:
                number = max((checkpoint.number for checkpoint in self._found(session)), default=0) + 1
                made.rename(place / f"{name}.{number:010d}")
            sync_folder(place)

    def _looked_up(self, session: str, name: str, look: Callable[[_Found], T]) -> T:
        """What `look` gives of the newest checkpoint of that name; of the next one, where it was replaced meanwhile.

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

    def _found(self, session: str) -> list[_Found]:
        """The folders of a session's checkpoints, from the oldest on; of a name that was saved twice, both."""
        place = self._path / session
        if not place.is_dir():
            return []
        matches = ((path, _FOLDER.fullmatch(path.name)) for path in place.iterdir())
        found = (_Found(int(match["number"]), match["name"], path) for path, match in matches if match)
        return sorted(checkpoint for checkpoint in found if is_name(checkpoint.name))

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
        """Delete what was saved again under its name, and all but the newest `keep_last`. Raises OSError."""
        found = self._found(session)
        newest: dict[str, _Found] = {checkpoint.name: checkpoint for checkpoint in found}
        kept = set(sorted(newest.values())[-keep_last:] if keep_last else newest.values())
        for checkpoint in found:
            if checkpoint not in kept:
                self._remove(checkpoint)

    def _remove(self, checkpoint: _Found) -> None:
        """Raises OSError."""
        with suppress(FileNotFoundError):  # somebody else removes it at this moment
            self._folder.remove(checkpoint.path)


def _loaded(checkpoint: _Found) -> tuple[State, str]:
    """Raises CorruptCheckpoint."""
    manifest = verified(checkpoint.path)
    try:
        state = read_orbax(checkpoint.path / ORBAX)
    except Exception as error:  # whatever Orbax raises
        raise damaged(checkpoint.path / ORBAX, f"Orbax cannot read it: {error!s:.300}") from error
    return state, manifest["fingerprint"]


def _described(manifest: Manifest) -> dict[str, Any]:
    return {entry: manifest[entry] for entry in DESCRIBED}


def _described_at(checkpoint: _Found) -> dict[str, Any]:
    try:
        return _described(read_manifest(checkpoint.path))
    except CorruptCheckpoint as error:
        return {"name": checkpoint.name, "damaged": str(error)}


def _is_there(checkpoint: _Found) -> bool:
    return os.path.lexists(checkpoint.path)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
