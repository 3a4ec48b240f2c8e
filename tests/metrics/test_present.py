"""How many readers a server has at present, as it tells its clients."""

import pytest

from mixserve.metrics.present import PresentReaders
from mixserve.serving.shared_counts import share_readers
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.server import Load, ServerDescription
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.server import ask_load, decode_server, decode_server_request, encode_server

ONE, OTHER = Sender("a", 1), Sender("a", 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_reader_counts_while_it_reads_and_for_a_second():
    clock = Clock()
    present = PresentReaders(clock)
    assert present.load() == Load(0, 0.0)
    first, second, other = present.come(ONE), present.come(ONE), present.come(OTHER)
    clock.now += 1
    assert present.count() == 2
    present.leave(other)
    present.leave(first)
    clock.now += 5
    assert present.count() == 1  # another request of it is under way
    present.leave(second)
    clock.now += 0.9
    assert present.count() == 1
    clock.now += 0.2
    assert present.count() == 0
    assert not present._readers


def test_who_moves_counts_at_once_where_it_goes_to_and_no_longer_where_it_was():
    clock = Clock()
    here, there = PresentReaders(clock), PresentReaders(clock)
    under_way = here.come(ONE)
    assert here.count() == 1
    there.expect(ONE)
    here.leave_for_another(ONE)
    assert (here.count(), there.count()) == (0, 1)
    clock.now += 2.9
    here.leave(under_way)
    here.leave(here.come(ONE))  # what it had asked for before
    assert (here.count(), there.count()) == (0, 1)
    clock.now += 0.2
    assert there.count() == 0  # it has not come
    here.expect(ONE)
    assert here.count() == 1


def test_strangers_cannot_make_it_remember_more():
    present = PresentReaders(Clock(), most=3)
    for number in range(10):
        present.expect(Sender("a", number + 1))
        present.leave(present.come(Sender("b", number + 1)))
    assert present.count() == len(present._readers) == 3


def test_replies_take_as_long_as_the_last_ones():
    clock = Clock()
    present = PresentReaders(clock)
    present.note_reply(0.5)
    assert present.load().reply_s == 0.5
    for _ in range(100):
        present.note_reply(0.02)
    assert present.load().reply_s == pytest.approx(0.02, rel=0.01)
    clock.now += 5.1
    assert present.load().reply_s == 0
    present.note_reply(0.1)
    assert present.load().reply_s == pytest.approx(0.1)


def test_processes_of_one_address_tell_the_sum(tmp_path):
    clock = Clock()
    each = [PresentReaders(clock) for _ in range(3)]
    for number, present in enumerate(each):
        share_readers(present, tmp_path / "readers", number, 3)
    each[0].come(ONE)
    each[2].come(ONE)
    each[2].come(OTHER)
    for present in each:
        present.tell_others()
    assert [present.load().readers for present in each] == [3, 3, 3]
    successor = PresentReaders(clock)
    share_readers(successor, tmp_path / "readers", 2, 3)
    assert [present.load().readers for present in (each[0], successor)] == [1, 1]


def test_the_bytes_of_requests_and_replies():
    assert ask_load() == b"\x08\x01"
    reader = Sender("a", 0x0102030405060708, 0.5, "trace")
    coming = b"\x08\x01\x12\x0c\x0a\x01a\x11\x08\x07\x06\x05\x04\x03\x02\x01"
    assert ask_load(reader._replace(wait_share=None, trace="")) == coming
    assert ask_load(reader._replace(wait_share=None, trace=""), leaves=True) == coming + b"\x18\x01"
    wanted = decode_server_request(coming + b"\x18\x01")
    assert wanted.without_bulk
    assert wanted.leaves
    assert wanted.reader == Sender("a", 0x0102030405060708)
    assert encode_server(ServerDescription(load=Load(3, 0.5))) == b"\x40\x03\x4d\x00\x00\x00\x3f"
    assert encode_server(ServerDescription(load=Load(0, 0.0))) == b"\x40\x00"
    with pytest.raises(InvalidRequest, match="GetServerRequest"):
        decode_server_request(b"\xff")


def test_old_clients_and_servers_say_nothing_of_readers():
    wanted = decode_server_request(b"")
    assert not wanted.without_bulk
    assert wanted.reader is None
    assert decode_server(encode_server(ServerDescription(zone="a"))).load is None
    for senseless in (
        mix_pb2.Server(readers=-1),
        mix_pb2.Server(readers=1, reply_s=float("nan")),
        mix_pb2.Server(readers=1, reply_s=-1),
        mix_pb2.Server(reply_s=1),
    ):
        assert decode_server(senseless.SerializeToString()).load is None
