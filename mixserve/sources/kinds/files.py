"""The paths of a source in a configuration file -> the files that they match, checked to be files."""

from glob import has_magic
from pathlib import Path

from mixserve.sources.kinds.globbing import MOST_MATCHES, matches
from mixserve.sources.open_file import check_is_regular
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
        check_is_regular(path, or_folder=or_folders)
    return found
