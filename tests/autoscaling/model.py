"""Trainers, replicas and what they would tell: a queue for each replica, simulated event by event."""

import heapq
import math
from dataclasses import dataclass, field
from random import Random

from mixserve.autoscaling import Policy, Seen

FADES_S = 15.0  # as WaitShare


@dataclass
class Trainer:
    """Takes a batch every `step_s`, if it is there; asks for `ahead` of them ahead of time."""

    step_s: float
    ahead: int = 2
    ready: int = 0
    waits_since: float | None = 0.0
    waited: float = 0.0  # faded
    lasted: float = 0.0
    seen_s: float = 0.0

    def pass_time(self, now: float) -> None:
        """Fade what was counted, and count the time since."""
        took = now - self.seen_s
        if took > 0:
            faded, gained = math.exp(-took / FADES_S), -math.expm1(-took / FADES_S)
            self.waited = self.waited * faded + (gained if self.waits_since is not None else 0.0)
            self.lasted = self.lasted * faded + gained
            self.seen_s = now


@dataclass
class World:
    """Replicas make one batch at a time, in `service_s`; each batch then needs what all replicas share, for `shared_s`
    (one slow disk under a common lock), and the network of its trainer, for `network_s`."""

    trainers: list[Trainer]
    service_s: float
    shared_s: float = 0.0
    network_s: float = 0.0
    lanes: int = 1  # batches that a replica makes at a time, without one slowing another
    replicas: int = 1
    starts_s: float = 10.0
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        self.now = 0.0
        self.events = list[tuple[float, int, str, int]]()
        self.count = 0
        self.wanted = self.replicas
        self.free = [[0.0] * self.lanes for _ in range(self.replicas)]
        self.shared_free = 0.0
        self.link_free = [0.0] * len(self.trainers)
        self.made_s = self.delivered = 0.0
        for number, trainer in enumerate(self.trainers):
            for _ in range(trainer.ahead):
                self._ask(number)

    def set_trainers(self, trainers: list[Trainer]) -> None:
        self.trainers, self.events, self.link_free = trainers, [], [self.now] * len(trainers)
        for number, trainer in enumerate(trainers):
            trainer.seen_s, trainer.waits_since = self.now, self.now
            for _ in range(trainer.ahead):
                self._ask(number)

    def scale(self, replicas: int) -> None:
        self.wanted = replicas
        if replicas > self.replicas:
            self._at(self.now + self.starts_s, "scaled", replicas)
        else:
            self._at(self.now, "scaled", replicas)

    def run(self, until: float) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what, number = heapq.heappop(self.events)
            if what == "scaled":
                if number == self.wanted:
                    self.free = self.free[:number] + [[self.now] * self.lanes] * (number - len(self.free))
                    self.free = [list(lanes) for lanes in self.free]
                    self.replicas = number
                continue
            trainer = self.trainers[number]
            trainer.pass_time(self.now)
            if what == "came":
                trainer.ready += 1
                self.delivered += 1
                if trainer.waits_since is not None:
                    self._take(number, trainer)
            elif trainer.ready:
                self._take(number, trainer)
            else:
                trainer.waits_since = self.now
        self.now = until

    def see(self, every_s: float) -> Seen:
        for trainer in self.trainers:
            trainer.pass_time(self.now)
        shares = [trainer.waited / trainer.lasted for trainer in self.trainers if trainer.lasted]
        busy, load = self.made_s / every_s / self.replicas, 1e6 * self.delivered / every_s
        self.made_s = self.delivered = 0.0
        return Seen(len(self.trainers), sum(shares) / len(shares) if shares else None, busy, load)

    def _take(self, number: int, trainer: Trainer) -> None:
        trainer.ready -= 1
        trainer.waits_since = None
        self._at(self.now + trainer.step_s * self.random.uniform(0.8, 1.2), "next", number)
        self._ask(number)

    def _ask(self, number: int) -> None:
        """A batch of the replica that is free first."""
        lanes = min(self.free, key=min)
        lane = min(range(self.lanes), key=lanes.__getitem__)
        made = max(self.now, lanes[lane]) + self.service_s * self.random.uniform(0.7, 1.3)
        if self.shared_s:
            made = self.shared_free = max(made, self.shared_free) + self.shared_s
        lanes[lane] = made
        self.made_s += made - self.now
        came = self.link_free[number] = max(made, self.link_free[number]) + self.network_s
        self._at(came, "came", number)

    def _at(self, time: float, what: str, number: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, what, number))


@dataclass(frozen=True)
class Change:
    at_s: float
    replicas: int
    why: str


def follow(world: World, policy: Policy, until: float, every_s: float = 5.0) -> list[Change]:
    """Let the policy scale the world's replicas; what it changed."""
    changes, wanted = [], world.replicas
    while world.now < until:
        world.run(world.now + every_s)
        decision = policy.decide(world.now, world.replicas, world.see(every_s))
        if decision.replicas != wanted:
            wanted = decision.replicas
            changes.append(Change(world.now, wanted, decision.why))
            world.scale(wanted)
    return changes
