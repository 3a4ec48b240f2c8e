"""Clients that ask for checksums: by every route, with servers that are older, and where the library is missing."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerTls, local_client, serve
from mixserve.cli.main import app
from mixserve.servicer import Services
from mixserve_client import AsyncMixClient, CorruptReply, InvalidRequest, MixClient
from mixserve_client.schema.server import BulkOffer, ServerDescription
from mixserve_client.wire import methods
from mixserve_client.wire.checksum import open_request
from mixserve_client.wire.server import decode_server, encode_server
from tests.certificates import NEEDS_OPENSSL, Made
from tests.conftest import ROUTES, assert_batches_equal, make_node
from tests.hostile import STREAMS, Answers, hostile_server
from tests.processes import DEADLINE_S, ONE_SIZE

SIZE = 8
GRPC = ROUTES["grpc"]


@pytest.fixture(scope="module")
def server() -> Iterator[MixServer]:
    with serve({"train": make_node()}) as running:
        yield running


@pytest.mark.parametrize("route", ROUTES)
def test_every_call_is_the_same_with_checksums(server: MixServer, route: str) -> None:
    with (
        MixClient.connect(server.address, **ROUTES[route]) as plain,
        MixClient.connect(server.address, checksum=True, **ROUTES[route]) as checked,
    ):
        reads: list[Callable[[MixClient], Any]] = [
            lambda client: client.get_batch_at(5, SIZE, 7),
            lambda client: client.get_batch_at(5, 5000, 7, provenance=True),
            lambda client: client.get_batch_by_positions([9, 3, 70_000], 7),
            lambda client: client.get_plan_at(0, 100, 7),
            lambda client: client.get_batch_at(5, SIZE, 7, schedule=[(0, (1.0, 0.0, 0.0)), (8, (0.0, 1.0, 0.0))]),
        ]
        for read in reads:
            assert_batches_equal(read(checked), read(plain))
        for mine, other in zip(
            islice(checked.batches(3000, 7, prefetch=4), 20), islice(plain.batches(3000, 7), 20), strict=True
        ):
            assert_batches_equal(mine, other)
        assert checked.transport == plain.transport
        assert route in checked.transport
        assert checked.mixture() == plain.mixture()
        with checked.session(f"checked-{route.replace(' ', '-')}") as session:
            assert len(session.next_batch(SIZE)["id"]) == SIZE


@NEEDS_OPENSSL
def test_a_client_that_wants_both_gets_tls_and_checksums(tmp_path: Path) -> None:
    made = Made.in_folder(tmp_path)
    tls = ServerTls(made.server.certificate, made.server.key)
    with (
        serve({"train": make_node(plan_sizes=ONE_SIZE)}, tls=tls, shared_memory=False) as server,
        MixClient.connect(server.address, tls=made.authority.ca, checksum=True) as client,
    ):
        assert_batches_equal(next(client.batches(SIZE, 7)), client.get_batch_at(0, SIZE, 7))
        assert client.transport.startswith("bulk ")


class Slow:
    """A source whose replies are shared, since they may be slow."""

    def __len__(self) -> int:
        return 100

    def element_spec(self) -> Any:
        return {"x": jax.ShapeDtypeStruct((1000,), np.int32)}

    def take(self, record_ids: Any) -> Any:
        return {"x": np.repeat(np.asarray(record_ids, np.int32)[:, None], 1000, 1)}


@pytest.mark.parametrize("route", ROUTES)
def test_readers_of_one_reply_have_checksums_of_their_own(route: str) -> None:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    with serve({"train": MixDataSourcesNode(config, [Slow()])}) as server:
        clients = [
            MixClient.connect(server.address, checksum=checksum, **ROUTES[route]) for checksum in (True, True, None)
        ]
        readers = [client.batches(64, 7) for client in clients]
        for _ in range(5):
            first, *others = map(next, readers)
            for other in others:
                assert_batches_equal(first, other)
        for client in clients:
            client.close()


# Replies that are right in themselves, and wrong here: a flipped bit in the number of an HTTP/2 stream does this.


@contextmanager
def answering(change: Callable[[str, list[bytes]], Iterable[bytes]]) -> Iterator[tuple[MixClient, dict[str, Any]]]:
    """A client with checksums of a server whose replies to each request `change` changes, and the server's nodes."""
    nodes = {"train": make_node(plan_sizes=ONE_SIZE)}
    services = Services(nodes)

    def answer(method: str, request: bytes) -> Iterable[bytes]:
        if method == methods.GET_SERVER:
            return [encode_server(ServerDescription(checksums=True))]
        replies = services.stream(method, request) if method in STREAMS else [services.handle(method, request)]
        return change(method, list(map(bytes, replies)))

    with hostile_server(Answers(answer)) as address, MixClient.connect(address, checksum=True, **GRPC) as client:
        client.mixture()
        yield client, nodes


@pytest.mark.parametrize("order", [[1, 0, 2, 3], [1, 2, 3], [0, 1, 3], [0, 0, 1, 2]])
def test_replies_in_another_order_are_noticed(order: list[int]) -> None:
    def change(method: str, replies: list[bytes]) -> list[bytes]:
        if len(replies) > 3:
            changed.append(method)
            return [replies[number] for number in order]
        return replies

    changed: list[str] = []
    with answering(change) as (client, nodes):
        rows = 5 * (2 << 20) // client.mixture().row_bytes  # the server cuts them into messages of 2 MiB
        with local_client(nodes) as direct:
            expected = direct.get_batch_at(0, rows, 7)
        try:  # the client asks again for what comes after replies that were right
            assert_batches_equal(client.get_batch_at(0, rows, 7), expected)
        except CorruptReply as error:
            assert "its checksum is wrong" in str(error)
        assert changed


def test_a_reply_to_another_request_is_noticed() -> None:
    kept: list[bytes] = []

    def change(method: str, replies: list[bytes]) -> list[bytes]:
        kept.extend(replies)
        return kept[1:2] if method == methods.GET_BATCH_AT else replies  # always the first batch

    with answering(change) as (client, _):
        first = client.get_batch_at(0, SIZE, 7)
        assert_batches_equal(first, client.get_batch_at(0, SIZE, 7))
        with pytest.raises(CorruptReply, match="its checksum is wrong"):
            client.get_batch_at(SIZE, SIZE, 7)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_call_that_ends_without_its_reply_is_noticed(checksum: bool) -> None:
    """gRPC returns None then."""
    with (
        hostile_server(Answers(lambda method, request: []), streams=(methods.GET_MIXTURE,)) as address,
        MixClient.connect(address, checksum=checksum, **GRPC) as client,
        pytest.raises(CorruptReply, match="without a reply"),
    ):
        client.mixture()


# Servers that know no checksums


def old_server(services: Services) -> Callable[[str, bytes], Iterable[bytes]]:
    """Answers as servers before checksums did: they skipped field 14, and described themselves without field 6."""

    def answer(method: str, request: bytes) -> Iterable[bytes]:
        if method == methods.GET_SERVER:
            return [b""]  # the bytes of a server without shared memory and bulk channels
        if method in STREAMS:
            return services.mix.stream(method, request)
        return [services.mix.handle(method, request)]

    return answer


def test_an_old_server_is_refused_with_the_reason_and_serves_without() -> None:
    services = Services({"train": make_node(plan_sizes=ONE_SIZE)})
    new_server = Answers(lambda method, request: [services.handle(method, request)])
    with hostile_server(new_server) as address, MixClient.connect(address, checksum=True, **GRPC) as client:
        client.get_batch_at(0, SIZE, 7)
        new_server.answer = old_server(services)  # it is replaced by an older one while the client runs
        reads: list[Callable[[], Any]] = [
            client.mixture,
            lambda: client.get_batch_at(0, SIZE, 7),
            lambda: next(client.batches(SIZE, 7)),
        ]
        for read in reads:
            with pytest.raises(InvalidRequest, match="older than checksums: update it, or connect with checksum=False"):
                read()
        for checksum in (False, None):
            with MixClient.connect(address, checksum=checksum, **GRPC) as plain:
                assert len(next(plain.batches(SIZE, 7))["id"]) == SIZE


def test_golden_descriptions_of_servers() -> None:
    token = bytes(range(32))
    old = bytes.fromhex("18d2ac03 2220") + token
    assert decode_server(old) == ServerDescription("", BulkOffer("", 54866, token))
    new = encode_server(ServerDescription("", BulkOffer("", 54866, token), checksums=True))
    assert new == old + bytes.fromhex("3001")
    assert decode_server(new).checksums


def test_only_clients_that_ask_get_checksums(server: MixServer) -> None:
    seen: list[tuple[str, bool]] = []
    services = Services({"train": make_node(plan_sizes=ONE_SIZE)})

    def answer(method: str, request: bytes) -> Iterable[bytes]:
        seen.append((method, open_request(request)[1] is not None))
        return services.stream(method, request) if method in STREAMS else [services.handle(method, request)]

    with hostile_server(Answers(answer)) as address:
        for options, expected in (({}, False), ({"checksum": None}, False), ({"checksum": True}, True)):
            seen.clear()
            with MixClient.connect(address, **GRPC, **options) as client:
                client.get_batch_at(0, SIZE, 7)
                next(client.batches(SIZE, 7))
            assert {asked for method, asked in seen if method != methods.GET_SERVER} == {expected}
            assert not any(asked for method, asked in seen if method == methods.GET_SERVER)


# Where google-crc32c is missing

_WITHOUT = "import sys; sys.modules['google_crc32c'] = None\n"
_SERVER = f"""
{_WITHOUT}
import numpy as np, mixserve
node = mixserve.MixDataSourcesNode(
    mixserve.MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=(16,)),
    [mixserve.ArraySource({{"id": np.arange(100)}})],
)
with mixserve.serve({{"train": node}}) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def test_a_server_without_the_library_says_what_to_install() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            for options in ROUTES.values():
                with MixClient.connect(address, checksum=True, **options) as client:
                    for read in (client.mixture, lambda client=client: client.get_batch_at(0, SIZE, 7)):
                        with pytest.raises(InvalidRequest, match=r"pip install 'mixserve\[checksum\]'"):
                            read()
                with MixClient.connect(address, **options) as client:
                    assert len(next(client.batches(SIZE, 7))["id"]) == SIZE
        finally:
            process.stdin.close()
            process.wait(DEADLINE_S)


@pytest.mark.parametrize("library", ["None", "type(sys)('google_crc32c')"])
def test_a_client_without_the_library_says_what_to_install(server: MixServer, library: str) -> None:
    """Also with the library as it is where it has no compiled code."""
    script = f"""
import sys
sys.modules["google_crc32c"] = {library}
if sys.modules["google_crc32c"]:
    sys.modules["google_crc32c"].implementation = "python"
from mixserve_client import MixClient
with MixClient.connect({server.address!r}) as client:
    assert len(next(client.batches(8, 7))["id"]) == 8
try:
    MixClient.connect({server.address!r}, checksum=True)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    assert "pip install 'mixserve-client[checksum]'" in done.stdout, done.stderr


# The option


def test_the_option_travels_with_the_client(server: MixServer) -> None:
    with MixClient.connect(server.address, checksum=True, **GRPC) as client:
        batches = client.batches(SIZE, 7)
        next(batches)
        copy = pickle.loads(pickle.dumps(client))
        assert copy.catalog._options == client.catalog._options
        assert copy.catalog._options.checksum is True
        assert_batches_equal(copy.get_batch_at(0, SIZE, 7), client.get_batch_at(0, SIZE, 7))
        copy.close()


def test_bench_measures_them(server: MixServer) -> None:
    flags = ["--batch-size", "8", "--seconds", "0.1", "--shared-memory", "off"]
    for more, said in (([], f"grpc {server.address};"), (["--checksum"], f"grpc {server.address}, with checksums;")):
        ended = CliRunner().invoke(app, ["bench", server.address, *flags, *more])
        assert ended.exit_code == 0, ended.stderr
        assert said in " ".join(ended.stdout.split())


@pytest.mark.parametrize("wrong", ["yes", 2, [], 0.5])
def test_other_values_are_refused(wrong: Any) -> None:
    for connect in (MixClient.connect, AsyncMixClient.connect):
        with pytest.raises(InvalidRequest, match="checksum must be True or False"):
            connect("127.0.0.1:1", checksum=wrong)
