"""A bounded cache of the readers' schedules, by id. Readers own their schedules: a lost one is sent again."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from mixserve.limits import ServerLimits
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve.servicer.hosted import HostedMixture
from mixserve.servicer.schedule_memory import ScheduleMemory, entry_bytes
from mixserve_client.errors import InvalidRequest, UnknownSchedule
from mixserve_client.forks import renew_in_forks
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.schedule import DefinedSchedule, ScheduleEntry, most_entries, next_id
from mixserve_client.schema.text import show

_logger = logging.getLogger("mixserve")

_SCHEDULES = 1024


class KnownSchedule(NamedTuple):
    """A reader's schedule, and the plans under it. `last_start` is the start of the reader's own last entry."""

    schedule: Schedule
    last_start: int
    blocks: PlanBlocks


class Schedules:
    """Thread-safe. Evicts the least recently used schedules above 1,024 schedules, or `most_bytes` in all.

    Schedules that grew from one another share their memory, which is counted once.
    """

    def __init__(self, most_bytes: int = ServerLimits().schedule_bytes):
        self._known: OrderedDict[tuple[HostedMixture, str], KnownSchedule] = OrderedDict()
        self._memory = ScheduleMemory()
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.refused = LimitedLog(_logger, "schedule_bytes")
        renew_in_forks(self, Schedules._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def get(self, mixture: HostedMixture, schedule: str) -> "KnownSchedule":
        """The schedule with that id. Raises UnknownSchedule."""
        found = self._find(mixture, schedule)
        if found is None:
            raise UnknownSchedule(
                f"this server does not know the schedule {show(schedule, 100)} of the mixture {mixture.name!r}; "
                "define it with DefineSchedule, and ask again"
            )
        return found

    def define(self, mixture: HostedMixture, parent: str, entries: Sequence[ScheduleEntry]) -> DefinedSchedule:
        """Remember the schedule `parent` followed by `entries`. Raises InvalidRequest and UnknownSchedule."""
        fingerprint, own = mixture.description.fingerprint, mixture.node.mixture
        if not entries:
            raise InvalidRequest("there must be at least one entry; to read without a schedule, name none")
        ids = [parent or fingerprint]
        for place, entry in enumerate(entries):
            before = entries[place - 1].start if place else -1
            if not before < entry.start < POSITION_LIMIT:
                raise InvalidRequest(
                    f"starts of entries must be in 0..2^63 - 2 and strictly increasing, got {entry.start} at {place}"
                )
            try:
                ids.append(next_id(ids[-1], entry))
            except ValueError:
                raise InvalidRequest(f"parent must be the id of a schedule, got {parent!r:.100}") from None
        found = self._find(mixture, ids[-1])
        if found is not None:  # an id is a hash over all entries, so the parent may have been evicted
            return DefinedSchedule(ids[-1], found.blocks.end)
        known = self.get(mixture, parent) if parent else None
        if known is not None and entries[0].start <= known.last_start:
            raise InvalidRequest(
                f"entries must start after {known.last_start}, the last start of their parent, got {entries[0].start}"
            )
        grown = own.sampling.schedule if known is None else known.schedule
        most = most_entries(len(own.lengths))
        if len(grown.entries) + len(entries) > most:
            raise InvalidRequest(
                f"a schedule may have up to {most} entries of {len(own.lengths)} weights; change weights less often"
            )
        self._check_bytes(own, len(grown.entries) + len(entries))
        try:
            schedule = grown.followed_by([Entry(start, normalised(weights)) for start, weights in entries])
            blocks = own.planned_by(schedule, grown, own.blocks if known is None else known.blocks)
            found = KnownSchedule(schedule, entries[-1].start, blocks)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        self._keep(mixture, ids[-1], found)
        return DefinedSchedule(ids[-1], found.blocks.end)

    def _find(self, mixture: HostedMixture, schedule: str) -> KnownSchedule | None:
        with self._lock:
            found = self._known.get((mixture, schedule))
            if found is not None:
                self._known.move_to_end((mixture, schedule))
            return found

    def _keep(self, mixture: HostedMixture, schedule: str, known: KnownSchedule) -> None:
        with self._lock:
            # Another thread may have defined the same schedule meanwhile: the lock is not held while one is planned.
            before = self._known.pop((mixture, schedule), None)
            self._known[mixture, schedule] = known
            self._memory.add(mixture.node.mixture, known.schedule)
            if before is not None:
                self._memory.remove(mixture.node.mixture, before.schedule)
            # The newest stays: its reader asks for it next, and would send it again for ever.
            while len(self._known) > 1 and (self._memory.bytes > self._most_bytes or len(self._known) > _SCHEDULES):
                (of, _), oldest = self._known.popitem(last=False)
                self._memory.remove(of.node.mixture, oldest.schedule)

    def _check_bytes(self, mixture: Mixture, entries: int) -> None:
        """Raises InvalidRequest if a schedule of so many entries alone is larger than all may be."""
        wanted = entries * entry_bytes(mixture)
        if wanted > self._most_bytes:
            self.refused.warn(
                "a schedule of %d entries is refused, as it would take %d bytes: schedule_bytes in server.limits is %d",
                entries,
                wanted,
                self._most_bytes,
            )
            raise InvalidRequest(
                f"this server keeps up to {self._most_bytes} bytes of schedules, and this one of {entries} entries "
                f"would take {wanted}; change weights less often, or raise schedule_bytes in server.limits"
            )
