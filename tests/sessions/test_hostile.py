"""Malicious requests about sessions: refused before any work, and nothing of them is stored."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import ServerLimits, local_client, serve
from mixserve.node import batch_cache
from mixserve.servicer import Services
from mixserve.servicer.reply_cache import ReplyCache
from mixserve.sessions import Sessions, checkpoints, journals, listing, loaded, record
from mixserve_client import InvalidRequest, MixClient, StorageFailed
from mixserve_client.schema.sessions import CallRequest, HeldSession, OpenRequest
from mixserve_client.wire import methods
from mixserve_client.wire import session as wire_session
from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.session import encode_held, encode_open_request
from tests.sessions.test_faults import DEADLINE_S, SOON_S, Wire, call_raw, ids, make_node, nested, stream

LEASE = "a" * 32


@pytest.fixture(params=["in memory", "on disk"])
def wire(request, tmp_path):
    folder = tmp_path if request.param == "on disk" else None
    made = Wire(lambda: Services({"train": make_node()}, state_dir=folder))
    yield made
    made.close()


@pytest.fixture
def client(wire):
    return MixClient([wire])


def list_of_lists(levels):
    """Deeper than a client would send."""
    value = state_pb2.Value(none=True)
    for _ in range(levels):
        value = state_pb2.Value(list=state_pb2.Values(values=[value]))
    return value


# Leases


@pytest.mark.parametrize("method", [methods.RELEASE_SESSIONS, methods.RENEW_SESSIONS])
@pytest.mark.parametrize("lease", ["", "abc", "g" * 32, "A" * 32, "0" * 33, "x" * (1 << 19)])
def test_leases_that_are_none_are_refused_and_not_remembered(wire, method, lease):
    with pytest.raises(InvalidRequest, match="lease must be 32 hexadecimal digits, got") as refused:
        wire.handle(method, encode_held([HeldSession("train", "run", lease)]))
    assert len(str(refused.value)) < 300
    assert not wire.sessions._released


def test_a_call_with_a_lease_that_is_none_is_refused(wire, client):
    client.session("run")
    request = state_pb2.CallSessionRequest(mixture="train", session="run", operation="get_state", lease="x" * (1 << 20))
    with pytest.raises(InvalidRequest, match="lease must be 32 hexadecimal digits"):
        wire.handle(methods.CALL_SESSION, request.SerializeToString())


def test_one_request_names_so_many_sessions(wire):
    held = [HeldSession("train", "run", f"{number:032x}") for number in range(1001)]
    for method in (methods.RELEASE_SESSIONS, methods.RENEW_SESSIONS):
        with pytest.raises(InvalidRequest, match="up to 1000 sessions, got 1001"):
            wire.handle(method, encode_held(held))
        wire.handle(method, encode_held(held[1:]))
    assert len(wire.sessions._released) == 1000
    wire.handle(methods.RELEASE_SESSIONS, encode_held(held[:1] * 1000))
    assert len(wire.sessions._released) == 1000


def test_sessions_that_nobody_knows_are_not_looked_for_when_they_are_let_go(wire, monkeypatch):
    monkeypatch.setattr(Sessions, "_load", lambda *_: pytest.fail("it was looked for"))
    held = [HeldSession("train", f"none-{number}", LEASE) for number in range(1000)]
    for method in (methods.RELEASE_SESSIONS, methods.RENEW_SESSIONS):
        wire.handle(method, encode_held(held))


# Values


@pytest.mark.parametrize("levels", [24, 25, 30, 45])
@pytest.mark.parametrize("operation", ["set_statistics", "process", "get_state", "next_batch"])
def test_a_value_that_is_too_deep_is_refused(wire, client, operation, levels):
    session = client.session("run")
    request = state_pb2.CallSessionRequest(
        mixture="train", session="run", operation=operation, lease=session._lease, sequence=1
    )
    request.arguments.dict.entries.add(name="statistics").value.CopyFrom(list_of_lists(levels))
    with pytest.raises(InvalidRequest, match="at most 24 levels deep"):
        wire.handle(methods.CALL_SESSION, request.SerializeToString())
    assert session.get_state()["index"] == 0


def test_a_state_around_the_deepest_statistics_comes_and_goes(wire, client):
    session = client.session("run")
    session.set_statistics(nested(23))
    state = session.get_state()
    assert state["statistics"]["values"] == nested(23)
    session.reset_statistics()
    session.set_state(state)
    assert session.get_statistics() == nested(23)
    state["statistics"]["values"] = nested(25)
    with pytest.raises(InvalidRequest, match="at most 24 levels"):
        session.set_state(state)


def test_many_small_values_are_refused(client, monkeypatch):
    session = client.session("run")
    monkeypatch.setattr(wire_session, "_VALUES_LIMIT", 1000)
    session.set_statistics({"list": [1] * 900})
    for statistics in ({"list": [1] * 1001}, {"lists": [[1] * 600, (1,) * 600]}, dict.fromkeys(range(1001))):
        with pytest.raises(InvalidRequest, match="holds too many values"):
            session.set_statistics(statistics)
    assert session.get_statistics() == {"list": [1] * 900}


@pytest.mark.parametrize(
    "arguments", [{"start": "x" * (1 << 20), "size": 4}, {"start": 0, "size": 4, "key": [7] * 9999}]
)
def test_what_is_said_of_a_refused_call_is_short(wire, client, arguments):
    session = client.session("run")
    with pytest.raises(InvalidRequest) as refused:
        call_raw(client, session, "process", arguments)
    assert len(str(refused.value)) < 500
    with pytest.raises(InvalidRequest, match="the argument statistics is required") as refused:
        call_raw(client, session, "set_statistics", {"x" * (1 << 20): 1})
    assert len(str(refused.value)) < 500
    session.get_operation_stats()
    ((_, known),) = wire.sessions._loaded.all()
    assert known.kept_bytes < 10_000


# What a server remembers


def test_sessions_keep_so_many_bytes_together(wire, client, monkeypatch):
    monkeypatch.setattr(loaded, "KEPT_BYTES", 1 << 20)
    mean = {"mean": np.zeros(50_000)}  # 400 kB
    held = {name: client.session(name) for name in "abc"}
    state = held["c"].get_state()
    state["statistics"] = {"known": True, "reset": False, "values": mean}
    for name in "ab":
        held[name].set_statistics(mean)
    for refused in (lambda: held["c"].set_statistics(mean), lambda: held["c"].set_state(state)):
        with pytest.raises(StorageFailed, match=r"this session would keep 400.* 1048576 together"):
            refused()
        assert held["c"].get_statistics() is None
    held["a"].set_statistics({"mean": np.ones(50_000)})  # replaces the stored ones
    assert [ids(held["c"].next_batch(4)) for _ in range(2)] == stream(2)
    held["a"].reset_statistics()
    held["c"].set_statistics(mean)
    assert held["c"].get_statistics()["mean"].shape == (50_000,)


def test_a_session_whose_statistics_find_no_room_is_not_loaded(tmp_path, monkeypatch):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        for name in "abc":
            client.session(name).set_statistics({"mean": np.zeros(50_000)})
        monkeypatch.setattr(loaded, "KEPT_BYTES", 1 << 20)
        wire.restart()
        for name in "ab":
            client.view_session(name).get_operation_stats()
        with pytest.raises(StorageFailed):
            client.view_session("c").get_operation_stats()
        assert {known.name for known in client.sessions()} == set("abc")


def test_answers_that_are_kept_are_counted(wire, client, monkeypatch):
    monkeypatch.setattr(loaded, "KEPT_BYTES", 1 << 20)
    session = client.session("run")
    session.set_statistics({"mean": np.zeros(50_000)})
    call_raw(client, session, "get_state", {})
    ((_, known),) = wire.sessions._loaded.all()
    assert 400_000 < known.kept_bytes < 410_000  # the kept answer shares the session's statistics


def test_so_many_journals_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "MOST_JOURNALS", 3)
    nodes = {"one": make_node(), "two": make_node()}
    with local_client(nodes, state_dir=tmp_path) as client:
        for name in "ab":
            client.session(name, mixture="one").close()
        client.session("a", mixture="two").close()
        for _ in range(2):
            with pytest.raises(StorageFailed, match="has journals of 3 sessions, and no room for more"):
                client.session("b", mixture="two")
        assert client.session("b", mixture="one", fresh=True).index == 0
        assert client.session("a", mixture="two").resumed


def test_so_many_checkpoints_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MOST_CHECKPOINTS", 3)
    monkeypatch.setattr(checkpoints, "MOST_SESSIONS", 2)
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        for name in "abc":
            session.save_checkpoint(name)
        with pytest.raises(StorageFailed, match="has 3 checkpoints, at most 3 are allowed"):
            session.save_checkpoint("d")
        session.save_checkpoint("a")
        session.save_checkpoint("d", keep_last=2)
        assert [saved.name for saved in session.list_checkpoints()] == ["a", "d"]
        client.session("another").save_checkpoint("a")
        with pytest.raises(StorageFailed, match="the mixture 'train' has checkpoints of 2 sessions"):
            client.session("third").save_checkpoint("a")


def test_a_state_folder_holds_so_many_bytes(tmp_path):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session = client.session("run")
        found = [ids(session.next_batch(4))]
        session.save_checkpoint("a")
        wire.restart()
        folder = wire.sessions._folder
        folder._limit_bytes = folder._used + 100
        folder._spare_bytes = 5000
        for refused in (
            lambda: session.save_checkpoint("b"),
            lambda: session.set_statistics({"n": np.zeros(1000)}),
        ):
            with pytest.raises(StorageFailed, match=r"the state folder has \d+ bytes, and may have \d+: delete"):
                refused()
        assert [saved.name for saved in session.list_checkpoints()] == ["a"]
        session.delete_checkpoint("a")
        found += [ids(session.next_batch(4)) for _ in range(2)]
        assert found == stream(3)
        assert folder._used == folder._measure()


def test_holders_that_are_remembered_are_bounded(tmp_path):
    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path, limits=ServerLimits(sessions=3)))
    with MixClient([wire]) as client:
        for number in range(6):
            session = client.session(f"run-{number}")
            with pytest.raises(InvalidRequest):
                session.set_state({"no": "state"})  # after which it is read again
        assert len(wire.sessions._loaded._last_seen) == 3


def test_cached_batches_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(batch_cache, "_MOST_BYTES", 10_000)
    cache = batch_cache.BatchCache()
    made = []

    def make(size):
        made.append(size)
        return {"id": jnp.zeros(size, jnp.uint8)}

    for size in (4000, 5000, 4000, 6000, 5000, 20_000, 20_000):
        cache.get((0, size, 0, 0), lambda size=size: make(size))
        assert sum(batch["id"].nbytes for batch in cache._batches.values()) <= 10_000
    assert made == [4000, 5000, 6000, 5000, 20_000, 20_000]


def test_cached_replies_are_bounded_in_number_however_slow_the_oldest_is():
    cache = ReplyCache(lambda: 0.0)
    for number in range(3000):
        cache.get(number // 2, number % 2, 1, lambda: SimpleNamespace(result=lambda: b"x"))
        cache.get(number // 2, number % 2, 1, lambda: SimpleNamespace(result=lambda: b"x"))
    assert 1000 < len(cache._replies) <= 1024
    assert 1000 < len(cache._shared) <= 1024
    assert cache._bytes == len(cache._replies)


# Leases are short or long


@pytest.mark.parametrize("ttl_s", [1e-9, 0.19])
def test_a_lease_lasts_long_enough_to_be_renewed(ttl_s):
    with pytest.raises(ValueError, match=rf"session_ttl_s must be at least 0.2 s, .*, got {ttl_s}"):
        Sessions({"train": make_node()}, ttl_s=ttl_s)


@pytest.mark.parametrize("ttl_s", [5e-324, 1e-9, 1e300])
def test_a_client_renews_ten_times_a_second_at_most_whatever_the_server_says(ttl_s):
    class Hasty(Wire):
        renewals = 0
        renewed = threading.Event()

        def call(self, method, request, timeout_s):
            reply = super().call(method, request, timeout_s)
            if method == methods.OPEN_SESSION:
                return state_pb2.Session(ttl_s=ttl_s).SerializeToString()
            if method == methods.RENEW_SESSIONS:
                self.renewals += 1
                self.renewed.set()
            return reply

    wire = Hasty(lambda: Services({"train": make_node()}))
    with MixClient([wire]) as client:
        session = client.session("run")
        if ttl_s < 1:
            assert wire.renewed.wait(DEADLINE_S)
        else:
            assert not wire.renewed.wait(0.2)
        wire.renewals = 0
        threading.Event().wait(0.35)
        assert wire.renewals <= 4
        session.close()


def test_a_client_that_holds_thousands_tells_of_them_in_several_requests():
    wire = Wire(lambda: Services({"train": make_node()}))
    with MixClient([wire]) as client:
        leases = client._leases
        held = [HeldSession("train", f"run-{number}", f"{number:032x}") for number in range(2500)]
        leases._tell(methods.RELEASE_SESSIONS, held, math.inf)
        assert len(wire.sessions._released) == 1000
        assert held[-1].lease in wire.sessions._released
        assert held[1499].lease not in wire.sessions._released


# Listings


def test_a_listing_that_takes_long_holds_up_no_renewals(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        client.session("on-disk").close()
    reached, opened, read = threading.Event(), threading.Event(), record.read_record

    def slow(journal):
        reached.set()
        assert opened.wait(DEADLINE_S)
        return read(journal)

    monkeypatch.setattr(listing, "read_record", slow)
    with (
        serve({"train": make_node()}, state_dir=tmp_path, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=20, shared_memory=False) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        session = client.session("run")
        listings = [threads.submit(client.sessions) for _ in range(8)]
        try:
            assert reached.wait(DEADLINE_S)
            assert ids(session.next_batch(4)) == stream(1)[0]
            renewing = threading.Thread(
                target=client._caller.call, args=(methods.RENEW_SESSIONS, encode_held([session._held]))
            )
            renewing.start()
            renewing.join(SOON_S)
            assert not renewing.is_alive()
            assert not any(one.done() for one in listings)
        finally:
            opened.set()
        assert {known.name for known in listings[0].result(DEADLINE_S)} == {"on-disk", "run"}


def test_a_listing_reads_a_journal_that_has_changed_alone(tmp_path, monkeypatch):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for name in "abc":
            client.session(name).close()
    reads, read = [], record.read_record
    monkeypatch.setattr(listing, "read_record", lambda journal: (reads.append(journal.path.name), read(journal))[1])
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        for _ in range(3):
            assert [known.index for known in client.sessions()] == [0, 0, 0]
        assert sorted(reads) == ["a", "b", "c"]
        with client.session("b") as session:
            session.next_batch(4)
        assert [known.index for known in client.sessions()] == [0, 4, 0]
        assert sorted(reads) == ["a", "b", "b", "c"]


# Statistics


def test_statistics_that_have_not_changed_are_not_encoded_again(tmp_path, monkeypatch):
    sizes, encode = [], record.encode_value

    def seen(value, **options):
        data = encode(value, **options)
        sizes.append(len(data))
        return data

    wire = Wire(lambda: Services({"train": make_node()}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session = client.session("run")
        session.set_statistics({"mean": np.arange(1 << 20, dtype=np.uint8), "kinds": (1, np.float32(2), [3])})
        monkeypatch.setattr(record, "encode_value", seen)
        found = [ids(session.next_batch(4)) for _ in range(2)]
        wire.restart()
        found += [ids(session.next_batch(4)) for _ in range(2)]
        assert found == stream(4)
        assert max(sizes) < 100_000
        assert (tmp_path / "sessions" / "train" / "run").stat().st_size < 1.1 * (1 << 20)
        session.set_statistics({"mean": np.arange(1 << 20, dtype=np.uint8)[::-1]})
        wire.restart()
        assert session.get_statistics()["mean"][:2].tolist() == [255, 254]


def test_statistics_that_a_function_changes_afterwards_stay_as_they_were(tmp_path):
    said = {"mean": np.zeros(3)}
    wire = Wire(lambda: Services({"train": make_node(batch_stats_fn=lambda _: said)}, state_dir=tmp_path))
    with MixClient([wire]) as client:
        session = client.session("run")
        session.compute_statistics(0, 4, 1)
        said["mean"][:] = 7
        for restarted in (False, True):
            if restarted:
                wire.restart()
            assert session.get_statistics()["mean"].tolist() == [0, 0, 0]


def test_an_open_request_with_strange_fields_is_refused(wire):
    for holder in ("x" * 201, "a\nb", "\x00"):
        request = state_pb2.OpenSessionRequest(mixture="train", session="run", lease=LEASE, holder=holder)
        with pytest.raises(InvalidRequest, match="holder must be at most 200 printable characters"):
            wire.handle(methods.OPEN_SESSION, request.SerializeToString())
    for field in ("mixture", "expected_fingerprint", "session"):
        request = state_pb2.OpenSessionRequest.FromString(encode_open_request(OpenRequest("train", "run", LEASE)))
        setattr(request, field, "x" * (1 << 20))
        with pytest.raises(Exception, match="x") as refused:
            wire.handle(methods.OPEN_SESSION, request.SerializeToString())
        assert len(str(refused.value)) < 1000
    request = CallRequest("train", "run", "x" * (1 << 20))
    with pytest.raises(Exception, match="x") as refused:
        wire.handle(methods.CALL_SESSION, wire_session.encode_call_request(request))
    assert len(str(refused.value)) < 1000
