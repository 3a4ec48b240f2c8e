"""The paths of a source in a configuration file -> the files that they match, checked to be files."""

import stat
from collections.abc import Callable
from glob import has_magic
from pathlib import Path

from mixserve.sources.kinds.globbing import MOST_MATCHES, matches
from mixserve_client.schema.text import show


def find_files(patterns: str | list[str], folder: Path, *, or_folders: bool = False) -> list[Path]:
    """The files that the patterns match, sorted per pattern; with `or_folders` also folders.

    Raises ValueError if nothing matches, too much does, or a match is something else; OSError if a path does not exist.
    """
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = matches(pattern, str(folder)) if has_magic(pattern) else [pattern]
        if not names:
            raise ValueError(f"path: no file matches {show(pattern)} in {folder}")
        found += [folder / name for name in names]
        if len(found) > MOST_MATCHES:
            raise ValueError(f"path: more than {MOST_MATCHES:,} files; join them into fewer")
    for path in found:
        check_is_file(path, or_folder=or_folders)
    return found


def check_is_file(path: Path, *, or_folder: bool = False) -> None:
    """Raises ValueError unless `path` is a file, or a folder if `or_folder`; OSError if it does not exist."""
    # Opening a pipe would wait forever, and devices have no size.
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or (or_folder and stat.S_ISDIR(mode)):
        return
    found = next((name for is_one, name in _NO_FILES if is_one(mode)), "something else")
    raise ValueError(f"path: {path} must be a file{' or a folder' if or_folder else ''}, got {found}")


_NO_FILES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
