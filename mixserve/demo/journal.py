"""What a process tells of itself: JSON objects, one a line, in a file that survives it."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JournalWriter:
    """Appends entries; each is in the file when `write` returns."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._file.write("\n")  # ends the line that a killed writer may have left unfinished

    def write(self, **entry: Any) -> None:
        """Append one entry."""
        self._file.write(json.dumps(entry) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class JournalReader:
    """Reads entries as they come, from any number of writers one after the other."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The entries that have been completed since the last call; unfinished lines are passed over."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [entry for line in complete.splitlines() if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
