"""Sessions in large numbers: none locks out others, and a call costs the same however many there are."""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import ServerLimits, local_client, serve
from mixserve.access.identity import EVERYBODY, acting_as
from mixserve.servicer import Services
from mixserve.sessions import Sessions, checkpoints, journals, listing, registry
from mixserve.sessions.loaded import LoadedSessions
from mixserve.sessions.silence import Silences
from mixserve_client import MixClient, SessionTaken, UnknownSession
from mixserve_client.errors import Overloaded
from mixserve_client.schema.sessions import HeldSession
from mixserve_client.wire import methods
from mixserve_client.wire.session import encode_held
from tests.sessions.test_faults import DEADLINE_S, SOON_S, Wire, ids, make_node, stream

LEASE = "f" * 32


def make_wire(folder=None, sessions=10_000, **options):
    return Wire(
        lambda: Services({"train": make_node()}, state_dir=folder, limits=ServerLimits(sessions=sessions), **options)
    )


# Room for others


def test_closed_sessions_make_room_the_oldest_first():
    wire = make_wire(sessions=4)
    with MixClient([wire]) as client:
        held = client.session("held")
        for name in "abcd":
            with client.session(name, timeout_s=SOON_S) as session:
                session.next_batch(4)
        assert wire.sessions._loaded.evicted == 1
        with client.session("e", timeout_s=SOON_S):
            assert wire.sessions._loaded.evicted == 2
        assert [known.name for known in client.sessions()] == ["c", "d", "e", "held"]
        assert client.session("d").resumed
        assert ids(held.next_batch(4)) == stream(1)[0]


def test_more_sessions_than_fit_are_refused_with_a_delay(caplog):
    with (
        serve({"train": make_node()}, limits=ServerLimits(sessions=3), session_ttl_s=5, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=0.2, shared_memory=False) as client,
    ):
        held = [client.session(name) for name in "abc"]
        with pytest.raises(
            Overloaded, match=r"clients hold 3 sessions of this server, .* sessions in server\.limits"
        ) as full:
            client.session("d")
        assert 1 <= full.value.retry_after_s <= 5
        assert "as many as server.limits.sessions allows" in caplog.text
        assert [ids(session.next_batch(4)) for session in held] == stream(1) * 3
        held[1].close()
        assert ids(client.session("d").next_batch(4)) == stream(1)[0]


def test_sessions_on_disk_leave_memory_and_come_back(tmp_path):
    wire = make_wire(tmp_path, sessions=3)
    with MixClient([wire]) as client:
        held = [client.session(f"run-{number}", timeout_s=SOON_S) for number in range(8)]
        for turn in range(3):
            for session in held:
                assert ids(session.next_batch(4)) == stream(3)[turn]
        assert len(wire.sessions._loaded.all()) == 3
        assert wire.sessions._loaded.evicted >= 20
        assert all(known.holder for known in client.sessions())
        with MixClient([wire]) as another, pytest.raises(SessionTaken):
            another.session("run-0")


@given(st.lists(st.tuples(st.sampled_from(["add", "hear", "forget", "before"]), st.integers(0, 9)), max_size=60))
def test_silences_are_those_of_a_look_at_each(steps):
    silences, heard, now = Silences[int](), dict[int, float](), 0.0
    for step, which in steps:
        now += 1.0
        if step == "before":
            expected = {item for item, when in heard.items() if when < now - 5}
            found = list(silences.before(now - 5, heard.get))
            assert (set(found), len(found)) == (expected, len(expected))
            for item in found:
                del heard[item]
        elif step == "forget":
            heard.pop(which, None)
            silences.keep(heard.__contains__)
        elif step == "hear" and which in heard:
            heard[which] = now
        elif which not in heard:
            heard[which] = now
            silences.add(now, which)


def test_opening_and_ending_look_at_no_other_session(tmp_path, monkeypatch):
    """They once looked at each session, and at each journal: ten thousand took minutes to open."""
    monkeypatch.setattr(LoadedSessions, "all", lambda _: pytest.fail("all sessions were looked at"))
    looks = count_names(monkeypatch)
    for folder in (None, tmp_path):
        wire = make_wire(folder)
        with MixClient([wire]) as client:
            held = [client.session(f"run-{number}") for number in range(60)]
            asked = []
            monkeypatch.setattr(
                "mixserve.sessions.loaded._renewed", lambda one, asked=asked: (asked.append(one), 1e30)[1]
            )
            for session in held:
                session.set_statistics({"mean": np.zeros(20_000)})
                wire.sessions.end_silent()
                session.close()
            assert not asked
    assert len(looks) < 10


def count_names(monkeypatch):
    """The names of journals that were looked at."""
    looks, is_name = [], journals.is_name
    monkeypatch.setattr(journals, "is_name", lambda name: (looks.append(name), is_name(name))[1])
    return looks


def test_bytes_are_summed_as_they_change(tmp_path):
    for folder in (None, tmp_path):
        wire = make_wire(folder, sessions=30 if folder is None else 3)
        with MixClient([wire]) as client:
            for turn, name in enumerate("abcabdefa"):
                session = client.session(name, take_over=True)
                session.set_statistics({"mean": np.zeros(1000 * (turn + 1))})
                session.next_batch(4)
                if turn % 3 == 1:
                    session.reset_statistics()
                if turn % 4 == 3:
                    session.close()
                loaded = wire.sessions._loaded
                assert loaded._bytes == sum(session.kept_bytes for _, session in loaded.all())


# Renewals and releases


@pytest.mark.parametrize("method", [methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS])
def test_a_wrong_lease_loads_and_lists_nothing(tmp_path, monkeypatch, method):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for number in range(5):
            client.session(f"run-{number}").close()
    reads, read = [], listing.read_record
    monkeypatch.setattr(listing, "read_record", lambda journal: (reads.append(journal.path.name), read(journal))[1])
    monkeypatch.setattr(Sessions, "_load", lambda *_: pytest.fail("a session was loaded"))
    looks = count_names(monkeypatch)
    wire = make_wire(tmp_path)
    held = [HeldSession("train", f"run-{number}", LEASE) for number in range(1000)]
    for _ in range(3):
        wire.handle(method, encode_held(held))
    assert sorted(reads) == [f"run-{number}" for number in range(5)]  # once, however often
    assert not looks
    wire.close()


def test_a_session_that_is_renewed_after_a_restart_is_not_loaded_and_stays_taken(tmp_path):
    wire = make_wire(tmp_path, session_ttl_s=0.6)
    with MixClient([wire]) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        wire.restart()
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            with wire.another_client() as another, pytest.raises(SessionTaken):
                another.session("run")
            assert [known.holder for known in client.sessions()] == [session_holder(client)]
            time.sleep(0.05)
        found += [ids(session.next_batch(4)) for _ in range(2)]
        assert found == stream(3)


def session_holder(client):
    return next(known.holder for known in client.sessions() if known.holder)


def test_a_journal_is_in_use_if_its_session_is_renewed_while_it_is_only_on_disk(tmp_path):
    wire = make_wire(tmp_path)
    with MixClient([wire]) as client:
        held = client.session("run")._held
        wire.restart()
        path = tmp_path / "sessions" / "train" / "run"
        os.utime(path, (0, 0))
        wire.handle(methods.RENEW_SESSIONS, encode_held([held]))
        assert time.time() - path.stat().st_mtime < DEADLINE_S


@pytest.mark.parametrize("act", ["renew", "release"])
def test_what_a_caller_that_is_gone_has_asked_for_is_not_done(tmp_path, act):
    wire = make_wire(tmp_path)
    with MixClient([wire]) as client:
        held = [client.session(f"run-{number}")._held for number in range(20)]
        wire.restart()
        left = itertools.count()
        with acting_as(EVERYBODY, is_wanted=lambda: next(left) < 7):
            getattr(wire.sessions, act)(held)
        assert next(left) == 8
        if act == "release":
            assert [known.name for known in client.sessions() if known.holder] == sorted(one.name for one in held[7:])


# Names and lists


def test_an_unknown_session_is_told_of_some_others(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        client.session("run").close()
        for number in range(1000):
            (tmp_path / "sessions" / "train" / f"another-{number}").write_bytes(b"")
        looks = count_names(monkeypatch)
        with pytest.raises(UnknownSession, match="the mixture 'train' has no session 'none'; it has '"):
            client.view_session("none").get_state()
        assert 0 < len(looks) <= 100


def test_room_for_journals_is_counted_once(tmp_path, monkeypatch):
    looks = count_names(monkeypatch)
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for number in range(10):
            client.session(f"run-{number}").close()
        assert not looks  # there were none when they were counted
        monkeypatch.setattr(journals, "MOST_JOURNALS", 10)
        monkeypatch.setattr(journals, "_COUNT_EVERY_S", 0.0)
        (tmp_path / "sessions" / "train" / "run-3").unlink()  # by hand
        assert client.session("another").index == 0


def test_a_list_that_takes_long_is_made_once_for_many(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        client.session("run").close()
        made, describe = [], Sessions._describe_all
        monkeypatch.setattr(Sessions, "_describe_all", lambda self, name: (made.append(name), describe(self, name))[1])
        for _ in range(5):
            client.sessions()
        assert len(made) == 5
        monkeypatch.setattr(registry, "_SLOW_LIST_S", -1.0)  # as if it had taken an hour
        monkeypatch.setattr(registry, "_LISTED_FOR", 1e9)
        monkeypatch.setattr(registry, "_OLDEST_LIST_S", 3600.0)
        for _ in range(5):
            assert [known.name for known in client.sessions()] == ["run"]
        assert len(made) == 6


def test_lists_of_checkpoints_read_what_has_changed_alone(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        for name in "abc":
            session.save_checkpoint(name)
        reads, read = [], checkpoints.read_manifest
        monkeypatch.setattr(checkpoints, "read_manifest", lambda path: (reads.append(path.name), read(path))[1])
        for _ in range(3):
            assert [saved.name for saved in session.list_checkpoints()] == ["a", "b", "c"]
            assert client.sessions()[0].checkpoints == ("a", "b", "c")
        assert len(reads) == 3
        session.save_checkpoint("b")
        session.delete_checkpoint("a")
        reads.clear()
        assert [saved.name for saved in session.list_checkpoints()] == ["c", "b"]
        assert client.sessions()[0].checkpoints == ("c", "b")
        assert reads == ["b.0000000004"]
        (manifest,) = tmp_path.glob("checkpoints/train/run/c.*/manifest.json")
        manifest.write_bytes(manifest.read_bytes().replace(b'"index": 0', b'"index": 1'))
        damaged, _ = session.list_checkpoints()
        assert "has changed since it was written" in damaged.damaged


# Old journals


def test_old_journals_are_deleted_without_holding_up_others(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for number in range(4):
            client.session(f"old-{number}").close()
    folder = tmp_path / "sessions" / "train"
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    wire = make_wire(tmp_path)
    sync, reached, opened = os.fsync, threading.Event(), threading.Event()

    def slow(descriptor):
        if threading.current_thread().name.startswith("deleting"):
            reached.set()
            assert opened.wait(DEADLINE_S)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    monkeypatch.setattr(registry, "_SWEEP_S", 0.0)
    with MixClient([wire]) as client, ThreadPoolExecutor(1, "deleting") as threads:
        wire.sessions._swept -= 10_000
        deleting = threads.submit(wire.sessions.end_silent)
        assert reached.wait(DEADLINE_S)
        session = client.session("new")
        assert ids(session.next_batch(4)) == stream(1)[0]
        assert not deleting.done()
        opened.set()
        deleting.result(DEADLINE_S)
        left = {path.name for path in folder.iterdir()}
        assert len(left) == 4  # one in a turn, however long the disk takes
        for _ in range(4):
            threads.submit(wire.sessions.end_silent).result(DEADLINE_S)
        assert {path.name for path in folder.iterdir()} == {"new"}
