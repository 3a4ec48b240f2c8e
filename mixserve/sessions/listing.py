"""Summaries of sessions that are only on disk. A journal is read again only when it has changed."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from mixserve.sessions.journal import Journal
from mixserve.sessions.record import read_record
from mixserve.sessions.unchanged import Unchanged
from mixserve_client.errors import CorruptCheckpoint

_MOST_KNOWN = 20_000
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Summary:
    """A session's holder, with its lease, and position, or what is wrong with its journal; and how long it is idle."""

    holder: str = ""
    lease: str = ""
    index: int = 0
    epoch: int = 0
    damaged: str = ""
    idle_s: float = 0.0


class Listing:
    """A cache of summaries. Thread-safe."""

    def __init__(self) -> None:
        self._known: Unchanged[Summary] = Unchanged(_MOST_KNOWN)

    def summarise(self, journal: Journal) -> Summary:
        """The summary of the journal's session. Raises FileNotFoundError."""
        found = os.lstat(journal.path)
        summary = self._known.get(str(journal.path), found, lambda: _read(journal))
        return replace(summary, idle_s=max(0.0, time.time() - found.st_mtime))


def age_s(path: Path) -> float:
    """Seconds since the file was written or touched, at least 0: clocks may be set back. Raises OSError."""
    return max(0.0, time.time() - path.stat().st_mtime)


def _read(journal: Journal) -> Summary:
    try:
        record, state = read_record(journal)
    except FileNotFoundError:
        raise
    except (CorruptCheckpoint, OSError) as error:
        return Summary(damaged=f"{error!s:.{_SHOWN}}")
    return Summary(record["holder"], record["lease"], state["index"], state["epoch"])
