"""What hostile peers can cause as often as they like has one line a second in the log, with their number."""

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress

import pytest

from mixserve import MixServer, serve
from mixserve.serving.regularly import Regularly
from mixserve_client.limited_log import LimitedLog, limit_hits
from mixserve_client.transport.handshake import SLOT_PACKET
from mixserve_client.wire.bulk import Kind
from tests.bulk.peers import channel, ends, header, offer_of, tcp

COUNT = 60
LOGGER = logging.getLogger("mixserve")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_of_all_levels_are_limited_and_say_how_many_there_were(caplog):
    caplog.set_level(logging.INFO, "mixserve")
    clock, before = Clock(), limit_hits()
    log = LimitedLog(LOGGER, clock=clock)
    for say in (log.warn, log.info, log.error):
        for _ in range(3):
            say("%s said %d", "somebody", 5)
        clock.now += 1.1
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed")
    assert caplog.messages == [
        "somebody said 5",
        "somebody said 5 (and 2 more since the last such line)",
        "somebody said 5 (and 2 more since the last such line)",
        "it failed (and 2 more since the last such line)",
    ]
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO, logging.ERROR, logging.ERROR]
    assert [record.exc_info is not None for record in caplog.records] == [False, False, False, True]
    assert log.count == 10
    assert limit_hits() == before


def test_a_log_that_exits_does_not_end_the_thread_of_the_chores():
    class Exits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    calls = list[int]()

    def fails() -> None:
        calls.append(1)
        raise ValueError("why")

    exits, chores = Exits(), Regularly(fails)
    LOGGER.addHandler(exits)
    try:
        chores.start()
        until = time.monotonic() + 20
        while len(calls) < 2:
            assert time.monotonic() < until, "the chore was not called again"
            time.sleep(0.01)
    finally:
        LOGGER.removeHandler(exits)
        chores.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_process_that_was_forked_within_a_line_can_log():
    log = LimitedLog(LOGGER, "a limit of this test")
    with log._lock:
        child = os.fork()
        if child == 0:
            done = threading.Thread(target=log.warn, args=("in the child",), daemon=True)
            done.start()
            done.join(10)
            os._exit(int(done.is_alive()))
    assert os.waitpid(child, 0)[1] == 0


def say_http(server: MixServer) -> None:
    with closing(tcp(server.bulk_port)) as made, suppress(OSError):
        made.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert ends(made)


def break_the_protocol(server: MixServer) -> None:
    with channel(server) as made, suppress(OSError):
        made.sendall(header(Kind.REPLY, 1))
        assert ends(made)


def hand_in_nothing(server: MixServer) -> None:
    assert server._memory is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made:
        made.settimeout(10)
        made.connect(server._memory.path)
        made.send(SLOT_PACKET.pack(4096, 0))
        assert made.recv(300)


ATTACKS: dict[str, tuple[Callable[[MixServer], None], str]] = {
    "strangers at the door of bulk channels": (say_http, "no bulk channel for"),
    "frames that break the protocol": (break_the_protocol, "broke the protocol"),
    "memory that is none": (hand_in_nothing, "refused the memory"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_peers_cause_again_and_again_has_one_line_a_second(node, name, caplog):
    caplog.set_level(logging.INFO, "mixserve")
    attack, said = ATTACKS[name]
    with serve({"train": node}) as server:
        assert offer_of(server).port
        caplog.clear()
        time.sleep(1.1)  # after the last such line of another test
        began = time.monotonic()
        for _ in range(COUNT):
            attack(server)
        took_s = time.monotonic() - began
    lines = [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert 1 <= len(lines) <= took_s + 1, Counter(lines)


def test_what_grpc_says_of_calls_has_one_line_a_second(node, caplog):
    with serve({"train": node}, shared_memory=False):
        said = logging.getLogger("grpc._server")
        time.sleep(1.1)  # after the last such line of another test
        for _ in range(COUNT):
            said.error("Exception calling application")
    assert len([record for record in caplog.records if record.name == "grpc._server"]) <= 2
