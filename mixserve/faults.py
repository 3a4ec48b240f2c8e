"""Faults that may come a thousand times a second -> which of them the log has, and how many there were of each kind."""

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from mixserve_client.forks import renew_in_forks

_logger = logging.getLogger("mixserve")

_EVERY_S = 1.0
_MOST_KINDS = 1024
_OTHER = "other"

Clock = Callable[[], float]


class Kind(NamedTuple):
    """What faults have in common: the method or what else was done, mixture and source, and the class of the cause."""

    what: str
    mixture: str
    source: str
    error: str


class Noted(NamedTuple):
    """`id` is what to tell the caller: that of a line in the log, which has to be written now if `is_due`.

    `untold` is how many faults of this kind have come since the line before.
    """

    id: str
    is_due: bool
    untold: int


class _Line(NamedTuple):
    id: str
    when: float
    untold: int


class Faults:
    """Lets one fault of each kind into the log per second. Thread-safe. Remembers up to 1,024 kinds."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._lines: OrderedDict[Kind, _Line] = OrderedDict()  # the last one of each kind
        self._counts = Counter[tuple[str, str, str]]()
        self._renew()
        renew_in_forks(self, Faults._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def note(self, kind: Kind, own_id: str) -> Noted:
        """Count a fault, whose id is `own_id` if it gets a line of its own."""
        now = self._clock()
        with self._lock:
            self._count(kind)
            last = self._lines.pop(kind, None)
            if last is not None and now - last.when < _EVERY_S:
                self._lines[kind] = last._replace(untold=last.untold + 1)
                return Noted(last.id, is_due=False, untold=0)
            self._lines[kind] = _Line(own_id, now, 0)
            if len(self._lines) > _MOST_KINDS:
                self._lines.popitem(last=False)
        return Noted(own_id, is_due=True, untold=0 if last is None else last.untold)

    def report(self) -> None:
        """Log how many faults have come after the last line of each kind; call it every second."""
        now = self._clock()
        with self._lock:
            due = [(kind, line) for kind, line in self._lines.items() if line.untold and now - line.when >= _EVERY_S]
            for kind, line in due:
                self._lines[kind] = line._replace(when=now, untold=0)
        for kind, line in due:
            about = {name: value for name, value in kind._asdict().items() if name != "what" and value}
            _logger.error(
                "%d more faults in %s like %s (%s)",
                line.untold,
                kind.what,
                line.id,
                kind.error,
                extra={"request": line.id, **about},
            )

    def counts(self) -> dict[tuple[str, str, str], int]:
        """How many faults there were, by mixture, source and class of the cause."""
        with self._lock:
            return dict(self._counts)

    def _count(self, kind: Kind) -> None:
        labels = kind.mixture, kind.source, kind.error
        if labels not in self._counts and len(self._counts) >= _MOST_KINDS:  # a source may make classes as it goes
            labels = kind.mixture, "", _OTHER
        self._counts[labels] += 1


FAULTS = Faults()  # of this process
