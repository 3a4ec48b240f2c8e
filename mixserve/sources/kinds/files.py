"""The paths of a source in a configuration file -> the files that they match, checked to be files."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mixserve.sources.kinds.expanding import expand_pattern
from mixserve.sources.kinds.globbing import MOST_MATCHES, matches
from mixserve.sources.open_file import check_is_regular
from mixserve_client.schema.text import show


def find_files(patterns: str | list[str], folder: Path, *, or_folders: bool = False) -> list[Path]:
    """The files that the patterns match, sorted per pattern; with `or_folders` also folders.

    A pattern that is the path of a file is that file. Raises ValueError if nothing matches, too much does, two patterns
    match the same file, a variable in a pattern is not set, or a match is something else; OSError if a path does not
    exist.
    """
    written_paths = [patterns] if isinstance(patterns, str) else patterns
    found: dict[str, int] = {}  # by the normalised path, the number of the pattern that matches it
    for number, written in enumerate(written_paths):
        with _naming_key():
            pattern, is_pattern = expand_pattern(written, folder)
        names = matches(pattern, str(folder)) if is_pattern else [pattern]
        if not names:
            raise ValueError(f"path: no file matches {show(written)} in {folder}")
        for name in names:
            path = os.path.normpath(folder / name)
            if found.setdefault(path, number) != number:
                first = show(written_paths[found[path]])
                raise ValueError(
                    f"path: {first} and {show(written)} both match {path}: its records would come twice. Write it "
                    "once, and give the source a larger weight to draw it more often"
                )
        if len(found) > MOST_MATCHES:
            raise ValueError(f"path: more than {MOST_MATCHES:,} files; join them into fewer")
    for path in map(Path, found):
        check_is_regular(path, or_folder=or_folders)
    return list(map(Path, found))


@contextmanager
def _naming_key() -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"path: {error}") from None
