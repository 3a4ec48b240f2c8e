"""A fleet of replicas in Ray, as those who start and stop it see it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixserve.autoscaling import Observer, Seen, Thresholds
from mixserve.config import ConfigError, parse_config
from mixserve.ray.controller import Controller
from mixserve.ray.messages import DIFFERS, FAILED, FRONT, STARTING, AutoscalingSpec, FleetSpec, FleetStatus, Needs
from mixserve.ray.placed import check, needs_of
from mixserve.ray.runtime import attached, of_head
from mixserve.yaml_file import read_text
from mixserve_client.errors import DeadlineExceeded, InvalidRequest, Unavailable
from mixserve_client.schema.addresses import FLEET_SCHEME, fleet_of
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.stats import Stats
from mixserve_client.transport.ray_controller import NAMESPACE

MOST_REPLICAS = 1000
GRACE_S = 30.0
_CALLS = 64  # of the controller at a time
_ANSWER_S = 30.0
_LOOK_EVERY_S = 0.2
_ENDS_S = 60.0  # beyond the grace


class Fleet:
    """The fleet `name`, which is up. It does not end with this object, nor with this process."""

    def __init__(self, name: str, ray: Any, needs: Mapping[str, Needs] | None = None):
        """`up` and `attach` make it."""
        self.name = name
        self._ray = ray
        self._needs = needs or {}

    @property
    def address(self) -> str:
        """For `MixClient.connect`, in processes that are connected to this Ray cluster."""
        return f"{FLEET_SCHEME}{self.name}"

    def addresses(self) -> tuple[str, ...]:
        """Those of all replicas that serve now. `ray://` before any of them is an address for processes without Ray."""
        _, found = self._call("replicas", FRONT)
        return tuple(found)

    def status(self) -> FleetStatus:
        """All replicas, and how they are. Raises Unavailable if the fleet is not up, or does not answer for 30 s."""
        return self._call("status")

    def scale(self, replicas: int, *, grace_s: float = GRACE_S, timeout_s: float | None = None) -> None:
        """Start or drain replicas, so that there are so many. Those that end have `grace_s` seconds for running calls.

        With `timeout_s`, wait until all serve, and those too many have ended; raises DeadlineExceeded if they do not.
        """
        self._call("scale", check_integer("replicas", replicas, 0, MOST_REPLICAS), grace_s)
        if timeout_s is not None:
            self.wait(timeout_s)

    def autoscale(self, least: int, most: int, *, thresholds: Thresholds | None = None, every_s: float = 5.0) -> None:
        """From now on the number of replicas follows what trainers feel, between `least` and `most`, as
        `mixserve.autoscaling.Policy` says. `status().autoscaling` has its last line. Raises InvalidRequest."""
        self._call("autoscale", AutoscalingSpec(least, most, thresholds or Thresholds(), every_s))

    def stop_autoscaling(self) -> None:
        """Keep the number of replicas that there is."""
        self._call("autoscale", None)

    def observer(self) -> Callable[[], tuple[int, Seen]]:
        """What `mixserve.autoscaling.autoscale` needs to watch this fleet, and say what it would do."""
        seen = Observer()

        def observe() -> tuple[int, Seen]:
            found: dict[str, Stats] = self._call("stats")
            if not found:
                raise Unavailable("no replica answers")
            return len(found), seen.see(time.monotonic(), found)

        return observe

    def wait(self, timeout_s: float = 600.0, tell: Callable[[FleetStatus], None] | None = None) -> FleetStatus:
        """Wait until all replicas serve, and none is too many. `tell` gets what is seen meanwhile.

        Raises DeadlineExceeded, and ConfigError if a replica cannot open its sources, or has other data than others.
        """
        until = time.monotonic() + timeout_s
        while True:
            # A controller that has just been made may have to wait for a process.
            status: FleetStatus = self._call("status", answer_s=max(_ANSWER_S, until - time.monotonic()))
            if tell is not None:
                tell(status)
            for one in status.replicas:
                if one.state in (FAILED, DIFFERS):
                    raise ConfigError(f"{one.name} on the node {one.host}: {one.error}")
            if status.is_settled:
                return status
            if time.monotonic() > until:
                raise DeadlineExceeded(f"after {timeout_s:g} s not all replicas serve: {self._describe(status)}")
            time.sleep(_LOOK_EVERY_S)

    def down(self, *, grace_s: float = GRACE_S) -> None:
        """Drain and end all replicas, and the fleet. Does nothing if it is not up."""
        until = time.monotonic() + grace_s + _ENDS_S
        try:
            self._call("down", grace_s)
            while self.status().replicas and time.monotonic() < until:
                time.sleep(_LOOK_EVERY_S)
        except Unavailable:  # its controller does not answer, or there is none: end what there is
            pass
        self._end(self.name)
        for actor in self._ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(f"{self.name}/"):
                self._end(actor["name"])

    def _end(self, actor: str) -> None:
        try:
            self._ray.kill(self._ray.get_actor(actor, namespace=NAMESPACE), no_restart=True)
        except ValueError:  # it has ended
            return

    def _call(self, method: str, *arguments: Any, answer_s: float = _ANSWER_S) -> Any:
        """Call the controller, again while it is restarted: all calls may come twice. Raises Unavailable."""
        until = time.monotonic() + answer_s
        while True:
            try:
                controller = self._ray.get_actor(self.name, namespace=NAMESPACE)
            except ValueError as error:
                raise Unavailable(f"no fleet of the name {self.name!r} is up in this Ray cluster") from error
            try:
                left_s = max(1.0, until - time.monotonic())
                return self._ray.get(getattr(controller, method).remote(*arguments), timeout=left_s)
            except self._ray.exceptions.RayTaskError:  # a fault of ours, and not of Ray
                raise
            except Exception as error:  # Ray has many, and they have no common base
                if time.monotonic() > until:
                    raise Unavailable(
                        f"the controller of the fleet {self.name!r} does not answer: {type(error).__name__}: "
                        f"{error!s:.300}"
                    ) from error
                time.sleep(_LOOK_EVERY_S)

    def _describe(self, status: FleetStatus) -> str:
        said = [f"{one.name} is {one.state}" for one in status.replicas]
        waiting = {one.source for one in status.replicas if one.state == STARTING}
        said += [
            f"a node with {self._needs[group]} may be missing" for group in sorted(waiting) if group in self._needs
        ]
        return "; ".join(said) or "none has been started"

    def __repr__(self) -> str:
        return f"Fleet({self.name!r})"


def up(
    config: Path | str,
    *,
    replicas: int = 1,
    name: str = "mixserve",
    address: str | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    resources: Mapping[str, float] | None = None,
    folder: Path | str | None = None,
    placement: str | None = None,
    insecure: bool = False,
    autoscaling: tuple[int, int] | None = None,
    timeout_s: float = 600.0,
    tell: Callable[[FleetStatus], None] | None = None,
) -> Fleet:
    """Serve the mixtures of the configuration file `config` by so many replicas, actors in the Ray cluster at `address`
    (None: that of RAY_ADDRESS, else the one of this machine). Returns when all of them serve.

    The file is read here. Paths in it are those of the nodes, and relative ones begin in `folder` (None: the folder of
    the file, which each node must have then). A replica needs a node with `num_cpus`, `num_gpus` and `resources`.
    `placement` and `insecure` are as in `serve`. With `autoscaling`, the least and the most replicas, their number
    follows what trainers feel, from `replicas` on. `tell` gets what is seen while this waits.

    Raises ConfigError for what is wrong with the file, or with the data on a node, InvalidRequest for wrong arguments
    and if a fleet of this name is up, Unavailable if there is no cluster, and DeadlineExceeded if not all replicas
    serve after `timeout_s` seconds. After an error nothing is left running.
    """
    check_integer("replicas", replicas, 1, MOST_REPLICAS)
    policy = None if autoscaling is None else AutoscalingSpec(*autoscaling)
    _check_name(name)
    given = Path(config)
    try:
        text = read_text(given)
    except OSError as error:
        raise ConfigError(f"{given}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{given}: {error}") from error
    parsed = parse_config(text, given)
    check(parsed, given)
    needs = {FRONT: Needs(num_cpus, num_gpus, dict(resources or {})), **needs_of(parsed)}
    first = {FRONT: replicas, **{source: place.replicas for source, place in parsed.ray.place.items()}}
    file = Path(given.parent if folder is None else folder).absolute() / given.name
    ray = attached(address)
    spec = FleetSpec(name, text, str(file), insecure, placement, needs, first, policy)
    controller = ray.remote(Controller).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=_CALLS,
        num_cpus=0,
        resources=of_head(ray),
    )
    try:
        controller.remote(spec)
    except ValueError as error:
        raise InvalidRequest(
            f"a fleet of the name {name!r} is up: scale it, end it by `mixserve ray down {name}`, or give this one "
            "another name"
        ) from error
    made = Fleet(name, ray, needs)
    try:
        made.wait(timeout_s, tell)
    except BaseException:
        made.down(grace_s=0)
        raise
    return made


def attach(name: str = "mixserve", *, address: str | None = None) -> Fleet:
    """The fleet `name` in the Ray cluster at `address`, as in `up`. Raises Unavailable if it is not up."""
    _check_name(name)
    found = Fleet(name, attached(address))
    found.status()
    return found


def _check_name(name: Any) -> None:
    """Raises InvalidRequest."""
    fleet = fleet_of(f"{FLEET_SCHEME}{name}")
    if fleet is None or fleet.name != name:
        raise InvalidRequest(f"name must be 1 to 64 letters, digits, '.', '_' and '-', got {name!r:.100}")
