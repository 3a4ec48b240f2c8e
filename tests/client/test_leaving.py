"""A client at an address that leads to several servers, as that of a proxy or a service does, leaves one that stops."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve_client import MixClient
from tests.hanging_source import HangingSource
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.waiting import wait_until


class Balancer:
    """Passes each new connection to the server at `target`."""

    def __init__(self, target: str):
        self.target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._open = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                here, _ = self._listening.accept()
                host, port = self.target.split(":")
                there = socket.create_connection((host, int(port)))
                self._open += [here, there]
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=_copy, args=(source, target), daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_calls_go_on_while_the_server_finishes_others(stack, tmp_path):
    hang = tmp_path / "hang"

    def start() -> MixServer:
        config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
        nodes = {
            "train": MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000)})]),
            "hanging": MixDataSourcesNode(config, [source]),
        }
        return stack.enter_context(serve(nodes, shared_memory=False, bulk=False))

    source = HangingSource(hang)
    old, new = start(), start()
    balancer = Balancer(old.address)
    stack.callback(balancer.close)
    client = stack.enter_context(MixClient.connect(balancer.address, shared_memory=False, patience_s=DEADLINE_S))
    first = client.get_batch_at(0, 8, 7, mixture="train")["x"]
    client.mixture("hanging")
    hang.touch()
    stack.callback(hang.unlink, missing_ok=True)
    came = []
    slow = threading.Thread(target=lambda: came.append(client.get_batch_at(0, 8, 7, mixture="hanging")))
    taken = source.taken
    slow.start()
    wait_until(lambda: source.taken > taken, "the call that hangs reads")
    balancer.target = new.address
    stopping = threading.Thread(target=old.stop, args=(DEADLINE_S,))
    stopping.start()
    for _ in range(20):
        found = client.get_batch_at(0, 8, 7, mixture="train", timeout_s=DEADLINE_S / 2)["x"]
        assert np.array_equal(found, first)
    assert stopping.is_alive(), "the server has ended before the calls went elsewhere"
    hang.unlink()
    slow.join(DEADLINE_S)
    assert len(came) == 1
    stopping.join(DEADLINE_S)
