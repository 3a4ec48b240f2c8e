"""Sessions under failures of disks, sources, wires and callers: nothing is lost, and nothing is stored by halves."""

import errno
import logging
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve.servicer import Services
from mixserve_client import (
    CorruptCheckpoint,
    InvalidRequest,
    MixClient,
    ServerFault,
    SessionTaken,
    StorageFailed,
    UnknownSession,
)
from mixserve_client.errors import CorruptReply, Unavailable
from mixserve_client.schema.sessions import CallRequest
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.session import decode_call_reply, encode_call_request

DEADLINE_S = 60
SOON_S = 5.0


class Gate:
    """Every read of a source passes this gate; it can be shut for a while, and fail once."""

    def __init__(self):
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._opened.set()
        self._broken = False

    def shut(self):
        self.reached.clear()
        self._opened.clear()

    def open(self):
        self._opened.set()

    def break_once(self):
        self._broken = True

    def passed(self):
        self.reached.set()
        assert self._opened.wait(DEADLINE_S)
        if self._broken:
            self._broken = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))


class Records:
    """A hundred numbers behind a gate."""

    def __init__(self, first, gate):
        self._first = first
        self._gate = gate

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self._gate.passed()
        return {"id": np.int64(self._first + index)}


def make_node(gate=None, weights=(0.5, 0.5), **options):
    gate = gate or Gate()
    # With an id, a shut gate does not block requests for the fingerprint.
    sources = [
        RandomAccessSource(Records(1000 * i, gate), name=f"source-{i}", content_id=f"from {1000 * i} on")
        for i in range(2)
    ]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=weights, **options), sources)


def ids(batch):
    return batch["id"].tolist()


def stream(count, size=4, **options):
    """The first batches of a session without failures."""
    node = make_node(**options)
    return [ids(node.next_batch(size)) for _ in range(count)]


class Wire(InProcessTransport):
    """A server in this process that can be restarted; `lose` loses the reply to the next call of a session."""

    def __init__(self, made):
        self._made = made
        super().__init__(made())
        self._then = None

    @property
    def sessions(self):
        return self._servicer.state._sessions

    def restart(self):
        self._end()
        self._servicer = self._made()

    def lose(self, then):
        """Lose the next reply, and run `then` at that moment."""
        self._then = then

    def another_client(self):
        """Another client, which also continues after a restart of the server."""
        return MixClient([InProcessTransport(self)])

    def handle(self, method, request):
        return self._servicer.handle(method, request)

    def call(self, method, request, timeout_s):
        reply = super().call(method, request, timeout_s)
        if method == methods.CALL_SESSION and self._then is not None:
            then, self._then = self._then, None
            then()
            raise Unavailable("the reply was lost")
        return reply

    def close(self):
        self._end()
        super().close()

    def _end(self):
        if self._servicer is not None:
            self._servicer.close()


@contextmanager
def unreadable(path):
    """A file that cannot be opened for a while, not even by root."""
    away = path.with_name("~away")
    path.rename(away)
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        away.rename(path)


@contextmanager
def missing(path):
    """A file that is missing for a while."""
    away = path.with_name("~away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


def call_raw(client, session, operation, arguments):
    """Skip the client's own checks."""
    session._sequence += 1
    call = CallRequest(session.mixture, session.name, operation, arguments, session._lease, session._sequence)
    return decode_call_reply(client._caller.call(methods.CALL_SESSION, encode_call_request(call)))


def nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


# A call that was done, whose reply was lost, and whose retry was refused, is answered when it is made once more


def test_a_retry_that_the_source_fails_keeps_the_batch(tmp_path):
    gate = Gate()
    wire = Wire(lambda: Services({"train": make_node(gate)}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        wire.lose(gate.break_once)
        with pytest.raises(ServerFault):
            session.next_batch(4)
        found += [ids(session.next_batch(4)) for _ in range(2)]
    assert found == stream(3)


@pytest.mark.parametrize("error", [CorruptCheckpoint, UnknownSession])
def test_a_retry_that_finds_no_journal_for_a_moment_keeps_the_batch(tmp_path, error):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    hidden = unreadable if error is CorruptCheckpoint else missing
    with MixClient([wire]) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        with ExitStack() as trouble:
            journal = hidden(tmp_path / "sessions" / "train" / "run")
            wire.lose(lambda: (wire.restart(), trouble.enter_context(journal)))
            with pytest.raises(error):
                session.next_batch(4)
        found += [ids(session.next_batch(4)) for _ in range(2)]
    assert found == stream(3)


def test_a_batch_that_the_disk_kept_though_it_said_no_is_not_passed_over(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        truncate, is_broken = os.ftruncate, threading.Event()

        def sync(descriptor):
            is_broken.set()
            raise OSError(errno.EIO, "a broken disk")

        def cut(descriptor, length):
            if is_broken.is_set():
                raise OSError(errno.EIO, "a broken disk")
            truncate(descriptor, length)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", sync)
            patch.setattr(os, "ftruncate", cut)
            with pytest.raises(StorageFailed, match="a broken disk"):
                session.next_batch(4)
        found += [ids(session.next_batch(4)) for _ in range(2)]
    assert found == stream(3)


def test_a_process_that_the_disk_did_not_keep_is_counted_once(tmp_path, monkeypatch):
    def sync(descriptor):
        raise OSError(errno.EIO, "a broken disk")

    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", sync)
            with pytest.raises(StorageFailed, match="a broken disk"):
                session.process(0, 4, 7)
        assert session.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
        session.process(0, 4, 7)
        assert session.get_operation_stats() == {"applied_count": 1, "skipped_count": 0}


# Malicious requests


def many_dimensions(count):
    """An array of a few bytes that declares a vast size."""
    value = state_pb2.Value()
    value.array.dtype = "float32"
    value.array.shape.extend([2**62] * count)
    return value


@pytest.mark.alone
def test_an_array_of_many_dimensions_is_refused_at_once():
    with (
        serve({"train": make_node()}, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=20, shared_memory=False) as client,
    ):
        session = client.session("run")
        for dimensions, said in ((60_000, "an array must have at most 32 dimensions"), (10_000, "32 .*, got 10000")):
            request = state_pb2.CallSessionRequest(
                mixture="train", session="run", lease=session._lease, sequence=1, operation="set_state"
            )
            request.arguments.dict.entries.add(name="state").value.CopyFrom(many_dimensions(dimensions))
            began = time.monotonic()
            with pytest.raises(InvalidRequest, match=said) as refused:
                client._caller.call(methods.CALL_SESSION, request.SerializeToString())
            assert time.monotonic() - began < SOON_S
            assert len(str(refused.value)) < 300
        assert client.mixtures() == ("train",)
        with pytest.raises(InvalidRequest, match="at most 32 dimensions, got 33"):
            session.set_statistics({"value": np.zeros((1,) * 33)})
        session.set_statistics({"value": np.zeros((1,) * 32)})
        assert session.get_statistics()["value"].shape == (1,) * 32


@pytest.mark.alone
def test_a_reply_of_many_dimensions_is_refused_at_once():
    reply = state_pb2.CallSessionReply(value=many_dimensions(60_000))
    began = time.monotonic()
    with pytest.raises(CorruptReply, match="an array must have at most 32 dimensions, got 60000") as refused:
        decode_call_reply(reply.SerializeToString())
    assert time.monotonic() - began < SOON_S
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("folder", [True, False])
def test_statistics_are_as_deep_as_a_message_allows(tmp_path, folder):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path if folder else None))
    with MixClient([wire]) as client:
        session = client.session("run")
        session.set_statistics(nested(23))
        with pytest.raises(InvalidRequest, match="at most 24 levels"):
            session.set_statistics(nested(24))
        assert session.get_statistics() == nested(23)
        session.next_batch(4)
        if folder:
            wire.restart()
        assert session.get_statistics() == nested(23)


@pytest.mark.parametrize("folder", [True, False])
def test_an_epoch_that_no_message_can_hold_soon_is_refused(tmp_path, folder):
    with local_client({"train": make_node()}, state_dir=tmp_path if folder else None) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        state = session.get_state()
        for epoch in (2**63 - 1, 2**62 + 1, -1):
            with pytest.raises(InvalidRequest, match="epoch must be in 0"):
                session.set_state(state | {"epoch": epoch})
        found.append(ids(session.next_batch(4)))
        assert found == stream(2)
        session.set_state(state | {"epoch": 2**62})
        iter(session)
        assert (session.epoch, session.get_state()["epoch"]) == (2**62 + 1,) * 2


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("strict", [None, 0, 1, 1.0, "", "False", [], [False], {}, np.zeros(2), np.bool_(False)]),
        ("session", [None, 0, True, 1.5, "", "..", "a/b", [], ["run"], {}, np.zeros(2), "x" * 1000]),
        ("name", [None, 0, True, "", "../a", [], ["a"], {}, np.zeros(2)]),
    ],
)
def test_strange_arguments_of_restore_checkpoint_are_refused(tmp_path, argument, values):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        session.save_checkpoint("a")
        found = [ids(session.next_batch(4))]
        for value in values:
            with pytest.raises(InvalidRequest):
                call_raw(client, session, "restore_checkpoint", {"name": "a", argument: value})
        found.append(ids(session.next_batch(4)))
        assert found == stream(2)
        call_raw(client, session, "restore_checkpoint", {"name": "a"})
        assert ids(session.next_batch(4)) == found[0]


# Processes


FORKING = """
import os, signal, sys, threading, warnings
from mixserve_client import InvalidRequest, MixClient

def refused(call):
    try:
        print("the child got", call(), flush=True)
    except InvalidRequest as error:
        assert "this process was forked" in str(error), error

client = MixClient.connect(sys.argv[1], patience_s=20, shared_memory=False)
session = client.session("run")
print(session.next_batch(4)["id"].tolist(), flush=True)
warnings.simplefilter("ignore")
if sys.argv[2] == "busy":
    session._lock.acquire()  # as a thread does that waits for an answer
child = os.fork()
if child == 0:
    signal.alarm(20)
    for call in (lambda: session.next_batch(4), session.get_state, lambda: next(session), session.reset):
        refused(call)
    if sys.argv[2] == "closing":
        session.close()
        client.close()
    elif sys.argv[2] == "exiting":
        sys.exit(0)
    os._exit(0)
print("the child ended with", os.waitpid(child, 0)[1], flush=True)
if sys.argv[2] == "busy":
    session._lock.release()
print(session.next_batch(4)["id"].tolist(), flush=True)
"""


@pytest.mark.parametrize("child", ["using", "closing", "exiting", "busy"])
def test_a_process_that_was_forked_off_leaves_its_parents_session_alone(child):
    with serve({"train": make_node()}, shared_memory=False) as server:
        command = [sys.executable, "-c", FORKING, server.address, child]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    before, after = map(str, stream(2))
    assert done.stdout.splitlines() == [before, "the child ended with 0", after], done.stderr


def test_a_process_that_was_forked_off_leaves_its_parents_folder_alone(tmp_path):
    program = """
import os, sys, warnings
from mixserve import local_client
from mixserve_client import StorageFailed
from tests.sessions.test_faults import make_node
client = local_client({"train": make_node()}, state_dir=sys.argv[1])
session = client.session("run")
print(session.next_batch(4)["id"].tolist(), flush=True)
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    try:
        client.session("another")
    except StorageFailed:
        print("refused", flush=True)
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
try:
    local_client({"train": make_node()}, state_dir=sys.argv[1])
except OSError:
    print("locked", flush=True)
print(session.next_batch(4)["id"].tolist(), flush=True)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    before, after = map(str, stream(2))
    assert done.stdout.splitlines() == [before, "refused", "locked", after], done.stderr


def test_a_session_cannot_be_pickled():
    with (
        local_client({"train": make_node()}) as client,
        pytest.raises(TypeError, match=r"cannot be pickled.*open it, with take_over=True, or .* restores a checkpoint"),
    ):
        pickle.dumps(client.session("run"))


@pytest.mark.alone
def test_a_server_whose_port_is_taken_leaves_nothing_behind(tmp_path):
    with serve({"train": make_node()}, shared_memory=False) as other:
        before = set(threading.enumerate())
        for _ in range(2):
            with pytest.raises(OSError, match="cannot listen"):
                serve({"train": make_node()}, other.address, state_dir=tmp_path, shared_memory=False)
        left = {thread.name for thread in set(threading.enumerate()) - before if "mixserve" in thread.name}
    assert left == set()
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        assert not client.session("run").resumed


def test_a_mixture_that_is_gone_keeps_no_other_sessions_from_being_held_and_let_go(tmp_path):
    nodes = {"gone": make_node(), "kept": make_node()}
    wire = Wire(lambda: Services(nodes, state_dir=tmp_path, session_ttl_s=0.6))
    with MixClient([wire]) as other:
        with wire.another_client() as client:
            for mixture in ("gone", "kept"):
                client.session("lost", mixture=mixture)
            held = [client.session("run", mixture=mixture) for mixture in ("gone", "kept")]
            del nodes["gone"]
            wire.restart()
            time.sleep(1.5)
            (known,) = (known for known in other.sessions() if known.name == "run")
            assert known.holder.startswith("process")
            with pytest.raises(SessionTaken):
                other.session("run")
        assert held[1].mixture == "kept"
        assert not any(known.holder for known in other.sessions())


# Disks


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_session_that_could_not_be_begun_anew_is_whole(tmp_path, monkeypatch, kind):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session, expected = client.session("run"), stream(8)
        found = [ids(session.next_batch(4)) for _ in range(3)]
        sync, left = os.fsync, [1]

        def fail_once(descriptor):
            if left and stat.S_ISDIR(os.fstat(descriptor).st_mode) == (kind == "folder"):
                left.pop()
                raise OSError(errno.EIO, "a broken disk")
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_once)
            with pytest.raises(StorageFailed, match="a broken disk"):
                client.session("run", fresh=True, take_over=True)
        assert not left
        try:
            found.append(ids(session.next_batch(4)))
        except SessionTaken:
            found = []  # the refused call with fresh=True has restarted the session
        for restarted in (False, True):
            if restarted:
                wire.restart()
            with client.session("run", take_over=True) as again:
                assert again.index == 4 * len(found)
                found.append(ids(again.next_batch(4)))
        assert found == expected[: len(found)]


def test_a_holder_is_not_forgotten_when_its_session_cannot_be_read(tmp_path):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        wire.sessions._started -= 10_000  # a server that has run for long
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        with pytest.raises(InvalidRequest):
            session.set_state({"no": "state"})  # afterwards the session is read from disk again
        with unreadable(tmp_path / "sessions" / "train" / "run"), pytest.raises(CorruptCheckpoint):
            client.view_session("run").get_state()
        with pytest.raises(SessionTaken):
            client.session("run")
        found.append(ids(session.next_batch(4)))
    assert found == stream(2)


def test_a_checkpoint_is_saved_though_older_ones_cannot_be_removed(tmp_path, monkeypatch, caplog):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        session.save_checkpoint("one")
        session.next_batch(4)
        rename = os.rename

        def keep(source, target, **options):
            if Path(target).parent.name == "unfinished":
                raise OSError(errno.EIO, "a broken disk")
            rename(source, target, **options)

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "mixserve"):
            patch.setattr(os, "rename", keep)
            assert session.save_checkpoint("two", keep_last=1).index == 4
        assert "cannot delete old checkpoints of the session 'run'" in caplog.text
        assert "a broken disk" in caplog.text
        assert [saved.name for saved in session.list_checkpoints()] == ["one", "two"]
        session.restore_checkpoint("two")
        assert session.index == 4
        session.save_checkpoint("three", keep_last=1)
        assert [saved.name for saved in session.list_checkpoints()] == ["three"]


def test_a_stray_file_harms_nothing(tmp_path):
    folder = tmp_path / "sessions" / "train"
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path, session_ttl_s=0.2))
    with MixClient([wire]) as client:
        session = client.session("run")
        session.save_checkpoint("a")
        names = [".hidden", "a b", os.fsdecode(b"\xff")]
        strays = [folder / name for name in names]
        strays += [tmp_path / "checkpoints" / "train" / name for name in names]
        for stray in strays:
            try:
                stray.write_bytes(b"")
            except OSError:
                pytest.skip("this file system takes names of UTF-8 only")
            os.utime(stray, (0, 0))
        found = [ids(session.next_batch(4))]
        wire.restart()
        wire.sessions._swept -= 10_000
        wire.sessions.end_silent()
        assert [(known.name, known.damaged) for known in client.sessions()] == [("run", "")]
        with pytest.raises(UnknownSession, match="it has 'run'"):
            client.view_session("none").get_state()
        found.append(ids(session.next_batch(4)))
        assert found == stream(2)
        assert all(stray.exists() for stray in strays)


def test_every_folder_is_made_to_last(tmp_path, monkeypatch):
    top = tmp_path / "some" / "where"
    made, synced, steps = {}, {}, count()
    mkdir, sync = os.mkdir, os.fsync

    def seen_sync(descriptor):
        sync(descriptor)
        synced[os.fstat(descriptor).st_ino] = next(steps)

    def seen_mkdir(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        made[Path(path).stat().st_ino] = next(steps)

    monkeypatch.setattr(os, "mkdir", seen_mkdir)
    monkeypatch.setattr(os, "fsync", seen_sync)
    with local_client({"train": make_node()}, state_dir=top) as client:
        session = client.session("run")
        session.save_checkpoint("a")
        client.session("other").save_checkpoint("a")
    folders = [path for path in tmp_path.rglob("*") if path.is_dir() and path.name != "unfinished"]
    names = {str(path.relative_to(tmp_path)) for path in folders}
    assert names >= {"some", "some/where", "some/where/sessions/train", "some/where/checkpoints/train/other"}
    for folder in folders:
        assert synced.get(folder.parent.stat().st_ino, -1) > made.get(folder.stat().st_ino, -1), folder
