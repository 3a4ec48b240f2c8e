"""Readers of several replicas beside each other: what came, and how long each waited for it at most."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixserve_client import DeadlineExceeded, MixClient
from tests.chaos.trainer import HAS_CHECKSUMS, digest

SIZE = 8
STEP_S = 0.02


class Way(NamedTuple):
    """How a reader reads."""

    bulk: bool
    timeout_s: float | None
    reads: str
    hedge: bool

    @property
    def name(self) -> str:
        parts = ("bulk" if self.bulk else "gRPC", self.reads)
        return ", ".join((*parts, *["timeout_s"] * (self.timeout_s is not None), *["hedge"] * self.hedge))


WAYS = tuple(
    Way(bulk, timeout_s, reads, hedge)
    for hedge in (False, True)
    for bulk in (False, True)
    for reads in ("iterator", "iterator without prefetch", "calls")
    for timeout_s in (None, 20.0)
)


@dataclass
class Reader:
    """A thread that reads batch after batch until `over`, and at least `least` of them."""

    way: Way
    addresses: list[str]
    key: int
    attempt_s: float
    state: dict[str, Any] | None = None
    digests: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    late: int = 0  # DeadlineExceeded
    error: BaseException | None = None
    client: MixClient | None = None

    def start(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        options: dict[str, Any] = {"bulk": self.way.bulk, "hedge": self.way.hedge, "attempt_s": self.attempt_s}
        options |= {"checksum": True} if HAS_CHECKSUMS else {}
        try:
            with MixClient.connect(self.addresses, shared_memory=False, patience_s=120, **options) as client:
                self.client = client
                read = self._reader(client)
                while not self.over.is_set():
                    began = time.monotonic()
                    batch = self._read_one(read)
                    self.waits.append(time.monotonic() - began)
                    self.digests.append(digest(batch))
                    time.sleep(STEP_S)
        except BaseException as error:
            self.error = error

    def _reader(self, client: MixClient) -> Callable[[int], Mapping[str, Any]]:
        if self.way.reads == "calls":
            return lambda n: client.get_batch_at(n * SIZE, SIZE, self.key, timeout_s=self.way.timeout_s)
        batches = client.batches(
            SIZE, self.key, timeout_s=self.way.timeout_s, prefetch=2 if self.way.reads == "iterator" else 0
        )
        if self.state is not None:
            batches.set_state(self.state)
        return lambda _: next(batches)

    def _read_one(self, read: Callable[[int], Mapping[str, Any]]) -> Mapping[str, Any]:
        while True:
            try:
                return read(len(self.digests))
            except DeadlineExceeded:
                self.late += 1

    def stays_at(self, address: str) -> bool:
        """Whether its requests go to the replica with this address at present."""
        assert self.client is not None
        homes = self.client.catalog.resources.here.caller._replicas.homes._homes.values()
        return any(address in home.replica.transport.name for home in list(homes))

    def wait_for(self, count: int, deadline: float) -> None:
        """Return when it has `count` batches. Raises its error."""
        while len(self.digests) < count:
            if self.error is not None:
                raise AssertionError(f"{self.way.name} failed after {len(self.digests)} batches") from self.error
            assert time.monotonic() < deadline, f"{self.way.name} has {len(self.digests)} of {count} batches"
            time.sleep(0.01)
