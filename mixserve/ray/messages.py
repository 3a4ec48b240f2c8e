"""What controller, replicas and commands tell each other; pickled by Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixserve.autoscaling import Policy, Thresholds

FRONT = ""  # the group of the replicas that trainers read from; others are named like the source that they serve

STARTING = "starting"  # Ray looks for a node, or starts its process
OPENING = "opening"  # its sources, and its programs
SERVING = "serving"
FAILED = "failed"
DIFFERS = "differs"  # it has other data than the others
DRAINING = "draining"
LOST = "lost"  # it does not answer


@dataclass(frozen=True, slots=True)
class Needs:
    """What a replica needs of its node, as Ray counts it."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict[str, float])

    def __str__(self) -> str:
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return ", ".join(f"{name} {amount:g}" for name, amount in found.items() if amount) or "nothing"


@dataclass(frozen=True, slots=True)
class AutoscalingSpec:
    """Between which numbers of replicas a policy chooses, how, and how often. Raises InvalidRequest."""

    least: int
    most: int
    thresholds: Thresholds = field(default_factory=Thresholds)
    every_s: float = 5.0

    def __post_init__(self) -> None:
        self.policy()

    def policy(self) -> Policy:
        """A policy that has seen nothing yet."""
        return Policy(self.least, self.most, self.thresholds)


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """What a fleet serves, and how: the `text` of its configuration, for errors that of `file`, in whose folder
    relative paths begin on every node."""

    name: str
    text: str
    file: str
    insecure: bool
    placement: str | None
    needs: Mapping[str, Needs]  # by group
    first: Mapping[str, int]  # how many replicas each group has in the beginning
    autoscaling: AutoscalingSpec | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What a controller that is restarted must know: each replica keeps a copy."""

    wanted: Mapping[str, int]  # by group
    fingerprints: Mapping[str, Mapping[str, str]]  # by group and mixture
    instances: Mapping[str, str] = field(default_factory=dict[str, str])  # by replica: its process
    restarts: Mapping[str, int] = field(default_factory=dict[str, int])  # by replica
    autoscaling: AutoscalingSpec | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """The addresses of a group's replicas at present, which they tell their clients, and the controller's memory."""

    version: int
    addresses: tuple[str, ...]
    memory: Memory


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself. `instance` is that of its process."""

    instance: str
    node: str
    host: str
    pid: int
    state: str
    told: int  # the version that it knows
    error: str = ""
    address: str = ""
    health_address: str = ""
    metrics_address: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict[str, str])
    readers: int = 0
    wait_share: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica of a fleet: where it is, and how it is. `source` is the placed one that it serves, empty for a replica
    that trainers read from. `wait_share` is the part of their time that its readers wait, None without readers."""

    name: str
    source: str
    state: str
    error: str
    node: str
    host: str
    address: str
    health_address: str
    metrics_address: str
    restarts: int
    readers: int
    wait_share: float | None
    fingerprints: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """All replicas, and how many there should be, by placed source; the empty one is that of trainers. `node` is that
    of the controller. `is_told`: those that serve tell clients the present list. `autoscaling` is what the policy said
    last, empty if there is none."""

    node: str
    is_told: bool
    wanted: Mapping[str, int]
    replicas: tuple[ReplicaStatus, ...]
    autoscaling: str = ""

    @property
    def is_settled(self) -> bool:
        """Whether all replicas serve and tell so, and none is missing or too many."""
        serving = [one.source for one in self.replicas if one.state == SERVING]
        return (
            self.is_told
            and len(serving) == len(self.replicas)
            and all(serving.count(source) == count for source, count in self.wanted.items())
        )
