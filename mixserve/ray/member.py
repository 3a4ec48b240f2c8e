"""A replica as the controller sees it."""

import time
from typing import Any

from mixserve.ray.messages import DRAINING, FAILED, LOST, SERVING, STARTING, ReplicaStatus, Report, Told

SILENT_S = 5.0


class Member:
    """An actor, and what it has said last. Not thread-safe: the controller holds a lock."""

    def __init__(self, name: str, group: str, number: int, handle: Any):
        self.name, self.group, self.number, self.handle = name, group, number, handle
        self.report: Report | None = None
        self.heard_at = time.monotonic()
        self.failed_at = 0.0
        self.is_draining = False
        self.differs = ""  # in what its data differ from those of the others
        self.died = ""  # why Ray has given it up
        self._asked: Any = None

    def ask(self, told: Told) -> Any:
        """Ask it for a report, unless an earlier answer has not come; the reference to the answer."""
        if self._asked is None:
            is_new = self.report is None or self.report.told != told.version
            self._asked = self.handle.report.remote(told if is_new else None)
        return self._asked

    def hear(self, report: Report | None) -> None:
        """It has answered, or with None failed to."""
        self._asked = None
        if report is not None:
            self.report, self.heard_at = report, time.monotonic()

    def note_failure(self, now: float) -> None:
        """Note since when it has failed, if it has."""
        has_failed = self.died or self.differs or (self.report is not None and self.report.state == FAILED)
        self.failed_at = (self.failed_at or now) if has_failed else 0.0

    @property
    def state(self) -> str:
        if self.is_draining:
            return DRAINING
        if self.died:
            return FAILED
        if self.report is None:
            return STARTING
        return LOST if time.monotonic() > self.heard_at + SILENT_S else self.report.state

    @property
    def is_serving(self) -> bool:
        """Whether clients should come."""
        return self.state == SERVING and not self.differs

    def status(self, restarts: int, differs: str) -> ReplicaStatus:
        """For those who ask how the fleet is; `differs` is the state of those with other data."""
        seen = self.report
        return ReplicaStatus(
            name=self.name,
            source=self.group,
            state=differs if self.differs and self.state == SERVING else self.state,
            error=self.died or self.differs or ("" if seen is None else seen.error),
            node="" if seen is None else seen.node,
            host="" if seen is None else seen.host,
            address="" if seen is None else seen.address,
            health_address="" if seen is None else seen.health_address,
            metrics_address="" if seen is None else seen.metrics_address,
            restarts=restarts,
            readers=0 if seen is None else seen.readers,
            wait_share=None if seen is None else seen.wait_share,
            fingerprints={} if seen is None else seen.fingerprints,
        )
