"""The journals in a state folder, by mixture and session: which there are, how many more fit, and which are old."""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mixserve.sessions.journal import Journal
from mixserve.sessions.loaded import Key
from mixserve.sessions.storage import StateFolder
from mixserve_client.errors import StorageFailed
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.sessions import is_name

MOST_JOURNALS = 20_000
_COUNT_EVERY_S = 10.0
_DAY_S = 86400.0


class Journals:
    """Thread-safe. `mixtures` are names."""

    def __init__(self, folder: StateFolder, mixtures: Iterable[str], days: float):
        """A journal that was not used for so many `days` is old."""
        self.folder = folder
        self._folders = {mixture: folder.journals(mixture) for mixture in mixtures}
        self._days = days
        self._renew()
        renew_in_forks(self, Journals._renew)
        # At least as many as there are. Counting them lists all folders, so not at every new session.
        self._count: int | None = None
        self._counted = 0.0

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def of(self, key: Key) -> Journal:
        """The journal of that session, which need not be there."""
        return Journal(self._path(key), self.folder)

    def has(self, key: Key) -> bool:
        """Whether there is a journal of that session."""
        return os.path.lexists(self._path(key))

    def names(self, mixture: str) -> Iterator[str]:
        """The names of the sessions of `mixture` that have journals, in any order."""
        try:
            with os.scandir(self._folders[mixture]) as found:
                yield from (one.name for one in found if is_name(one.name))
        except (FileNotFoundError, NotADirectoryError):
            return

    def some_names(self, mixture: str, most: int) -> list[str]:
        """As `names`, the first `most`: for messages, which must not list a whole folder."""
        return list(islice(self.names(mixture), most))

    def add(self) -> None:
        """Count a new journal. Raises StorageFailed if there is no room for it."""
        with self._lock:
            now = time.monotonic()
            is_full = self._count is not None and self._count >= MOST_JOURNALS
            # Users may have deleted some by hand.
            if self._count is None or (is_full and now - self._counted >= _COUNT_EVERY_S):
                self._count, self._counted = sum(1 for one in self._folders for _ in self.names(one)), now
            if self._count >= MOST_JOURNALS:
                raise StorageFailed(
                    f"this server has journals of {self._count} sessions, and no room for more; it deletes a journal "
                    f"that is not used for {self._days:g} days. Open a known session, with fresh=True to start it over"
                )
            self._count += 1

    def old(self) -> Iterator[Key]:
        """The sessions whose journals are old."""
        for mixture in self._folders:
            for name in self.names(mixture):
                if self.is_old(key := Key(mixture, name)):
                    yield key

    def is_old(self, key: Key) -> bool:
        """Whether there is a journal of that session, and it is old."""
        try:
            return self._path(key).stat().st_mtime < time.time() - self._days * _DAY_S
        except OSError:
            return False

    def remove(self, key: Key) -> Path:
        """Delete the journal, and return its path. Raises OSError."""
        path = self._path(key)
        self.folder.remove(path)
        with self._lock:
            self._count = None if self._count is None else max(0, self._count - 1)
        return path

    def _path(self, key: Key) -> Path:
        return self._folders[key.mixture] / key.name
