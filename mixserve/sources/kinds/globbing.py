"""A pattern of paths -> the paths that match it, as `glob` finds them, but with bounds on the search."""

import os
import re
import stat
from collections.abc import Iterator
from fnmatch import translate
from functools import lru_cache
from glob import has_magic
from pathlib import Path
from typing import NamedTuple

MOST_MATCHES = 100_000
MOST_FOLDERS = 100_000

_Identity = tuple[int, int]  # device and inode of a folder


class _At(NamedTuple):
    """A path that the first parts of the pattern match, and the number of these parts."""

    path: str
    matched: int
    above: tuple[_Identity, ...]  # the folders that `**` entered on the way; it does not follow links back to them


def matches(pattern: str, folder: str) -> list[str]:
    """The paths that match `pattern`, sorted and each once, relative to `folder` unless the pattern is absolute.

    As in `glob.glob(pattern, root_dir=folder, recursive=True)`, `**` matches any folders, links to folders included,
    and hidden names need a pattern that begins with a dot. Unlike in `glob`, `**` does not follow a link into a folder
    that contains the link. Raises ValueError if more than `MOST_MATCHES` paths match, or the search needs more than
    `MOST_FOLDERS` folders.
    """
    found: set[str] = set()
    for path in _search(pattern, folder):
        found.add(path)
        if len(found) > MOST_MATCHES:
            raise ValueError(f"path: more than {MOST_MATCHES:,} paths match; choose a narrower pattern")
    return sorted(found)


def _search(pattern: str, folder: str) -> Iterator[str]:
    root = "/" * (len(pattern) - len(pattern.lstrip("/")))
    parts = [part for part in pattern.split("/") if part]
    only_folders = pattern.endswith("/")
    # A stack, not recursion: folders may be nested deeper than Python's functions can be.
    waiting, searched = [_At(root, 0, ())], 0
    while waiting:
        at = waiting.pop()
        if at.matched == len(parts):
            if at.path and at.path != root and (not only_folders or _identity(_full_path(folder, at.path))):
                yield _join(at.path, "") if only_folders else at.path
            continue
        part = parts[at.matched]
        if not has_magic(part):
            path = _join(at.path, part)
            if os.path.lexists(_full_path(folder, path)):
                waiting.append(_At(path, at.matched + 1, at.above))
            continue
        searched += 1
        if searched > MOST_FOLDERS:
            raise ValueError(f"path: more than {MOST_FOLDERS:,} folders to search; choose a narrower pattern")
        if part == "**":
            waiting += _walk_below(at, folder, is_last=at.matched + 1 == len(parts))
        else:
            waiting += [
                _At(_join(at.path, name), at.matched + 1, at.above)
                for name, _ in _entries(_full_path(folder, at.path))
                if _fits(part, name)
            ]


def _walk_below(at: _At, folder: str, *, is_last: bool) -> Iterator[_At]:
    """This folder and the folders in it; with `is_last` also its files, which only the last `**` matches."""
    here = _identity(_full_path(folder, at.path))
    if here is None or here in at.above:
        return
    is_first = is_last and at.path and not at.above
    yield _At(_join(at.path, "") if is_first else at.path, at.matched + 1, ())
    for name, is_folder in _entries(_full_path(folder, at.path)):
        if name.startswith("."):
            continue
        path = _join(at.path, name)
        if is_folder:
            yield _At(path, at.matched, (*at.above, here))
        elif is_last:
            yield _At(path, at.matched + 1, ())


def _entries(folder: str) -> list[tuple[str, bool]]:
    """The names in a folder, and whether each is a folder; an empty list if it cannot be read, as with `glob`."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.name, _is_folder(entry)) for entry in entries]
    except OSError:
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str) -> _Identity | None:
    """The identity of a folder; None if the path is not a folder."""
    try:
        status = Path(folder).stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _fits(part: str, name: str) -> bool:
    return (part.startswith(".") or not name.startswith(".")) and _pattern(part).match(name) is not None


@lru_cache(64)
def _pattern(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))


def _join(path: str, name: str) -> str:
    return name if not path else path + name if path.endswith("/") else f"{path}/{name}"


def _full_path(folder: str, path: str) -> str:
    return path if path.startswith("/") else _join(folder, path) if path else folder
