"""Servers that are killed while sessions are saved, restored and read: acknowledged state is neither lost nor torn.

MIXSERVE_CRASH_KILLS sets the number of kills, MIXSERVE_CRASH_SEED repeats a run as far as the clock allows.
"""

import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve import MixDataSourcesNode, local_client
from mixserve_client import MixClient, Session, Unavailable
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from mixserve_client.wire.value import encode_value
from tests.crash import server
from tests.crash.server import MIXTURE, make_node
from tests.forked import Forked, wait_for_line
from tests.processes import DEADLINE_S

KILLS = int(os.environ.get("MIXSERVE_CRASH_KILLS") or 6)
SEED = int(os.environ.get("MIXSERVE_CRASH_SEED") or random.SystemRandom().randrange(1 << 32))
TRAINERS = 3
LONGEST_LIFE_S = 0.8
NAMES = [f"step-{number}" for number in range(8)]
READS = ("next_batch", "next_record", "start_epoch")
# How often a trainer does what: reads, saves and restores take about the same share of its time.
HABITS = {
    "next_batch": 50,
    "next_record": 6,
    "save": 7,
    "restore": 14,
    "delete": 5,
    "set_statistics": 5,
    "process": 5,
    "reset": 1,
    "open": 2,
}

State = dict[str, Any]
Kept = dict[str, State]  # the saved states by name, in the order of saving


class Servers:
    """One server process after another, with the same folder and port; the next one is always on standby."""

    def __init__(self, folder: Path):
        self.address = f"127.0.0.1:{free_port()}"
        self.start_s = 0.3  # how long a start took lately
        self._folder = folder
        self._began = 0.0
        self._count = 0
        self._standby = self._made()
        self._running: Forked | None = None

    def begin(self) -> None:
        """Let the next one start."""
        self._running, self._standby = self._standby, None
        self._wait_for("ready")
        self._running.tell("go")
        self._began = time.monotonic()
        self._standby = self._made()

    def wait(self) -> None:
        """Return when the server serves."""
        self._wait_for("serving")
        self.start_s = time.monotonic() - self._began

    def kill(self) -> None:
        """Send SIGKILL; return when the process has ended. Its log must be clean."""
        assert self._running is not None
        self._running.kill(DEADLINE_S)
        assert "Traceback" not in self._running.log(), self._running.log()

    def replace(self) -> None:
        """Kill this one; return when the next one serves."""
        self.kill()
        self.begin()
        self.wait()

    def close(self) -> None:
        for process in filter(None, (self._running, self._standby)):
            process.kill(DEADLINE_S)

    def _made(self) -> Forked:
        self._count += 1
        log = self._folder.with_name(f"server-{self._count}.log")
        return Forked(server.main, str(self._folder), self.address, log=log)

    def _wait_for(self, word: str) -> None:
        assert self._running is not None
        wait_for_line(self._running, lambda log: word in log.split("\n"), DEADLINE_S)


def free_port() -> int:
    """A free port that stays free: below the range from which the kernel gives clients their ports."""
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port found")


@dataclass(eq=False)
class Doing:
    """A call without an answer yet. Until it comes, any of `possible` may be stored; afterwards the last of them is."""

    kind: str
    possible: list[Kept] = field(default_factory=list)


class Crew:
    """Trainers in threads: while paused, their next calls wait; every call is registered before it starts."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.duration_s = dict.fromkeys(HABITS, 0.005)  # of recent calls
        self.calls = Counter[str]()
        self.stopped = False
        self._paused = False
        self._running = list[Future[None]]()

    @contextmanager
    def run(self, trainers: list["Trainer"]) -> Iterator[None]:
        """Run the trainers; raises a trainer's error in the caller, whatever the caller waits for."""
        with ThreadPoolExecutor(len(trainers)) as threads:
            try:
                for trainer in trainers:
                    self._running.append(threads.submit(trainer.run))
                    self._running[-1].add_done_callback(lambda _: self.wake())
                yield
                self.stop()
                for running in self._running:
                    running.result(DEADLINE_S)
            finally:
                self.stop()
                for trainer in trainers:
                    trainer.client.close()

    def pause(self) -> None:
        with self.changed:
            self._paused = True

    def go_on(self) -> None:
        with self.changed:
            self._paused = False
            self.changed.notify_all()

    def stop(self) -> None:
        self.stopped = True
        self.go_on()

    def wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def wait_for(self, reached: Callable[[], bool], what: str) -> None:
        with self.changed:
            done = self.changed.wait_for(lambda: self._failed() or reached(), DEADLINE_S)
        self.check()
        assert done, f"no {what} in {DEADLINE_S} s"

    def check(self) -> None:
        for running in self._failed():
            running.result()

    def admit(self, trainer: "Trainer", doing: Doing) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self._paused)
            trainer.doing = doing
            self.changed.notify_all()

    def _failed(self) -> list[Future[None]]:
        return [running for running in self._running if running.done() and running.exception() is not None]


class Trainer:
    """Makes the same calls of a session on the server and of a node in this process; both must always give the same."""

    def __init__(self, name: str, address: str, node: MixDataSourcesNode, crew: Crew, seed: str):
        self.name = name
        self.client = MixClient.connect(address, patience_s=DEADLINE_S, shared_memory=False)
        self.doing: Doing | None = None
        self.kept: Kept = {}  # acknowledged saves
        self.rows = 0
        self._twin = node.clone()
        self._crew = crew
        self._random = random.Random(seed)
        self._session: Session | None = None

    def run(self) -> None:
        self._open()
        self._start_epoch()
        while not self._crew.stopped:
            (habit,) = self._random.choices(list(HABITS), list(HABITS.values()))
            getattr(self, f"_{habit}")()

    def _next_batch(self) -> None:
        size = self._random.randint(1, 9)
        self._read("next_batch", lambda node: node.next_batch(size))

    def _next_record(self) -> None:
        self._read("next_record", next)

    def _read(self, kind: str, call: Callable[[Any], Any]) -> None:
        rows = self._both(kind, call)
        if rows is StopIteration:
            self._start_epoch()
        else:
            self.rows += len(rows["tokens"]) if kind == "next_batch" else 1

    def _start_epoch(self) -> None:
        self._both("start_epoch", lambda node: iter(node) and None)

    def _reset(self) -> None:
        self._both("reset", lambda node: node.reset())

    def _set_statistics(self) -> None:
        # Large enough to rewrite journals now and then.
        statistics = {"mean": np.frombuffer(self._random.randbytes(12_000), np.int32), "seen": self.rows}
        self._both("set_statistics", lambda node: node.set_statistics(statistics))

    def _process(self) -> None:
        start, size, key = (self._random.randrange(1, 50) for _ in range(3))
        self._both("process", lambda node: node.process(start, size, key))

    def _save(self) -> None:
        name = self._random.choice([*self.kept, "step-0"] if self._random.random() < 0.5 else NAMES)
        keep_last = 2 if len(self.kept) > 5 else self._random.choice((None, None, 3))
        kept = {known: state for known, state in self.kept.items() if known != name} | {name: self._twin.get_state()}
        # `keep_last` deletes the oldest one by one: a kill may leave any state in between.
        excess = len(kept) - keep_last if keep_last else 0
        possible = [dict(list(kept.items())[gone:]) for gone in range(max(0, excess) + 1)]
        with self._call("save", possible) as session:
            saved = session.save_checkpoint(name, keep_last=keep_last)
        assert (saved.name, saved.damaged) == (name, "")
        self._compare_states()

    def _restore(self) -> None:
        if not self.kept:
            return
        name = self._random.choice(list(self.kept))
        with self._call("restore") as session:
            session.restore_checkpoint(name)
        self._twin.set_state(self.kept[name])
        self._compare_states()

    def _delete(self) -> None:
        if not self.kept:
            return
        name = self._random.choice(list(self.kept))
        with self._call("delete", [{known: state for known, state in self.kept.items() if known != name}]) as session:
            deleted = session.delete_checkpoint(name)
        assert deleted.name == name
        self._compare_states()

    def _open(self) -> None:
        before = self._session
        with self._admitted(Doing("open")):
            self._session = self.client.session(self.name, take_over=True)
        assert self._session.resumed == (before is not None)
        self._compare_states()
        if before is not None:
            with self._admitted(Doing("close")):
                before.close()  # it no longer holds the session, so closing releases nothing
            self._compare_states()

    def _both(self, kind: str, call: Callable[[Any], Any]) -> Any:
        """Call both. Returns the session's result, or StopIteration itself if it was raised."""
        with self._call(kind) as session:
            given = outcome(call, session)
        assert_same(given, outcome(call, self._twin), kind)
        self._compare_states()
        return given

    def _compare_states(self) -> None:
        with self._call("get_state") as session:
            given = session.get_state()
        expected = self._twin.get_state()
        assert_same(given, expected, f"state of {self.name}")
        assert (session.index, session.epoch) == (expected["index"], expected["epoch"])

    @contextmanager
    def _call(self, kind: str, possible: list[Kept] | None = None) -> Iterator[Session]:
        assert self._session is not None
        with self._admitted(Doing(kind, possible or [])):
            yield self._session

    @contextmanager
    def _admitted(self, doing: Doing) -> Iterator[None]:
        crew = self._crew
        crew.admit(self, doing)
        began = time.monotonic()
        yield
        with crew.changed:
            crew.duration_s[doing.kind] = min(time.monotonic() - began, 0.1)
            crew.calls[doing.kind] += 1
            if doing.possible:
                self.kept = doing.possible[-1]
            self.doing = None
            crew.changed.notify_all()


def outcome(call: Callable[[Any], Any], node: Any) -> Any:
    try:
        return call(node)
    except StopIteration:
        return StopIteration


def assert_same(left: Any, right: Any, path: str) -> None:
    """Require the same dicts of the same numbers, strings and arrays, bit for bit."""
    if isinstance(left, Mapping):
        assert isinstance(right, Mapping), path
        assert list(left) == list(right), path
        for name in left:
            assert_same(left[name], right[name], f"{path}.{name}")
    elif hasattr(left, "dtype"):
        a, b = np.asarray(left), np.asarray(right)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), path
    else:
        assert (type(left), left) == (type(right), right), path


class Inspector:
    """Another client, which inspects a restarted server while the crew is paused."""

    def __init__(self, address: str, crew: Crew, trainers: list[Trainer]):
        self._address = address
        self._crew = crew
        self._trainers = trainers
        self.loaded = self.early = 0

    def inspect(self) -> None:
        """Every acknowledged checkpoint exists and loads; an unacknowledged one loads if it exists."""
        with MixClient.connect(self._address, patience_s=DEADLINE_S, shared_memory=False) as client:
            scratch = client.session("inspector", take_over=True)
            for trainer in self._trainers:
                self._inspect_early(client, scratch, trainer)
            self._crew.wait_for(lambda: all(trainer.doing is None for trainer in self._trainers), "answers")
            for trainer in self._trainers:
                assert checkpoint_names(client, trainer) == list(trainer.kept)
                for name, state in trainer.kept.items():
                    scratch.restore_checkpoint(name, session=trainer.name)
                    assert_same(scratch.get_state(), state, f"{name} of {trainer.name}")
                    self.loaded += 1
            known = {session.name: session for session in client.sessions()}
            for trainer in self._trainers:
                assert not known[trainer.name].damaged
                assert known[trainer.name].checkpoints == tuple(trainer.kept)

    def _inspect_early(self, client: MixClient, scratch: Session, trainer: Trainer) -> None:
        """Inspect while the trainer retries its unanswered call, or before it does."""
        with self._crew.changed:
            possible = [trainer.kept, *(trainer.doing.possible if trainer.doing is not None else [])]
        names = checkpoint_names(client, trainer)
        assert names in [list(kept) for kept in possible]
        for name in names:
            states = [kept[name] for kept in possible if name in kept]
            if states[-1] is states[0] and name in trainer.kept:
                continue  # acknowledged, and loaded later
            scratch.restore_checkpoint(name, session=trainer.name)
            assert encode_value(scratch.get_state()) in [encode_value(state) for state in states]
            self.early += 1


def checkpoint_names(client: MixClient, trainer: Trainer) -> list[str]:
    """The checkpoints' names of a trainer's session; none of them is damaged."""
    found = client.view_session(trainer.name).list_checkpoints()
    assert not [checkpoint for checkpoint in found if checkpoint.damaged]
    return [checkpoint.name for checkpoint in found]


class Killer:
    """Kills the server at moments of four kinds, and lets the next one start."""

    def __init__(self, servers: Servers, crew: Crew, trainers: list[Trainer], seed: str):
        self.kills = 0
        self.hits = Counter[str]()  # by the call that was hit
        self._servers = servers
        self._crew = crew
        self._trainers = trainers
        self._random = random.Random(seed)

    def kill(self) -> str:
        """Kill once, or a few times in quick succession; returns what was hit, as text, when the next server serves."""
        moment = self._random.choices(("at random", "aimed", "at once", "thrice"), (40, 25, 20, 15))[0]
        if moment in ("at random", "thrice"):
            time.sleep(self._random.uniform(0, LONGEST_LIFE_S))
        else:
            kind = self._random.choice(("save", "save", "restore", "delete", "next_batch", "set_statistics", "open"))
            self._wait_for_start(kind)
            if moment == "aimed":
                time.sleep(self._random.uniform(0, 1.1 * self._crew.duration_s[kind]))
        hit = self._kill()
        if moment == "thrice":
            for _ in range(min(2, KILLS - self.kills)):
                time.sleep(self._random.uniform(0, self._servers.start_s + 0.5))
                hit += " | " + self._kill()
        self._servers.wait()
        return f"{moment}: {hit}"

    def _wait_for_start(self, kind: str) -> None:
        old = [trainer.doing for trainer in self._trainers]

        def began() -> bool:
            doing = [trainer.doing for trainer in self._trainers if trainer.doing not in old]
            return any(call is not None and call.kind == kind for call in doing)

        self._crew.wait_for(began, f"call of {kind}")

    def _kill(self) -> str:
        before = [trainer.doing for trainer in self._trainers]
        self._servers.kill()
        self._crew.pause()
        hit = [
            trainer.doing.kind
            for trainer, doing in zip(self._trainers, before, strict=True)
            if trainer.doing is not None and trainer.doing is doing
        ]
        self._servers.begin()
        self.kills += 1
        self.hits.update(hit)
        return ", ".join(hit) or "nothing"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path / "state")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    """The served node, whose programs are compiled here, for all servers."""
    made = make_node()
    with local_client({MIXTURE: made}) as client:
        client.session("warm-up").process(0, 5, 0)
    return made


@pytest.mark.timeout(120 + 10 * KILLS)
def test_killed_servers_lose_nothing_that_was_acknowledged(servers, node, caplog):
    caplog.set_level(logging.ERROR, "mixserve_client")  # the client warns repeatedly that it waits for a server
    print(f"\nMIXSERVE_CRASH_SEED={SEED} MIXSERVE_CRASH_KILLS={KILLS}")
    crew = Crew()
    trainers = [Trainer(f"trainer-{i}", servers.address, node, crew, f"{SEED}, {i}") for i in range(TRAINERS)]
    killer = Killer(servers, crew, trainers, f"{SEED}, killer")
    inspector = Inspector(servers.address, crew, trainers)
    began = time.monotonic()
    servers.begin()
    servers.wait()
    with crew.run(trainers):
        while killer.kills < KILLS:
            crew.check()
            hit = killer.kill()
            loaded, early = inspector.loaded, inspector.early
            inspector.inspect()
            crew.go_on()
            print(
                f"kill {killer.kills}/{KILLS} after {time.monotonic() - began:.0f} s, {hit}; "
                f"{inspector.loaded - loaded} checkpoints load, {inspector.early - early} not acknowledged",
                flush=True,
            )
        answered = crew.calls.total()
        crew.wait_for(lambda: crew.calls.total() > answered + 30, "calls after the last kill")
    hits = {kind: count for kind, count in killer.hits.most_common() if count}
    print(
        f"{killer.kills} kills in {time.monotonic() - began:.0f} s hit {hits}; acknowledged were {dict(crew.calls)}, "
        f"{sum(trainer.rows for trainer in trainers)} rows; {inspector.loaded + inspector.early} checkpoints loaded"
    )
    assert sum(trainer.rows for trainer in trainers) > 0
    if KILLS >= 100:
        assert killer.hits["save"]
        assert killer.hits["restore"]
        assert sum(killer.hits[kind] for kind in READS)


class LosingTransport(GrpcTransport):
    """Loses a session's call: its request, or its answer after it has arrived. `meanwhile` runs at that moment."""

    def __init__(self, target: str, meanwhile: Callable[[], None]):
        super().__init__(target)
        self.loses = ""
        self.answers = list[bytes]()
        self._meanwhile = meanwhile

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        lost, self.loses = (self.loses, "") if method == methods.CALL_SESSION else ("", self.loses)
        if lost == "request":
            self._lose()
        answer = super().call(method, request, timeout_s)
        if method == methods.CALL_SESSION:
            self.answers.append(answer)
        if lost == "answer":
            self._lose()
        return answer

    def _lose(self) -> None:
        self._meanwhile()
        raise Unavailable("lost")


CALLS: dict[str, Callable[[Any], Any]] = {
    "next_batch": lambda session: session.next_batch(5),
    "next": next,
    "process": lambda session: session.process(3, 5, 7),
    "save_checkpoint": lambda session: session.save_checkpoint("kept").index,
    "restore_checkpoint": lambda session: session.restore_checkpoint("kept"),
    "delete_checkpoint": lambda session: session.delete_checkpoint("kept").index,
}


@pytest.mark.parametrize(("lost", "calls"), [("request", ["next_batch"]), ("answer", list(CALLS))])
def test_a_call_that_is_sent_again_to_the_next_server_is_done_once(servers, node, tmp_path, lost, calls):
    servers.begin()
    servers.wait()
    transport = LosingTransport(servers.address, servers.replace)
    with (
        MixClient([transport], patience_s=DEADLINE_S) as client,
        local_client({MIXTURE: node}, state_dir=tmp_path / "quiet") as quiet,
    ):
        session, expected = iter(client.session("moved")), iter(quiet.session("moved"))
        for name in calls:
            transport.loses, transport.answers = lost, []
            assert_same(CALLS[name](session), CALLS[name](expected), name)
            assert transport.loses == ""
            if lost == "answer":
                first, again = transport.answers
                assert first == again, name
            assert_same(session.get_state(), expected.get_state(), name)
            assert (session.index, session.epoch) == (expected.index, expected.epoch)
