"""Hosts that fail too often: counted, slowed, told once a minute, and forgotten."""

import logging

import pytest

from mixserve.access.audit import Refusals
from mixserve.access.failures import Failures, host_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_sixth_failure_within_a_minute_waits_and_later_ones_longer():
    clock = Clock()
    failures = Failures(clock)
    delays = [failures.add(f"ipv4:10.0.0.1:{port}") for port in range(5000, 5010)]
    assert delays == [0, 0, 0, 0, 0, 0.5, 1, 2, 2, 2]
    assert failures.add("ipv4:10.0.0.2:5000") == 0  # another host
    clock.now += 60
    assert failures.add("ipv4:10.0.0.1:5000") == 0


def test_a_line_a_minute_has_the_count_of_a_host(caplog):
    clock = Clock()
    failures = Failures(clock)
    caplog.set_level(logging.WARNING, logger="mixserve")
    for _ in range(30):
        failures.add("ipv4:10.0.0.1:5000")
        failures.report()
    assert caplog.messages == ["refused 1 call without a valid token from 10.0.0.1"]
    clock.now += 60
    failures.report()  # also if there is no other failure
    assert caplog.messages[1:] == ["refused 29 calls without a valid token from 10.0.0.1"]
    clock.now += 60
    failures.report()
    assert len(caplog.messages) == 2
    assert not failures._hosts


def test_the_table_is_bounded():
    failures = Failures(Clock())
    for number in range(5000):
        failures.add(f"ipv4:10.0.{number >> 8}.{number & 255}:1")
    assert len(failures._hosts) == 4096


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::%5D:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:5000", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/x", "unix"),
        ("", "unknown"),
        ("ipv6:nonsense", ""),
    ],
)
def test_hosts_of_peers(peer, host):
    assert host_of(peer) == host


def test_refusals_are_logged_once_a_second_by_kind_and_caller_with_a_count(caplog):
    clock = Clock()
    refusals = Refusals(clock)
    caplog.set_level(logging.INFO, logger="mixserve.audit")
    for _ in range(10):
        refusals.add("Unauthenticated", "unknown", "ipv4:10.0.0.1:1", "GetMixture", "no token\nwho=admin")
        refusals.add("PermissionDenied", "ci", "ipv4:10.0.0.1:1", "GetMixture", "no")
    assert len(caplog.messages) == 2
    clock.now += 1
    refusals.add("Unauthenticated", "unknown", "ipv4:10.0.0.1:1", "GetMixture", "no token\nwho=admin")
    first, _, last = caplog.messages
    line = 'event=refused who=unknown peer=ipv4:10.0.0.1:1 method=GetMixture status=Unauthenticated calls={} why="no '
    assert first.startswith(line.format(1))
    assert last.startswith(line.format(10))
    assert "\n" not in first
    assert caplog.records[2].__dict__["audit"]["calls"] == 10
    for number in range(3000):
        refusals.add("Unauthenticated", str(number), "", "", "")
    assert len(refusals._said) == 1024
