"""Summaries of sessions that are only on disk. A journal is read again only when it has changed."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from mixserve.sessions.journal import Journal
from mixserve.sessions.record import read_record
from mixserve_client.errors import CorruptCheckpoint
from mixserve_client.schema.sessions import is_name

_MOST_KNOWN = 20_000
_SHOWN = 500

Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """A session's holder and position, or what is wrong with its journal; and how long it has been idle."""

    holder: str = ""
    index: int = 0
    epoch: int = 0
    damaged: str = ""
    idle_s: float = 0.0


class Listing:
    """A cache of summaries. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[Signature, Summary]] = OrderedDict()
        self._lock = threading.Lock()

    def summarise(self, journal: Journal) -> Summary:
        """The summary of the journal's session. Raises FileNotFoundError."""
        found = journal.path.lstat()
        # An append changes the size, a rewrite the inode.
        signature = (found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            known = self._known.get(journal.path)
        # Read without the lock: a journal may have hundreds of MiB, and other lists must not wait for it.
        summary = known[1] if known is not None and known[0] == signature else _read(journal)
        with self._lock:
            self._known[journal.path] = signature, summary
            self._known.move_to_end(journal.path)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return replace(summary, idle_s=max(0.0, time.time() - found.st_mtime))


def session_files(folder: Path) -> list[Path]:
    """The journals in a folder."""
    return [path for path in folder.iterdir() if is_name(path.name)] if folder.is_dir() else []


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
    return Summary(record["holder"], state["index"], state["epoch"])
