"""The actor that keeps a fleet as it should be: it starts replicas, drains them, and tells all of them the list."""

import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from mixserve.autoscaling import Observer, Seen
from mixserve.ray.autoscaler import Autoscaler
from mixserve.ray.member import Member
from mixserve.ray.messages import DIFFERS, DRAINING, FRONT, AutoscalingSpec, FleetSpec, FleetStatus, Memory, Told
from mixserve.ray.replica import Replica
from mixserve.ray.runtime import import_ray
from mixserve_client.errors import Unavailable
from mixserve_client.schema.stats import Stats
from mixserve_client.transport.ray_controller import NAMESPACE

_logger = logging.getLogger("mixserve")

_EVERY_S = 1.0
_ANSWER_S = 1.0  # for all replicas together; later answers count in the next round
_RECALL_S = 10.0
_STATS_S = 5.0
_CALLS = 8  # of each replica at a time: reports, and one that drains
_KILL_S = 30.0  # beyond its grace, for a replica that drains
_FIRST_RETRY_S, _LONGEST_RETRY_S = 5.0, 120.0


class Controller:
    """Looks at the replicas every second. Ray restarts it after a crash; it finds the replicas by their names, and
    learns from them what it knew."""

    def __init__(self, spec: FleetSpec):
        self._spec = spec
        self._ray = import_ray()
        self._node: str = self._ray.get_runtime_context().get_node_id()
        self._members = dict[str, Member]()
        self._lock = threading.RLock()
        self._memory = Memory(dict(spec.first), {}, autoscaling=spec.autoscaling)
        self._version = 0
        self._lists = dict[str, tuple[str, ...]]()  # by group
        self._failures = Counter[str]()  # by group, in a row
        self._grace_s = 30.0
        self._observer = Observer()
        self._autoscaler = Autoscaler(self._observe, self._scale_by_policy, self._say)
        self._is_ready = threading.Event()
        threading.Thread(target=self._run, name="mixserve-controller", daemon=True).start()

    def replicas(self, group: str = FRONT) -> tuple[int, tuple[str, ...]]:
        """The version of the list of a group's replicas, and their addresses: what clients ask."""
        self._is_ready.wait(_RECALL_S)
        with self._lock:
            return self._version, self._lists.get(group, ())

    def status(self) -> FleetStatus:
        """How all replicas are."""
        self._is_ready.wait(_RECALL_S)
        with self._lock:
            members = sorted(self._members.values(), key=lambda one: (one.group, one.number))
            found = [one.status(self._memory.restarts.get(one.name, 0), DIFFERS) for one in members]
            is_told = all(
                one.report is not None and one.report.told == self._version for one in members if one.is_serving
            )
            return FleetStatus(self._node, is_told, dict(self._memory.wanted), tuple(found), self._autoscaler.said)

    def scale(self, count: int, grace_s: float) -> None:
        """From now on there should be so many replicas; those too many have `grace_s` seconds for running calls."""
        self._is_ready.wait(_RECALL_S)
        with self._lock:
            self._grace_s = grace_s
            self._remember(wanted={**self._memory.wanted, FRONT: count})
        self._tell()

    def autoscale(self, spec: AutoscalingSpec | None) -> None:
        """From now on a policy says how many there should be, with None no more."""
        self._is_ready.wait(_RECALL_S)
        with self._lock:
            self._remember(autoscaling=spec)
            self._autoscaler.follow(spec)
        self._tell()

    def down(self, grace_s: float) -> None:
        """From now on there should be none."""
        self._is_ready.wait(_RECALL_S)
        with self._lock:
            self._grace_s = grace_s
            self._autoscaler.follow(None)
            self._remember(wanted=dict.fromkeys(self._memory.wanted, 0))
        self._tell()

    def stats(self) -> dict[str, Stats]:
        """What each replica that serves has counted, by address; of those that answer in time."""
        with self._lock:
            asked = {
                one.handle.stats.remote(): one.report.address
                for one in self._of(FRONT)
                if one.is_serving and one.report is not None
            }
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_STATS_S) if asked else ([], [])
        found = dict[str, Stats]()
        for answer in done:
            with suppress(Exception):  # Ray has many, and they have no common base
                found[asked[answer]] = self._ray.get(answer)
        return found

    def _observe(self) -> tuple[int, Seen]:
        """How many replicas answer, and what the policy sees of them. Raises Unavailable if none does."""
        found = self.stats()
        if not found:
            raise Unavailable("no replica answers")
        return len(found), self._observer.see(time.monotonic(), found)

    def _scale_by_policy(self, replicas: int) -> None:
        with self._lock:
            self._remember(wanted={**self._memory.wanted, FRONT: replicas})

    def _say(self, text: str) -> None:
        _logger.info("autoscaling: %s", text)

    def _remember(self, **changed: Any) -> None:
        """Change what the replicas keep for a successor of this process."""
        known = self._memory
        self._memory = Memory(
            changed.get("wanted", known.wanted),
            changed.get("fingerprints", known.fingerprints),
            changed.get("instances", known.instances),
            changed.get("restarts", known.restarts),
            changed.get("autoscaling", known.autoscaling),
        )
        self._version = max(self._version + 1, time.time_ns() // 1_000_000)

    def _tell(self) -> None:
        """Tell the replicas now, so that what was promised to a caller is known to a successor of this process."""
        with self._lock:
            asked = [one.handle.report.remote(self._told(one.group)) for one in self._members.values()]
        if asked:
            self._ray.wait(asked, num_returns=len(asked), timeout=_ANSWER_S)

    def _run(self) -> None:
        self._recover()
        self._autoscaler.follow(self._memory.autoscaling)
        self._is_ready.set()
        while True:
            began = time.monotonic()
            try:
                self._look()
            except Exception:  # the next round may do better; without rounds nothing would be mended
                _logger.exception("a look at the replicas failed")
            time.sleep(max(0.05, began + _EVERY_S - time.monotonic()))

    def _recover(self) -> None:
        """Find the replicas that a controller before this one has started, and what it knew."""
        prefix = f"{self._spec.name}/"
        for actor in self._ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix):
                self._add(actor["name"])
        asked = {member.handle.recall.remote(): member for member in self._members.values()}
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_RECALL_S) if asked else ([], [])
        for answer in done:
            try:
                told: Told | None = self._ray.get(answer)
            except Exception as error:
                _logger.warning("%s does not say what it was told: %s", asked[answer].name, error)
                continue
            if told is not None and told.version > self._version:
                self._version, self._memory = told.version, told.memory
        if asked:
            _logger.warning("found %d replicas of a controller before this one", len(asked))

    def _add(self, name: str) -> None:
        """Know a replica that runs. `name` is fleet/group/number."""
        try:
            handle = self._ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:  # it has ended meanwhile
            return
        _, *group, number = name.split("/")
        self._members[name] = Member(name, "".join(group), int(number), handle)

    def _look(self) -> None:
        with self._lock:
            asked = {one.ask(self._told(one.group)): one for one in self._members.values() if not one.died}
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        for answer in done:
            try:
                report = self._ray.get(answer)
            except Exception as error:
                report = None
                _logger.info("%s does not answer: %s", asked[answer].name, type(error).__name__)
                if not self._exists(asked[answer].name):
                    asked[answer].died = f"Ray has given it up: {type(error).__name__}: {error!s:.1000}"
            with self._lock:
                asked[answer].hear(report)
        with self._lock:
            self._note_processes()
            self._compare()
            self._retry()
            for group, wanted in self._memory.wanted.items():
                self._keep(group, wanted)
            lists = {group: self._serving(group) for group in self._memory.wanted}
            if lists != self._lists:
                self._lists = lists
                self._remember()

    def _told(self, group: str) -> Told:
        return Told(self._version, self._lists.get(group, ()), self._memory)

    def _serving(self, group: str) -> tuple[str, ...]:
        """The addresses of the replicas of a group that serve."""
        found = [one.report.address for one in self._of(group) if one.is_serving and one.report is not None]
        return tuple(sorted(found))

    def _of(self, group: str) -> list[Member]:
        return sorted((one for one in self._members.values() if one.group == group), key=lambda one: one.number)

    def _note_processes(self) -> None:
        """Count replicas whose process is another one than before: Ray has restarted them."""
        before, instances, restarts = self._memory.instances, dict[str, str](), dict[str, int]()
        for name, member in self._members.items():
            known = before.get(name)
            instances[name] = known or "" if member.report is None else member.report.instance
            is_new = bool(known) and instances[name] != known
            restarts[name] = self._memory.restarts.get(name, 0) + is_new
            if is_new:
                _logger.warning("%s was restarted, on the node %s", name, member.report and member.report.host)
        if instances != before:
            self._remember(instances=instances, restarts=restarts)

    def _compare(self) -> None:
        """Keep replicas from clients that have other data than the first one of their group had."""
        known = dict(self._memory.fingerprints)
        for member in self._members.values():
            seen = {} if member.report is None else member.report.fingerprints
            if not seen or not member.report or member.state != member.report.state:
                member.differs = ""
                continue
            first = known.setdefault(member.group, seen)
            other = [name for name, fingerprint in seen.items() if first.get(name) != fingerprint]
            member.differs = (
                f"its data differ from those of the first replica: {other[0]} has the fingerprint {seen[other[0]]} on "
                f"the node {member.report.host}, and {first.get(other[0])} elsewhere"
                if other
                else ""
            )
        if known != self._memory.fingerprints:
            self._remember(fingerprints=known)

    def _retry(self) -> None:
        """End replicas that have failed, so that others take their places, maybe on other nodes."""
        now = time.monotonic()
        for group in self._memory.wanted:
            found = [one for one in self._of(group) if not one.is_draining]
            for one in found:
                one.note_failure(now)
            failed = [one for one in found if one.failed_at]
            if all(one.is_serving for one in found):
                self._failures[group] = 0
            delay_s = min(_FIRST_RETRY_S * 2 ** min(self._failures[group], 10), _LONGEST_RETRY_S)
            late = [one for one in failed if now > one.failed_at + delay_s]
            for one in late:
                self._kill(one)
            self._failures[group] += bool(late)

    def _keep(self, group: str, wanted: int) -> None:
        """Start the replicas of a group that are missing, and end those that are too many."""
        found = [one for one in self._of(group) if not one.is_draining]
        if group == FRONT and not found and not self._placed_serve():
            return  # they would wait in vain for the sources that these serve
        taken = {one.number for one in self._of(group)}
        free = (number for number in range(wanted + len(taken)) if number not in taken)
        for _ in range(wanted - len(found)):
            self._start(group, next(free))
        by_use = sorted(found, key=lambda one: (not one.is_serving, one.number))
        # Also those that a controller before this one has begun to drain.
        began = [one for one in found if one.report is not None and one.report.state == DRAINING]
        for one in {*by_use[wanted:], *began}:
            one.is_draining = True
            threading.Thread(target=self._drain, args=(one,), name="mixserve-drain", daemon=True).start()

    def _placed_serve(self) -> bool:
        return all(self._serving(group) for group, wanted in self._memory.wanted.items() if group != FRONT and wanted)

    def _start(self, group: str, number: int) -> None:
        name = "/".join((self._spec.name, *([group] if group else ()), str(number)))
        needs = self._spec.needs[group]
        made = self._ray.remote(Replica).options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=_CALLS,
            num_cpus=needs.num_cpus,
            num_gpus=needs.num_gpus,
            resources=dict(needs.resources),
            scheduling_strategy="SPREAD",
        )
        try:
            handle = made.remote(self._spec, group)
        except ValueError:  # one of this name has not ended yet: the next round tries again
            return
        self._members[name] = Member(name, group, number, handle)

    def _drain(self, member: Member) -> None:
        """Stop a replica as at SIGTERM. It is not on the lists any more."""
        if member.report is not None:
            grace_s = self._grace_s
            time.sleep(min(grace_s, 2 * _EVERY_S))  # until the others have told clients so
            try:
                self._ray.get(member.handle.drain.remote(grace_s), timeout=grace_s + _KILL_S)
            except Exception as error:
                _logger.warning("%s was not drained: %s", member.name, error)
        self._kill(member)

    def _kill(self, member: Member) -> None:
        self._ray.kill(member.handle, no_restart=True)
        self._forget(member)

    def _forget(self, member: Member) -> None:
        with self._lock:
            if self._members.get(member.name) is member:
                del self._members[member.name]

    def _exists(self, name: str) -> bool:
        """Whether Ray knows the replica: it may be restarting."""
        try:
            self._ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return False
        return True
