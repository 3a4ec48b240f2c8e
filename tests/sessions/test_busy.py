"""Sessions whose sources and disks are slow: they block no other session, and end with their server."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mixserve import local_client, serve
from mixserve.servicer import Services
from mixserve_client import FingerprintMismatch, MixClient, SessionTaken, StorageFailed
from mixserve_client.errors import DeadlineExceeded, MixserveError
from mixserve_client.schema.sessions import CallRequest, HeldSession, OpenRequest
from mixserve_client.sessions import leases as client_leases
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_call_reply, encode_call_request, encode_held, encode_open_request
from tests.sessions.test_faults import DEADLINE_S, SOON_S, Gate, Wire, ids, make_node, stream

DAY_S = 24 * 3600


@pytest.fixture
def background():
    with ThreadPoolExecutor(64) as threads:
        yield threads


@pytest.fixture
def gate(background):
    made = Gate()
    yield made
    made.open()  # before waiting for the threads


def connected(server, **options):
    return MixClient.connect(server.address, patience_s=20, shared_memory=False, **options)


# The end of a server


def test_a_server_that_was_stopped_writes_no_more(tmp_path, gate, background):
    server = serve({"train": make_node(gate)}, state_dir=tmp_path, shared_memory=False)
    with connected(server) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        gate.shut()
        late = background.submit(session.next_batch, 4)
        assert gate.reached.wait(DEADLINE_S)
        assert not server.stop(grace_s=0)
        with serve({"train": make_node()}, server.address, state_dir=tmp_path, shared_memory=False):
            found.append(ids(late.result(DEADLINE_S)))
            found += [ids(session.next_batch(4)) for _ in range(2)]
            gate.open()
            assert server._answers.calls.wait_for_none(DEADLINE_S)
            found.append(ids(session.next_batch(4)))
            client.close()
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        assert session.index == 20
        found.append(ids(session.next_batch(4)))
    assert found == stream(6)


def test_a_local_client_that_was_closed_writes_no_more(tmp_path, gate, background, monkeypatch):
    monkeypatch.setattr(client_leases, "_RELEASE_S", 0.1)
    client = local_client({"train": make_node(gate)}, state_dir=tmp_path)
    session = client.session("run")
    found = [ids(session.next_batch(4))]
    gate.shut()
    late = background.submit(session.next_batch, 4)
    assert gate.reached.wait(DEADLINE_S)
    client.close()
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run", take_over=True)
        found += [ids(session.next_batch(4)) for _ in range(2)]
        gate.open()
        with pytest.raises(StorageFailed, match="this server has stopped"):
            late.result(DEADLINE_S)
        found.append(ids(session.next_batch(4)))
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        assert session.index == 16
        found.append(ids(session.next_batch(4)))
    assert found == stream(5)


# Busy sessions


def test_a_retry_that_finds_its_session_busy_keeps_the_batch(tmp_path, gate, background):
    wire = Wire(lambda: Services({"train": make_node(gate)}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session = client.session("run", timeout_s=0.8)
        found = [ids(session.next_batch(4))]
        call = CallRequest("train", "run", "next_batch", {"size": 4}, session._lease, 2)
        sent_twice = []

        def hold_up():
            gate.shut()
            sent_twice.append(background.submit(wire.call, methods.CALL_SESSION, encode_call_request(call), None))
            assert gate.reached.wait(DEADLINE_S)

        wire.lose(hold_up)
        with pytest.raises(DeadlineExceeded):
            session.next_batch(4)
        gate.open()
        assert ids(decode_call_reply(sent_twice[0].result(DEADLINE_S)).value) == stream(2)[1]
        found += [ids(session.next_batch(4)) for _ in range(2)]
    assert found == stream(3)


def test_calls_that_wait_for_one_session_hold_up_nobody_else(tmp_path, gate, background):
    nodes = {"slow": make_node(gate), "quick": make_node()}
    with (
        serve(nodes, state_dir=tmp_path, session_ttl_s=1.0, shared_memory=False) as server,
        connected(server) as client,
        connected(server) as another,
    ):
        slow = client.session("run", mixture="slow")
        quick = another.session("run", mixture="quick", timeout_s=SOON_S)
        gate.shut()
        call = encode_call_request(CallRequest("slow", "run", "next_batch", {"size": 4}, slow._lease, 1))
        waiting = [background.submit(client._caller.call, methods.CALL_SESSION, call) for _ in range(40)]
        assert gate.reached.wait(DEADLINE_S)
        found, began = [], time.monotonic()
        while time.monotonic() < began + 2.0:  # twice the lease's length
            found.append(ids(quick.next_batch(1)))
            another.session("new", mixture="quick", timeout_s=SOON_S).close()
            time.sleep(0.1)
        assert found == stream(len(found), 1)
        holders = {known.mixture: known.holder for known in another.sessions() if known.name == "run"}
        assert all(holders.values()), holders
        gate.open()
        assert len({answer.result(DEADLINE_S) for answer in waiting}) == 1
        assert ids(decode_call_reply(waiting[0].result()).value) == stream(1)[0]


@pytest.mark.alone
def test_opening_a_session_that_must_be_read_long_holds_up_nobody_else(tmp_path, gate, background):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client, client.session("run") as session:
        session.next_batch(40)
    nodes = {"train": make_node(gate, weights=(0.4, 0.6)), "other": make_node()}
    with local_client(nodes, state_dir=tmp_path) as client:
        other = client.session("run", mixture="other")
        gate.shut()
        opening = background.submit(client.session, "run", mixture="train", strict=False)
        assert gate.reached.wait(DEADLINE_S)
        began = time.monotonic()
        assert [ids(other.next_batch(4)) for _ in range(2)] == stream(2)
        client.session("new", mixture="train").close()
        assert {known.name for known in client.sessions()} == {"new", "run"}
        assert time.monotonic() - began < SOON_S
        assert not opening.done()
        gate.open()
        assert opening.result(DEADLINE_S).index == 40


def test_openings_that_take_long_hold_up_no_renewals(tmp_path, gate, background):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for name in ("a", "b"):
            with client.session(name) as session:
                session.next_batch(40)
    nodes = {"train": make_node(gate, weights=(0.4, 0.6)), "other": make_node()}
    with (
        serve(nodes, state_dir=tmp_path, session_ttl_s=1.0, shared_memory=False) as server,
        connected(server) as client,
        connected(server) as another,
    ):
        held = another.session("run", mixture="other")
        gate.shut()
        opening = [background.submit(client.session, name, mixture="train", strict=False) for name in ("a", "b")]
        assert gate.reached.wait(DEADLINE_S)
        time.sleep(1.5)  # longer than a lease
        with pytest.raises(SessionTaken):
            another.session("run", mixture="other", timeout_s=SOON_S)
        assert ids(held.next_batch(4)) == stream(1)[0]
        assert not any(one.done() for one in opening)
        gate.open()
        assert [one.result(DEADLINE_S).index for one in opening] == [40, 40]


def test_nobody_gets_records_of_the_other_order(tmp_path, gate, background):
    weights = [(0.5, 0.5)]
    wire = Wire(lambda: Services({"train": make_node(gate, weights=weights[-1])}, state_dir=tmp_path))
    with MixClient([wire]) as client, wire.another_client() as another:
        holder = client.session("run", timeout_s=0.6)
        holder.next_batch(40)
        weights.append((0.1, 0.9))
        wire.restart()
        with pytest.raises(SessionTaken):
            another.session("run", strict=False)
        with pytest.raises(FingerprintMismatch):
            holder.next_batch(4)
        gate.shut()
        opening = background.submit(another.session, "run", strict=False, take_over=True)
        assert gate.reached.wait(DEADLINE_S)
        with pytest.raises(DeadlineExceeded):
            holder.next_batch(4)
        gate.open()
        taken = opening.result(DEADLINE_S)
        with pytest.raises(SessionTaken):
            holder.next_batch(4)
        assert ids(taken.next_batch(4)) == stream(11, weights=(0.1, 0.9))[10]


def test_a_session_whose_opening_was_answered_too_late_is_let_go(tmp_path):
    class LateOnce(Wire):
        is_late = True

        def call(self, method, request, timeout_s):
            reply = super().call(method, request, timeout_s)
            if method == methods.OPEN_SESSION and self.is_late:
                self.is_late = False
                raise DeadlineExceeded("the reply was too late")
            return reply

    with MixClient([LateOnce(lambda: Services({"train": make_node()}, state_dir=tmp_path))]) as client:
        with pytest.raises(DeadlineExceeded):
            client.session("run")
        assert ids(client.session("run").next_batch(4)) == stream(1)[0]


def test_a_session_that_is_still_being_opened_when_its_client_gives_up_is_let_go(tmp_path, monkeypatch):
    sync, is_held_up = os.fsync, threading.Event()

    def slow_sync(descriptor):
        if threading.current_thread() is not threading.main_thread():
            is_held_up.set()
            time.sleep(0.4)
        sync(descriptor)

    with (
        serve({"train": make_node()}, state_dir=tmp_path, shared_memory=False) as server,
        connected(server) as client,
    ):
        client.mixture()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", slow_sync)
            with pytest.raises(DeadlineExceeded):
                client.session("run", timeout_s=0.2)
        assert is_held_up.is_set()
        assert ids(client.session("run").next_batch(4)) == stream(1)[0]


# Journals of renewed sessions


def test_every_session_that_is_renewed_keeps_its_journal(tmp_path):
    leases = {name: letter * 32 for name, letter in (("one", "a"), ("two", "b"), ("silent", "c"))}
    journals = {name: tmp_path / "sessions" / "train" / name for name in leases}

    def servicer():
        return Services({"train": make_node()}, state_dir=tmp_path, session_ttl_s=0.3)

    def renew(services, name):
        services.handle(methods.RENEW_SESSIONS, encode_held([HeldSession("train", name, leases[name])]))

    def let_age():
        for journal in journals.values():
            os.utime(journal, (time.time() - 8 * DAY_S,) * 2)

    def age_s(name):
        return time.time() - journals[name].stat().st_mtime

    services = servicer()
    for name, lease in leases.items():
        services.handle(methods.OPEN_SESSION, encode_open_request(OpenRequest("train", name, lease)))
    let_age()
    for name in ("one", "two"):  # of two clients
        renew(services, name)
        assert age_s(name) < DAY_S
    assert age_s("silent") > DAY_S
    services.close()

    let_age()
    services = servicer()
    services.state.end_silent()
    assert all(journal.exists() for journal in journals.values())  # their holders may still return
    for name in ("one", "two"):
        renew(services, name)
    deadline = time.monotonic() + DEADLINE_S
    while journals["silent"].exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        services.state.end_silent()
    services.close()
    assert [name for name, journal in journals.items() if journal.exists()] == ["one", "two"]


def test_a_client_that_closes_during_a_call_lets_go_of_its_session(gate, background):
    with serve({"train": make_node(gate)}, shared_memory=False) as server, connected(server) as another:
        client = connected(server)
        session = client.session("run")
        gate.shut()
        reading = background.submit(session.next_batch, 4)
        assert gate.reached.wait(DEADLINE_S)
        client.close()
        (known,) = another.sessions()
        assert known.holder == ""
        gate.open()
        assert another.session("run").resumed
        with suppress(MixserveError):
            reading.result(DEADLINE_S)
