"""Refuses to read sources whose files have changed since they were opened.

A mapped file that is written to in place serves other records without a word, and one that is cut ends the process
with SIGBUS. The look cannot close that window; it keeps it to a second.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from mixserve.sources.open_file import OpenFile
from mixserve_client.errors import SourceChanged

_logger = logging.getLogger("mixserve")

_LOOK_S = 0.5  # and each file at most as often, however many guards there are: together, one second
_LARGEST_SHARE = 0.01  # of the time may go by in looking: with 100,000 files that is a look in ten seconds


class FileGuard:
    """Looks at the `files` of the sources, by the sources' numbers, about twice per second. Thread-safe."""

    def __init__(self, files: Mapping[int, Sequence[OpenFile]], names: Sequence[str]):
        """`names` are those of all sources."""
        self._files = {source_id: tuple(of_source) for source_id, of_source in files.items() if of_source}
        self._names = tuple(names)
        self._changed: dict[int, str] = {}
        self._look_at = time.monotonic() + _LOOK_S

    def check(self, source_ids: Int[np.ndarray, " size"]) -> None:
        """Raises SourceChanged if a file of one of these sources has changed."""
        if not self._files:
            return
        if time.monotonic() >= self._look_at:
            self._look(OpenFile.check_lately)
        if self._changed:
            for source_id, said in self._changed.items():
                if (source_ids == source_id).any():
                    raise SourceChanged(said)

    def look(self) -> None:
        """Look at all files now."""
        self._look(OpenFile.check_unchanged)

    def _look(self, check: Callable[[OpenFile], None]) -> None:
        begin = time.monotonic()
        self._look_at = begin + _LOOK_S  # first: other threads need not look as well
        changed = dict[int, str]()
        for source_id, of_source in self._files.items():
            try:
                for file in of_source:
                    check(file)
            except SourceChanged as error:
                changed[source_id] = (
                    f"the source {self._names[source_id]!r:.100} cannot be read: {error}. Its batches would differ: "
                    "restart the server, with the old file put back if its records are to stay"
                )
        for source_id in changed.keys() - self._changed.keys():
            _logger.error("%s", changed[source_id])
        self._changed = changed
        self._look_at = begin + max(_LOOK_S, (time.monotonic() - begin) / _LARGEST_SHARE)
