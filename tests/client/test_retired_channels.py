"""A stream over gRPC ends although its channel was retired meanwhile, as when a server says that it is stopping."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerLimits, serve
from mixserve_client import MixserveError
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.transport.channel import Channel
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_stream_request
from tests.hanging_source import HangingSource
from tests.processes import ONE_SIZE
from tests.waiting import wait_until

SIZE, REPLIES, ENDS_S = 8, 4, 20
REQUEST = encode_stream_request(StreamRequest(BatchRequest("train", 0, SIZE, key_words(3)), SIZE, REPLIES, SIZE))


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Path]:
    """The file while which the source hangs."""
    yield (file := tmp_path / "hangs")
    file.unlink(missing_ok=True)


@pytest.fixture
def server(switch: Path) -> Iterator[MixServer]:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    node = MixDataSourcesNode(config, [HangingSource(switch)])
    with serve({"train": node}, shared_memory=False, limits=ServerLimits(read_timeout_s=3.0)) as running:
        yield running


def read(transport: GrpcTransport, timeout_s: float | None) -> int | str:
    """How many replies came, or the error."""
    try:
        return sum(1 for _ in transport.stream(methods.STREAM_BATCHES, REQUEST, timeout_s, 1, 1))
    except MixserveError as error:
        return str(error)


def channel_of(transport: GrpcTransport) -> Channel | None:
    """The channel of a transport that has a call."""
    found = transport._channel
    return found if found is not None and found._calls else None


ENDINGS: dict[str, tuple[float | None, Callable[[MixServer, Path], object], str]] = {
    "with its last reply": (None, lambda _, switch: switch.unlink(), "4"),
    "with an error": (None, lambda *_: None, "has not answered for 3 s"),
    "at its deadline": (1.5, lambda *_: None, "Deadline"),
    "with its server": (None, lambda server, _: server.stop(grace_s=0), ""),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stream_ends(server: MixServer, switch: Path, ending: str) -> None:
    timeout_s, end, said = ENDINGS[ending]
    switch.touch()
    transport = GrpcTransport(server.address)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, transport, timeout_s)
        wait_until(lambda: channel_of(transport) or reading.done(), "the call")
        channel = channel_of(transport)
        assert channel is not None
        channel.retire()
        end(server, switch)
        assert said in str(reading.result(ENDS_S))
    wait_until(lambda: "mixserve-close" not in [one.name for one in threading.enumerate()], "the channel's end")
    with pytest.raises(ValueError, match="closed channel"):
        channel.take(methods.LIST_MIXTURES, "unary_unary")(b"")
    transport.close()
