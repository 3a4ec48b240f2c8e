"""A log of events as JSON lines, in a file that survives its process."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JournalWriter:
    """Appends entries; each is in the file when `write` returns."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8", buffering=1)  # flushed per line: a killed process loses none
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
    """Reads entries while they are written, from any number of successive writers."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The entries completed since the last call. Skips lines that are not JSON."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [entry for line in complete.splitlines() if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    # A killed writer leaves half a line, and the next writer starts with a newline.
    try:
        return json.loads(line)
    except ValueError:
        return None
