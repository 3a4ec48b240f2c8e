"""Changes a token file: one process at a time, whole or not at all, with the text that people wrote around it."""

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from mixserve.access.entries import LARGEST_BYTES, BadTokens, TokenEntry, parse_entries
from mixserve.access.tokens import read_tokens
from mixserve.yaml_file import BadYaml, read_text

_WAIT_S = 10.0
_TRY_EVERY_S = 0.02
_HEADER = "# Tokens of a mixserve server, by their SHA-256. mixserve token changes this file; servers read it again.\n"
_EMPTY = _HEADER + "tokens: []\n"


class Tokens:
    """The text of a token file, and its entries."""

    def __init__(self, text: str):
        self.text = text
        self.entries = parse_entries(text)

    def append(self, entry: TokenEntry) -> None:
        """Add an entry at the end. Raises BadTokens."""
        indent = " " * (self._items().start_mark.column if self.entries else 2)
        item = "".join(f"{indent}{line}\n" for line in _dump([entry.written()]).splitlines())
        text = self.text if self.text.endswith("\n") or not self.text else f"{self.text}\n"
        self._become((*self.entries, entry), text + ("" if self.entries else "tokens:\n") + item)

    def remove(self, place: int) -> None:
        """Remove the entry at `place`, and the lines up to the next one."""
        left = self.entries[:place] + self.entries[place + 1 :]
        lines = self.text.splitlines(keepends=True)
        first, after = self._lines(place)
        self._become(left, "".join(lines[:first] + lines[after:]) if left else _EMPTY)

    def _lines(self, place: int) -> tuple[int, int]:
        """The first line of an entry, and the first after it."""
        items = self._items().value
        first = items[place].start_mark.line
        following = items[place + 1].start_mark.line if place + 1 < len(items) else items[place].end_mark.line
        return first, following

    def _items(self) -> Any:
        """The list of entries, with the places in the text. Only if there are any."""
        root: Any = yaml.compose(self.text, yaml.SafeLoader)
        return root.value[0][1]

    def _become(self, entries: tuple[TokenEntry, ...], text: str) -> None:
        """Take the changed text if it has these entries, else write all again: the file may have any form of YAML."""
        with suppress(BadTokens):
            if parse_entries(text) == entries:
                self.text, self.entries = text, entries
                return
        self.text = _HEADER + _dump({"tokens": [entry.written() for entry in entries]})
        self.entries = parse_entries(self.text)


@contextmanager
def changing(file: Path, *, must_exist: bool = False) -> Generator[Tokens]:
    """The tokens of `file`, which is written at the end of the block if they have changed.

    Raises BadTokens and OSError. A file that is not there is made, for its owner alone, unless it `must_exist`.
    """
    file = Path(os.path.realpath(file))  # what a link leads to is replaced, not the link
    if not file.parent.is_dir():
        raise OSError(errno.ENOENT, f"there is no folder {file.parent} for the token file")
    with _locked(file.parent):
        is_new = not must_exist and not os.path.lexists(file)
        if not is_new:
            read_tokens(file)  # its errors name the file
        tokens = Tokens(_HEADER if is_new else _read(file))
        before = tokens.text
        yield tokens
        if tokens.text != before:
            _replace(file, tokens.text, None if is_new else file.stat())


def _read(file: Path) -> str:
    try:
        return read_text(file, LARGEST_BYTES)
    except BadYaml as error:
        raise BadTokens(f"the token file {file}: {error}") from None


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keeps other processes that change a token file in `folder` waiting. Raises OSError."""
    # The folder itself is locked: a lock file would stay behind, and the token file is replaced.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, f"another process has locked the folder {folder}; try again") from None
                time.sleep(_TRY_EVERY_S)
        yield
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str, before: os.stat_result | None) -> None:
    """Write `file` whole, with the mode and owner that it had. Raises OSError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            if before is not None:
                _keep_owner(descriptor, before, file)
            out.write(text)
            out.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep_owner(descriptor: int, before: os.stat_result, file: Path) -> None:
    now = os.fstat(descriptor)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(descriptor, before.st_uid, before.st_gid)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{file} belongs to another user or group, which only that user may keep: change it as them",
            ) from error
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _dump(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1 << 20)
