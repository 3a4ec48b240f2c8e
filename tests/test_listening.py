"""A port that is taken is said before data are opened, and a port that is free stays so until the server listens."""

import errno
import socket
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.listening import holding
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ONE_SIZE, ServerProcess

# A source that says when it is opened, and is open when the file `go` is there. It forks a process that has the port.
SLOW = """
import os
import time
import warnings
from pathlib import Path

import numpy as np

from mixserve import ArraySource

def make():
    folder, parent = Path(__file__).parent, os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork in a process with threads
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.01)
            os._exit(0)
    (folder / "opening").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return ArraySource({"x": np.arange(8)})
"""


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen()
    except BaseException:
        made.close()
        raise
    return made


def has_ipv6() -> bool:
    try:
        listening("::1").close()
    except OSError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.fixture
def slow(tmp_path) -> Path:
    (tmp_path / "slow_source.py").write_text(SLOW)
    file = tmp_path / "mixture.yaml"
    file.write_text("mixtures: {m: {sources: {s: {kind: factory, function: 'slow_source:make', weight: 1}}}}")
    return file


def test_a_port_that_is_taken_is_said_before_data_are_opened(slow):
    with closing(listening()) as other:
        port = other.getsockname()[1]
        server = ServerProcess(slow, "--port", str(port))
        try:
            assert server.process.wait(DEADLINE_S) == 2
        finally:
            server.kill()
    said = f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another address, or port 0"
    assert said in server.log()
    assert not (slow.parent / "opening").exists()


def test_a_port_is_kept_while_data_are_opened_and_calls_are_refused(slow):
    port = free_ports()
    server = ServerProcess(slow, "--port", str(port))
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not (slow.parent / "opening").exists():
            assert time.monotonic() < deadline, server.log()
            time.sleep(0.01)
        with pytest.raises(OSError, match="Address already in use"):
            listening(port=port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        (slow.parent / "go").touch()
        assert server.address() == f"127.0.0.1:{port}"
    finally:
        server.kill()


class Noisy(ArraySource):
    """Says when its content is asked for."""

    def __init__(self):
        super().__init__({"x": np.arange(4)})
        self.reads = 0

    def __len__(self):
        self.reads += 1
        return super().__len__()


def test_in_python_too_nothing_is_begun(tmp_path):
    source = Noisy()
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE), [source])
    before = source.reads
    with closing(listening()) as other, pytest.raises(OSError, match="Address already in use"):
        serve({"m": node}, f"127.0.0.1:{other.getsockname()[1]}", state_dir=tmp_path / "state")
    assert source.reads == before
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("taken", "asked"),
    [
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "[::]"),
        pytest.param("::", "[::]", marks=NEEDS_IPV6),
    ],
)
def test_a_port_taken_on_another_address_of_the_machine(taken, asked):
    with closing(listening(taken)) as other:
        address = f"{asked}:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=r"cannot listen on .*: Address already in use; choose"), holding(address):
            pass


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", pytest.param("[::1]", marks=NEEDS_IPV6)])
def test_a_free_port_is_held_by_one_only(host):
    address = f"{host}:{free_ports()}"
    for _ in range(2):
        with holding(address), pytest.raises(OSError, match="Address already in use"), holding(address):
            pass


def test_a_port_that_the_system_chooses_is_not_held():
    with holding("127.0.0.1:0"), holding("127.0.0.1:0"), holding("127.0.0.1:00"):
        pass


def test_an_address_of_another_machine_or_an_unknown_name_is_refused():
    for address, number in (("192.0.2.1:50051", errno.EADDRNOTAVAIL), ("no-such-host.invalid:50051", None)):
        with pytest.raises(OSError, match=f"cannot listen on {address}: ") as raised, holding(address):
            pass
        assert number is None or raised.value.errno == number


def test_connections_of_a_server_that_has_ended_are_not_in_the_way():
    server = listening()
    port = server.getsockname()[1]
    with closing(socket.create_connection(("127.0.0.1", port))), closing(server.accept()[0]) as accepted:
        accepted.shutdown(socket.SHUT_WR)  # the side that ends first keeps the port for a minute
        server.close()
    with closing(socket.socket()) as plain, pytest.raises(OSError, match="Address already in use"):
        plain.bind(("127.0.0.1", port))
    with holding(f"127.0.0.1:{port}"):
        pass
