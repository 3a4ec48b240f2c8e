"""What can be said of sessions that are on disk only: each journal is read once for as long as it stays as it is."""

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
class Stood:
    """Where a session stands, who holds it, and what is wrong with its journal."""

    holder: str = ""
    index: int = 0
    epoch: int = 0
    damaged: str = ""
    idle_s: float = 0.0


class Listing:
    """Safe to use from many threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[Signature, Stood]] = OrderedDict()
        self._lock = threading.Lock()

    def stood(self, journal: Journal) -> Stood:
        """What the journal says, read again where it is another one by now. Raises FileNotFoundError."""
        found = journal.path.lstat()
        signature = (found.st_ino, found.st_size, found.st_mtime_ns)
        with self._lock:
            known = self._known.get(journal.path)
        stood = known[1] if known is not None and known[0] == signature else _read(journal)
        with self._lock:
            self._known[journal.path] = signature, stood
            self._known.move_to_end(journal.path)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return replace(stood, idle_s=max(0.0, time.time() - found.st_mtime))


def session_files(folder: Path) -> list[Path]:
    """The journals in a folder."""
    return [path for path in folder.iterdir() if is_name(path.name)] if folder.is_dir() else []


def age_s(path: Path) -> float:
    """Seconds since a file was written or touched. Raises OSError."""
    return max(0.0, time.time() - path.stat().st_mtime)


def _read(journal: Journal) -> Stood:
    try:
        record, state = read_record(journal)
    except FileNotFoundError:
        raise
    except (CorruptCheckpoint, OSError) as error:
        return Stood(damaged=f"{error!s:.{_SHOWN}}")
    return Stood(record["holder"], state["index"], state["epoch"])
