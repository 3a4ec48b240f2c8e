"""Sessions of a mixture whose source hangs harm no other, tell their callers, and lose nothing."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from mixserve_client import Overloaded, Unavailable
from mixserve_client.sessions.session import Session
from tests.load.hanging import DEADLINE_S, SIZE, Hanging, until
from tests.load.test_health_of_mixtures import healths


@pytest.fixture
def background():
    with ThreadPoolExecutor(64) as threads:
        yield threads


def hang_all(hanging: Hanging, stack: ExitStack, background: ThreadPoolExecutor, count: int) -> list[Future]:
    """Let `count` sessions of the mixture that hangs ask for a batch."""
    client = stack.enter_context(hanging.connect())
    sessions = [stack.enter_context(client.session(f"run-{i}", mixture="hangs")) for i in range(count)]
    hanging.switch.touch()
    stack.callback(hanging.switch.unlink, missing_ok=True)
    before = hanging.source.taken
    waiting = [background.submit(session.next_batch, SIZE) for session in sessions]
    until(lambda: hanging.source.taken >= before + min(count, 16))
    return waiting


def read_other(hanging: Hanging) -> float:
    """Use a session of the other mixture, and return the longest that anything took."""
    longest = 0.0
    with hanging.connect() as client:
        for i in range(5):
            began = time.monotonic()
            with client.session(f"other-{i}", mixture="train") as session:
                session.next_batch(SIZE)
                session.get_state()
            assert f"other-{i}" in {known.name for known in client.sessions(mixture="train")}
            longest = max(longest, time.monotonic() - began)
    return longest


def test_sessions_of_a_mixture_that_hangs_stop_those_of_no_other(make, background):
    hanging = make()
    with ExitStack() as stack:
        waiting = hang_all(hanging, stack, background, 40)
        assert read_other(hanging) < 5
        hanging.switch.unlink()
        batches = [one.result(DEADLINE_S)["x"] for one in waiting]
    assert len(batches) == 40
    assert all(len(batch) == SIZE for batch in batches)


def test_a_call_of_a_session_that_takes_too_long_ends_with_an_error_and_its_answer_is_not_lost(make, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    hanging = make(read_timeout_s=0.3)
    with hanging.connect(patience_s=0.01) as client, client.session("run", mixture="hangs") as session:
        first = session.next_batch(SIZE)["x"]
        hanging.switch.touch()
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"next_batch of the session 'run' has not answered for 0\.3 s"):
            session.next_batch(SIZE)
        assert 0.3 <= time.monotonic() - began < 5
        assert "for sessions of this mixture hang so: look at what its sources read from" in caplog.text
        hanging.switch.unlink()
        until(lambda: "a call on a session of the mixture 'hangs' that was given up after" in caplog.text)
        with hanging.connect() as patient, patient.session("again", mixture="hangs") as other:
            expected = [other.next_batch(SIZE)["x"] for _ in range(2)]
        np.testing.assert_array_equal(first, expected[0])
        np.testing.assert_array_equal(_retried(session), expected[1])


def _retried(session: Session) -> np.ndarray:
    """The answer to the call that ended with an error."""
    return session.next_batch(SIZE)["x"]


def test_a_client_that_waits_gets_the_batch_of_a_call_that_was_late_several_times(make, background):
    hanging = make(read_timeout_s=0.2)
    with hanging.connect() as client, client.session("run", mixture="hangs") as session:
        hanging.switch.touch()
        waiting = background.submit(session.next_batch, SIZE)
        jobs = hanging.server._work.sessions.jobs["hangs"]
        until(lambda: jobs.late.count >= 3)
        before = hanging.source.taken
        hanging.switch.unlink()
        assert len(waiting.result(DEADLINE_S)["x"]) == SIZE
        assert session.index == SIZE
    assert before == 1  # each time it waited for the same run


def test_when_all_threads_of_sessions_hang_calls_are_refused_at_once_and_health_tells(make, background, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    hanging = make(calls_per_mixture=2, read_timeout_s=5.0)  # so there are four threads for sessions of a mixture
    address = hanging.server.address
    with ExitStack() as stack:
        names = [f"run-{i}" for i in range(5)]
        client = stack.enter_context(hanging.connect(patience_s=0.01))
        sessions = [stack.enter_context(client.session(name, mixture="hangs")) for name in names]
        hanging.switch.touch()
        for i in range(4):
            gone = hanging.connect(patience_s=0.01)
            session = gone.session(names[i], mixture="hangs", take_over=True)
            background.submit(_ignore, session)
            until(lambda i=i: hanging.source.taken > i)
            gone.close()
            until(lambda: not hanging.server._work.sessions.shares[CALL].held("hangs"))
        assert healths(address, "hangs", "train") == ["SERVING", "NOT_SERVING", "SERVING"]
        began = time.monotonic()
        with pytest.raises(Overloaded, match="all 4 threads for sessions of the mixture 'hangs' run calls"):
            sessions[4].next_batch(SIZE)
        assert time.monotonic() - began < 2
        assert "calls are refused until one comes back" in caplog.text
        hanging.switch.unlink()
        until(lambda: healths(address, "hangs") == ["SERVING", "SERVING"])
        with hanging.connect() as patient, patient.session("new", mixture="hangs") as session:
            assert len(session.next_batch(SIZE)["x"]) == SIZE


CALL = "/mixserve.v1.StateService/CallSession"


def _ignore(session: Session) -> None:
    with suppress(Unavailable):
        session.next_batch(SIZE)


def test_the_bytes_of_a_batch_of_a_session_count_before_it_is_made(make, background):
    hanging = make()
    unread = hanging.server._unread
    with ExitStack() as stack:
        before = unread.bytes
        waiting = hang_all(hanging, stack, background, 1)
        assert unread.bytes >= before + SIZE * 4  # of the rows, which nobody has
        hanging.switch.unlink()
        assert len(waiting[0].result(DEADLINE_S)["x"]) == SIZE


def test_a_batch_of_a_session_without_room_is_refused_before_it_is_made(make, background):
    hanging = make(reply_bytes=1000, reply_bytes_per_connection=300)
    with ExitStack() as stack:
        client = stack.enter_context(hanging.connect(patience_s=0.3))
        sessions = [stack.enter_context(client.session(f"run-{i}", mixture="hangs")) for i in range(2)]
        hanging.switch.touch()
        first = background.submit(sessions[0].next_batch, 50)  # 200 bytes
        until(lambda: hanging.source.taken == 1)
        with pytest.raises(Overloaded, match="readers have not taken the replies"):
            sessions[1].next_batch(50)
        assert hanging.source.taken == 1
        hanging.switch.unlink()
        assert len(first.result(DEADLINE_S)["x"]) == 50
        assert len(sessions[1].next_batch(50)["x"]) == 50
