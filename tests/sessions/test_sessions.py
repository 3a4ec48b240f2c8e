"""Sessions over every route: who holds them, what survives, and what is refused."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve.disk import sync
from mixserve.serving import session_threads
from mixserve.sessions import Sessions, StateFolder, storage
from mixserve_client import (
    CorruptCheckpoint,
    FingerprintMismatch,
    InvalidRequest,
    MixClient,
    SessionTaken,
    StorageFailed,
    UnknownCheckpoint,
    UnknownMixture,
    UnknownSession,
)
from mixserve_client.errors import Unavailable
from mixserve_client.schema.sessions import CallRequest, OpenRequest
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_call_reply, encode_call_request, encode_open_request
from mixserve_client.wire.value import encode_value
from tests.conftest import arrays, assert_batches_equal

DEADLINE_S = 60
BAD_NAMES = (
    "",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\0b",
    "x" * 129,
    "x" * 300,
    "имя",
    "a b",
    "-a",
    ".hidden",
    None,
    7,
)


def make_node(weights=(0.5, 0.2, 0.3), seed=0, **options):
    sources = [ArraySource(arrays(100, seed + i), name=f"source-{i}") for i in range(3)]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=3, weights=weights, **options), sources)


@pytest.fixture(params=["in-process", "grpc"])
def connect(request, tmp_path):
    """Makes clients of servers with a state folder, one server at a time: `connect(node)` ends the previous one."""
    running = []

    def end():
        while running:
            running.pop()()

    def made(node=None, state_dir=tmp_path / "state", **options):
        end()
        nodes = {"train": node or make_node()}
        if request.param == "in-process":
            client = local_client(nodes, state_dir=state_dir, **options)
            running.extend([client.close, client._leases._held.clear])
            return client
        server = serve(nodes, state_dir=state_dir, **options)
        client = MixClient.connect(server.address, patience_s=20)
        running.extend([server.stop, client.close, client._leases._held.clear])  # as after a kill: nothing is released
        return client

    yield made
    end()


def batches(session, count=3, size=4):
    return [session.next_batch(size) for _ in range(count)]


def assert_all_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert_batches_equal(a, b)


def twin(node=None):
    """A node for the same calls as a session."""
    copied = (node or make_node()).clone()
    iter(copied)
    return copied


def until(reached):
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_sessions_never_see_each_other(connect):
    client = connect()
    one, two = client.session("one"), client.session("two")
    for session in (one, two):
        iter(session)
    ours = twin()
    assert_all_equal(batches(one), batches(ours))
    two.set_statistics({"n": 1})
    two.process(0, 4, 1)
    two.reset()
    assert (one.index, one.epoch, two.index, two.epoch) == (12, 1, 0, 0)
    assert one.get_statistics() is None
    assert one.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    assert_all_equal(batches(one), batches(ours))


def test_a_session_goes_on_where_it_was_and_fresh_begins_anew(connect):
    client, ours = connect(), twin()
    with client.session("run") as session:
        assert not session.resumed
        iter(session)
        assert_all_equal(batches(session), batches(ours))
    with client.session("run") as session:
        assert session.resumed
        assert (session.index, session.epoch) == (12, 1)
        assert_all_equal(batches(session), batches(ours))
    with client.session("run", fresh=True) as session:
        assert not session.resumed
        assert (session.index, session.epoch) == (0, 0)
        iter(session)
        assert_all_equal(batches(session), batches(twin()))


def test_a_session_outlives_its_server(connect):
    session, ours = connect().session("run"), twin()
    iter(session)
    assert_all_equal(batches(session), batches(ours))
    session.set_statistics({"mean": np.arange(3.0)})
    session = connect().session("run", take_over=True)
    assert session.resumed
    assert_all_equal(batches(session), batches(ours))
    np.testing.assert_array_equal(session.get_statistics()["mean"], np.arange(3.0))


def test_without_a_folder_sessions_end_with_their_server(connect):
    client = connect(state_dir=None)
    session = client.session("run")
    iter(session)
    ours = twin()
    assert_all_equal(batches(session), batches(ours))
    session.close()
    session = client.session("run")
    assert_all_equal(batches(session), batches(ours))
    for call in (
        lambda: session.save_checkpoint("a"),
        session.list_checkpoints,
        lambda: session.restore_checkpoint("a"),
    ):
        with pytest.raises(StorageFailed, match="--state-dir"):
            call()
    assert not connect(state_dir=None).session("run").resumed


def test_a_live_session_is_refused_to_others_unless_they_take_it_over(connect):
    client = connect()
    first, ours = client.session("run"), twin()
    iter(first)
    assert_all_equal(batches(first), batches(ours))
    for fresh in (False, True):
        with pytest.raises(SessionTaken, match=r"held by process \d+ on .*, last seen \d+ s ago; .*take_over=True"):
            client.session("run", fresh=fresh)
    second = client.session("run", take_over=True)
    for call in (
        lambda: first.next_batch(1),
        lambda: next(first),
        first.get_state,
        first.reset,
        first.list_checkpoints,
    ):
        with pytest.raises(SessionTaken, match="no longer holds it"):
            call()
    assert_all_equal(batches(second), batches(ours))
    first.close()  # does not release what it does not hold
    assert_all_equal(batches(second), batches(ours))


def test_after_a_restart_a_lease_begins_again(connect):
    connect().session("run")
    client = connect()
    with pytest.raises(SessionTaken):
        client.session("run")
    client.session("run", take_over=True)


def test_leases_end_when_nobody_renews_them_and_late_holders_go_on_if_nobody_came(connect, monkeypatch):
    monkeypatch.setattr(session_threads, "_LOOK_EVERY_S", 0.05)
    client = connect(session_ttl_s=0.3)
    silent, ours = client.session("run"), twin()
    iter(silent)
    client._leases.remove(silent._held)
    until(lambda: client.sessions()[0].holder == "")
    assert_all_equal(batches(silent), batches(ours))
    until(lambda: client.sessions()[0].holder == "")
    other = client.session("run")
    with pytest.raises(SessionTaken):
        silent.next_batch(1)
    time.sleep(1.0)  # three times the lease: the client renews it
    with pytest.raises(SessionTaken):
        client.session("run")
    assert_all_equal(batches(other), batches(ours))


def test_a_session_that_nobody_refers_to_any_more_ends_with_its_lease(connect):
    client = connect(session_ttl_s=0.3)
    client.session("run")
    until(lambda: client.sessions()[0].holder == "")
    assert client.session("run").resumed


def test_a_closed_client_lets_go_of_its_sessions(connect, tmp_path):
    client = connect()
    session = client.session("run")
    with pytest.raises(InvalidRequest, match="closed"):
        session.close()
        session.next_batch(1)
    held = client.session("run")
    client.close()
    assert held.resumed
    assert connect().session("run").resumed


def test_a_call_that_is_sent_again_is_answered_again(connect):
    client = connect()
    session, ours = client.session("run"), twin()
    iter(session)
    requests = {
        "next_batch": {"size": 5},
        "next_record": {},
        "process": {"start": 0, "size": 3, "key": np.array([0, 1], np.uint32)},
    }
    for restarted in (False, True):
        for operation, arguments in requests.items():
            session._sequence += 1
            call = CallRequest("train", "run", operation, arguments, session._lease, session._sequence)
            first = client._caller.call(methods.CALL_SESSION, encode_call_request(call))
            if restarted:
                client = connect()
            again = client._caller.call(methods.CALL_SESSION, encode_call_request(call))
            assert encode_value(decode_call_reply(again).value) == encode_value(decode_call_reply(first).value)
            assert decode_call_reply(again).index == decode_call_reply(first).index
    view = client.view_session("run")
    assert view.get_operation_stats() == {"applied_count": 2, "skipped_count": 0}
    assert view.get_state()["index"] == 12
    for _ in range(2):
        ours.next_batch(5)
        next(ours)
    assert view.get_state() == ours.get_state() | {"_applied_count": 2}


def test_a_refused_process_is_counted_once_however_often_it_is_sent(connect):
    client = connect()
    session = client.session("run")
    call = CallRequest("train", "run", "process", {"start": 0, "size": 0, "key": None}, session._lease, 1)
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="size must be in"):
                client._caller.call(methods.CALL_SESSION, encode_call_request(call))
        client = connect()
    assert client.view_session("run").get_operation_stats() == {"applied_count": 0, "skipped_count": 1}


def test_numbers_that_were_used_for_something_else_are_refused(connect):
    client = connect()
    session = client.session("run")
    session._sequence = 6
    iter(session)
    for operation, sequence in (("start_epoch", 6), ("reset", 7), ("next_batch", 7)):
        call = CallRequest(
            "train", "run", operation, {"size": 3} if "batch" in operation else {}, session._lease, sequence
        )
        with pytest.raises(InvalidRequest, match="sequence must be larger than 7, that of the last call"):
            client._caller.call(methods.CALL_SESSION, encode_call_request(call))
    call = CallRequest("train", "run", "reset", {}, session._lease, 0)
    with pytest.raises(InvalidRequest, match="needs the holder's lease and a sequence"):
        client._caller.call(methods.CALL_SESSION, encode_call_request(call))


def test_an_answer_that_was_lost_is_asked_for_again(connect, monkeypatch):
    """The reply is lost after the server's work: the client retries, and no record is read twice or skipped."""
    client = connect()
    session, ours = client.session("run"), twin()
    iter(session)
    call, lost = client._caller.call, iter([True, False, True, True, False])

    def losing(method, request, *args):
        reply = call(method, request, *args)
        if next(lost):
            raise Unavailable("the reply was lost")
        return reply

    monkeypatch.setattr(client._caller, "call", losing)
    for size in (5, 3):
        while True:
            try:
                assert_batches_equal(session.next_batch(size), ours.next_batch(size))
                break
            except Unavailable:
                pass
    assert session.index == 8


def test_checkpoints_restore_into_the_session_into_others_and_after_a_restart(connect):
    client, ours = connect(), twin()
    session = client.session("run")
    iter(session)
    batches(session)
    batches(ours)
    saved = session.save_checkpoint("step-3")
    assert (saved.name, saved.index, saved.epoch) == ("step-3", 12, 1)
    assert saved.fingerprint == client.mixture().fingerprint
    assert abs(saved.saved_at - time.time()) < DEADLINE_S
    following = batches(ours)
    assert_all_equal(batches(session), following)
    session.restore_checkpoint("step-3")
    assert session.index == 12
    assert_all_equal(batches(session), following)
    other = client.session("other")
    other.restore_checkpoint("step-3", session="run")
    assert_all_equal(batches(other), following)
    client = connect()
    late = client.session("late")
    late.restore_checkpoint("step-3", session="run")
    assert_all_equal(batches(late), following)
    assert client.view_session("run").list_checkpoints() == (saved,)
    assert client.view_session("run").delete_checkpoint("step-3") == saved
    with pytest.raises(UnknownCheckpoint, match="it has none"):
        late.restore_checkpoint("step-3", session="run")


def test_another_mixture_is_refused_unless_asked_for(connect):
    session = connect().session("run")
    iter(session)
    batches(session)
    session.save_checkpoint("a")
    state = session.get_state()
    changed = make_node((0.1, 0.8, 0.1))
    client = connect(changed)
    with pytest.raises(FingerprintMismatch, match=r"run.*fresh=True to start it over, or strict=False"):
        client.session("run", take_over=True)
    with pytest.raises(SessionTaken):
        client.session("run", strict=False)  # its holder may be alive
    other = client.session("other")
    with pytest.raises(FingerprintMismatch, match="strict=False"):
        other.restore_checkpoint("a", session="run")
    with pytest.raises(InvalidRequest, match="order"):
        other.set_state(state)
    assert (other.index, other.epoch) == (0, 0)
    other.restore_checkpoint("a", session="run", strict=False)
    assert (other.index, other.epoch) == (12, 1)
    ours = twin(changed)
    batches(ours)
    following = batches(ours)
    assert_all_equal(batches(other), following)
    taken = client.session("run", take_over=True, strict=False)
    assert (taken.index, taken.epoch, taken.resumed) == (12, 1, True)
    assert_all_equal(batches(taken), following)
    assert connect(changed).session("run", take_over=True).index == 24


def test_the_holder_of_a_session_whose_mixture_changed_is_told(tmp_path):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        client._leases.remove(session._held)
        lease = session._lease
    folder = StateFolder(tmp_path)
    sessions = Sessions({"train": make_node(seed=5)}, folder)
    with pytest.raises(FingerprintMismatch):
        sessions.call(CallRequest("train", "run", "next_batch", {"size": 1}, lease, 1))
    sessions.close()


def test_what_is_unknown_is_said_with_what_is_known(connect):
    client = connect()
    client.session("one")
    with client.session("two") as session:
        with pytest.raises(UnknownCheckpoint, match="has no checkpoint 'x'; it has none"):
            session.restore_checkpoint("x")
        session.save_checkpoint("a")
        with pytest.raises(UnknownCheckpoint, match="has no checkpoint 'x'; it has 'a'"):
            session.restore_checkpoint("x")
        with pytest.raises(UnknownCheckpoint, match="session 'never'"):
            session.restore_checkpoint("x", session="never")
    with pytest.raises(UnknownSession, match="has no session 'three'; it has 'one', 'two'"):
        client.view_session("three").get_state()
    with pytest.raises(UnknownMixture, match="must be one of 'train'"):
        client.session("one", mixture="other")
    with pytest.raises(UnknownMixture, match="must be one of 'train'"):
        client.sessions(mixture="other")


def test_names_with_tricks_are_refused(connect, tmp_path):
    client = connect()
    session = client.session("run")
    for name in BAD_NAMES:
        assert_refused(client, session, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


def assert_refused(client, session, name):
    for call in (
        lambda: client.session(name),
        lambda: client.view_session(name),
        lambda: session.save_checkpoint(name),
        lambda: session.restore_checkpoint(name),
        lambda: session.delete_checkpoint(name),
        lambda: session.restore_checkpoint("a", session="" if name is None else name),
    ):
        with pytest.raises(InvalidRequest, match=r"the name of a (session|checkpoint) must be 1 to 128"):
            call()
    for operation in ("save_checkpoint", "restore_checkpoint", "delete_checkpoint"):  # skip the client's own checks
        call = CallRequest("train", "run", operation, {"name": name}, session._lease, session._sequence + 1)
        with pytest.raises(InvalidRequest, match="the name of a checkpoint must be"):
            client._caller.call(methods.CALL_SESSION, encode_call_request(call))


BAD_CALLS = [
        ("nothing", {}, "operation must be one of start_epoch"),
        ("next_batch", {}, "argument size is required"),
        ("next_batch", {"size": 0}, "size must be in 1"),
        ("next_batch", {"size": 1 << 40}, "size must be in 1"),
        ("next_batch", {"size": "7"}, "size must be an integer"),
        ("set_state", {}, "argument state is required"),
        ("set_state", {"state": 7}, "not a state of this mixture's node"),
        ("set_state", {"state": {"index": 1}}, "not a state of this mixture's node"),
        ("set_statistics", {"statistics": [1]}, "statistics must be a dict, got list"),
        ("compute_statistics", {"start": 0, "size": 2, "key": None}, "key is required|key must be"),
        ("compute_statistics", {"start": -1, "size": 2, "key": np.zeros(2, np.uint32)}, "start must be at least 0"),
        ("process", {"start": 0, "size": 2, "key": np.zeros(3, np.uint32)}, "key must be"),
        ("process", {}, "start must be an integer"),
        ("save_checkpoint", {"name": "a", "keep_last": 0}, "keep_last must be an integer of at least 1"),
        ("save_checkpoint", {"name": "a", "keep_last": True}, "keep_last must be an integer of at least 1"),
    ]  # fmt: skip


def test_bad_arguments_are_refused_and_nothing_moves(connect):
    client = connect()
    session, ours = client.session("run"), twin()
    iter(session)
    for operation, arguments, said in BAD_CALLS:
        session._sequence += 1
        call = CallRequest("train", "run", operation, arguments, session._lease, session._sequence)
        with pytest.raises(InvalidRequest, match=said):
            client._caller.call(methods.CALL_SESSION, encode_call_request(call))
        assert_all_equal(batches(session, 1), batches(ours, 1))


@pytest.mark.parametrize(
    "method", [methods.OPEN_SESSION, methods.CALL_SESSION, methods.RENEW_SESSIONS, methods.LIST_SESSIONS]
)
def test_bytes_that_are_no_request_are_refused(connect, method):
    client = connect()
    for data in (b"\xff", b"\x0a\xff", bytes(100)):
        with pytest.raises(InvalidRequest, match="must be a mixserve"):
            client._caller.call(method, data)
    assert client.sessions() == ()


def test_a_lease_must_be_one(connect):
    client = connect()
    for lease in ("", "abc", "g" * 32, "0" * 33):
        request = encode_open_request(OpenRequest("train", "run", lease))
        with pytest.raises(InvalidRequest, match="lease must be 32 hexadecimal digits"):
            client._caller.call(methods.OPEN_SESSION, request)


def test_values_that_no_message_can_hold_are_refused(connect):
    session = connect().session("run")
    deep: dict = {}
    for _ in range(40):
        deep = {"a": deep}
    for value, said in (
        (object(), "is not an array"),
        ({1.5: 2}, "keys must be strings or integers"),
        (1 << 70, "integer of 64 bits"),
        (deep, "at most 24 levels"),
        (np.array(["text"]), "dtype must be one of"),
        (np.zeros(20 << 20, np.uint8), "at most 16777216 bytes"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            session.set_statistics({"value": value})
    assert session.get_statistics() is None
    session.set_statistics({"value": np.zeros(15 << 20, np.uint8)})
    assert session.get_statistics()["value"].nbytes == 15 << 20


@pytest.mark.parametrize("folder", [True, False])
def test_statistics_that_no_message_can_hold_are_refused_and_not_kept(tmp_path, folder):
    state_dir = tmp_path if folder else None
    sources = [ArraySource({"tokens": np.arange(40, dtype=np.int32).reshape(10, 4)})]

    def client_of(**options):
        node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), **options), sources)
        return local_client({"train": node}, state_dir=state_dir)

    found = {"mean": 1.0}
    with client_of(batch_stats_fn=lambda batch: dict(found)) as client, client.session("run") as session:
        assert session.compute_statistics(0, 4, 7) == {"mean": 1.0}
        found["mean"] = object()
        with pytest.raises(InvalidRequest, match="/mean is object"):
            session.compute_statistics(0, 4, 7)
        assert session.get_statistics() == {"mean": 1.0}
        assert session.get_state()["statistics"]["values"] == {"mean": 1.0}
    with (
        client_of(precomputed_stats={"mean": object()}) as client,
        client.session("run") as session,
        pytest.raises(InvalidRequest, match="/mean is object"),
    ):
        session.get_statistics()


def test_a_client_of_several_servers_has_no_sessions():
    with MixClient.connect(["127.0.0.1:1", "127.0.0.1:2"]) as client:
        for call in (lambda: client.session("a"), lambda: client.view_session("a"), client.sessions):
            with pytest.raises(InvalidRequest, match="a session lives on one server, and this client has 2"):
                call()


def test_a_damaged_journal_is_named_and_fresh_begins_anew(connect, tmp_path):
    client = connect()
    with client.session("run") as session:
        iter(session)
        session.save_checkpoint("a")
    journal = tmp_path / "state" / "sessions" / "train" / "run"
    data = bytearray(journal.read_bytes())
    data[len(data) // 2] ^= 1
    journal.write_bytes(data)
    for call in (lambda: client.session("run"), lambda: client.view_session("run").get_state()):
        with pytest.raises(CorruptCheckpoint, match=str(journal)):
            call()
    (described,) = client.sessions()
    assert str(journal) in described.damaged
    assert described.checkpoints == ("a",)
    session = client.session("run", fresh=True)
    session.restore_checkpoint("a")
    assert (session.index, session.epoch) == (0, 1)


@pytest.mark.parametrize("how", ["disk", "limit"])
def test_a_full_disk_fails_the_call_and_loses_nothing(tmp_path, how):
    program = [sys.executable, "-m", "tests.sessions.full_disk", str(tmp_path), how]
    if how == "disk":
        small = [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs -o size=400k none "$0" && exec "$@"',
        ]
        if subprocess.run([*small, str(tmp_path), "true"], check=False).returncode:
            pytest.skip("no small file system can be mounted here")
        program = [*small, str(tmp_path), *program]
    done = subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout == "nothing was lost\n", done.stderr


def test_old_journals_are_thrown_away_and_checkpoints_stay(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for name in ("old", "young"):
            with client.session(name) as session:
                session.save_checkpoint("a")
    days = 24 * 3600
    for name, age in (("old", 7.1 * days), ("young", 6.9 * days)):
        os.utime(tmp_path / "sessions" / "train" / name, (time.time() - age,) * 2)
    folder = StateFolder(tmp_path)
    sessions = Sessions({"train": make_node()}, folder, ttl_s=0.5)
    sessions.end_silent()
    assert len(list((tmp_path / "sessions" / "train").iterdir())) == 2  # their holders may still return

    def left():
        sessions.end_silent()
        return [path.name for path in (tmp_path / "sessions" / "train").iterdir()]

    until(lambda: left() == ["young"])
    assert [(known.name, known.checkpoints) for known in sessions.describe()] == [("old", ("a",)), ("young", ("a",))]
    sessions.close()


def test_sessions_of_two_mixtures_may_have_one_name(tmp_path):
    nodes = {"train": make_node(), "eval": make_node(seed=3)}
    with local_client(nodes, state_dir=tmp_path) as client:
        with pytest.raises(InvalidRequest, match="mixture is required"):
            client.session("run")
        train, other = client.session("run", mixture="train"), client.session("run", mixture="eval")
        iter(train), iter(other)
        assert_all_equal(batches(train), batches(twin(nodes["train"])))
        assert_all_equal(batches(other), batches(twin(nodes["eval"])))
        assert [(known.mixture, known.name, known.index) for known in client.sessions()] == [
            ("eval", "run", 12),
            ("train", "run", 12),
        ]
        assert [known.mixture for known in client.sessions(mixture="eval")] == ["eval"]


def test_threads_that_share_a_session_take_turns(connect):
    session, ours = connect().session("run"), make_node().clone()
    iter(session)
    iter(ours)
    found, lock = [], threading.Lock()

    def take():
        while True:
            try:
                record = next(session)
            except StopIteration:
                return
            with lock:
                found.append(record["id"].item())

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    expected = []
    while True:
        try:
            expected.append(next(ours)["id"].item())
        except StopIteration:
            break
    assert sorted(found) == sorted(expected)


def test_syncing_a_folder_needs_one(tmp_path):
    with pytest.raises(StorageFailed, match="No such file"), storage.storing("a thing"):
        sync(tmp_path / "none")


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
def test_a_lease_lasts_a_positive_number_of_seconds(ttl_s):
    with pytest.raises(ValueError, match=f"session_ttl_s must be a positive, finite number of seconds, got {ttl_s}"):
        local_client({"train": make_node()}, session_ttl_s=ttl_s)


def test_a_lease_may_last_longer_than_a_thread_can_wait(connect):
    client = connect(session_ttl_s=1e12)
    session = client.session("run")
    client._leases._changed.put(None)
    iter(session)
    thread = client._leases._thread
    assert thread is not None
    assert thread.is_alive()
    client.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with local_client({"train": make_node()}, state_dir="state") as client:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        client.session("run").save_checkpoint("a")
    assert (tmp_path / "state" / "checkpoints" / "train" / "run").is_dir()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_what_is_left_of_a_session_is_said(tmp_path):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        with client.session("run") as session:
            session.save_checkpoint("a")
        (tmp_path / "sessions" / "train" / "run").unlink()
        (known,) = client.sessions()
        assert known.saved_only
        client.view_session("run").delete_checkpoint("a")
        assert client.sessions() == ()


def test_an_index_behind_the_new_mixtures_end_goes_on_at_its_end(tmp_path):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        iter(session)
        assert len(session.next_batch(150)["id"]) == 150
        session.save_checkpoint("a")
    shorter = make_node((0.98, 0.01, 0.01))
    ours = twin(shorter)
    end = len(ours.next_batch(300)["id"])
    assert end < 150
    with local_client({"train": shorter}, state_dir=tmp_path) as client:
        other = client.session("other")
        other.restore_checkpoint("a", session="run", strict=False)
        for session in (other, client.session("run", strict=False, take_over=True)):
            assert (session.index, session.epoch) == (end, 1)
            with pytest.raises(StopIteration):
                session.next_batch(1)
            iter(session)
            assert_batches_equal(session.next_batch(5), twin(shorter).next_batch(5))


def test_a_process_that_stops_nothing_ends_all_the_same():
    program = (
        "from mixserve import serve\nfrom mixserve_client import MixClient\n"
        "from tests.sessions.test_sessions import make_node\n"
        "server = serve({'train': make_node()}); client = MixClient.connect(server.address)\n"
        "session = client.session('run'); iter(session); print(len(session.next_batch(4)['id']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert done.stdout == "4\n"
    assert "Traceback" not in done.stderr
