"""A peer that says nothing any more, as a process that was stopped: the client notices by its pings."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from mixserve_client.credentials import TokenOptions
from mixserve_client.transport.channel import Channel
from mixserve_client.transport.credentials import Credentials

SETTINGS, ACK = b"\0\0\0\x04\0\0\0\0\0", b"\0\0\0\x04\1\0\0\0\0"
DEADLINE_S = 60


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that answers the beginning of HTTP/2, and then takes what comes without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with suppress(OSError):
                made, _ = listening.accept()
                with made:
                    made.sendall(SETTINGS)
                    made.recv(24)  # the preface, with more after it
                    made.sendall(ACK)
                    while made.recv(1 << 16):
                        pass

        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE_S)


def test_a_call_to_a_server_that_was_stopped_ends_before_its_deadline(silent):
    channel = Channel(silent, Credentials(None, TokenOptions()), keepalive_s=1)
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        channel.take("/mixserve.v1.MixService/ListMixtures", "unary_unary")(b"", timeout=DEADLINE_S)
    channel.close()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - began < 20
