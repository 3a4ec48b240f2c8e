"""The third table of docs/security.md: health, sockets, shared memory, and what changes while a server runs."""

import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from mixserve import MixServer, ServerTls
from mixserve.access.identity import EVERYBODY, acting_as
from mixserve.cli.health import probe
from mixserve.cli.main import app
from mixserve.serving import bulk
from mixserve_client import MixClient, PermissionDenied, TlsOptions, Unauthenticated
from mixserve_client.errors import InvalidRequest, MixserveError
from mixserve_client.transport.handshake import CHANNEL_SIZE, SLOT_ID, SLOT_PACKET
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.bulk import ALPN
from mixserve_client.wire.server import decode_server
from tests.bulk_calls import bulk_token, connect_bulk, error_over_bulk, is_let_in, open_bulk, stream_over_bulk
from tests.certificates import NEEDS_OPENSSL
from tests.processes import write_mixture
from tests.security.page import OTHERS
from tests.security.world import BEGUN, MAY_END, Outcome, World
from tests.tokens.calling import KEY, NEEDED, REFLECTION, STREAMS, bearer, look, status_of
from tests.tokens.files import Tokens, replace_file
from tests.tokens.test_changes import endless_stream, ends_with

pytestmark = NEEDS_OPENSSL

NOBODY = 65534
ROWS: dict[str, Outcome] = {}


def row(what: str) -> Callable[[Outcome], Outcome]:
    """The function tries the row of that name, and returns how its last cell begins: yes, or no and the error."""

    def add(outcome: Outcome) -> Outcome:
        assert what not in ROWS
        ROWS[what] = outcome
        return outcome

    return add


def test_each_row_is_tried() -> None:
    assert [row[0] for row in OTHERS] == list(ROWS)


@pytest.mark.parametrize(("what", "said"), OTHERS, ids=lambda cell: cell)
def test_the_table_is_right(world: World, what: str, said: str) -> None:
    outcome = ROWS[what](world)
    assert said.startswith(outcome)
    assert outcome.startswith("no: ") or outcome == "yes"


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")


@contextmanager
def own_tokens(world: World) -> Iterator[tuple[MixServer, Tokens]]:
    """A server whose token file may change."""
    path = world.folder / f"tokens-{time.monotonic_ns()}.yaml"
    tokens = Tokens(path, {"mine": ("trainer", ["a"]), "other": ("trainer", None)})
    server = world.start(tokens=path)
    yield server, tokens
    server.stop()


class _Lines(logging.Handler):
    def __init__(self, level: int):
        super().__init__(level)
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def lines_of(logger: str, level: int = logging.WARNING) -> Iterator[list[str]]:
    """What is logged in the block."""
    handler = _Lines(level)
    logging.getLogger(logger).addHandler(handler)
    try:
        yield handler.lines
    finally:
        logging.getLogger(logger).removeHandler(handler)


def list_mixtures(server: MixServer, token: str | None) -> tuple[str, str]:
    return status_of(server, methods.LIST_MIXTURES, None if token is None else bearer(token))


def words(status: tuple[str, str]) -> str:
    return {"OK": "yes", "UNAUTHENTICATED": "no: Unauthenticated"}.get(status[0], f"no: {status[0]}")


@row("health on the server's port, without a token")
def health_without_token(world: World) -> str:
    assert probe(world.server("server").address, 5) != "SERVING"  # for it speaks TLS
    return {"SERVING": "yes"}[probe(world.server("tokens").address, 5)]


@row("health on the port of a server with `client_ca`, without a certificate")
def health_without_certificate(world: World) -> str:
    from mixserve.cli.connecting import Connection

    ca, own = world.made.authority.ca, world.made.client
    server = world.server("mutual")
    assert probe(server.address, 5, Connection(ca=ca, certificate=own.certificate, key_file=own.key)) == "SERVING"
    said = probe(server.address, 5, Connection(ca=ca))
    assert "asks for a certificate" in said
    return "no: the connection fails"


@row("health on `health_port`, by everybody who reaches it")
def health_port(world: World) -> str:
    for name in ("plain", "mutual"):
        assert probe(health_address(world, name), 5) == "SERVING"
    return "yes"


def health_address(world: World, name: str) -> str:
    address = world.server(name).health_address
    assert address is not None
    return address


@row("any other call on `health_port`")
def others_on_health_port(world: World) -> str:
    with grpc.insecure_channel(health_address(world, "plain")) as channel:
        for method in NEEDED:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=5)
            assert isinstance(refused.value, grpc.Call)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    return "no: UNIMPLEMENTED"


@row("metrics on `metrics_port`, by everybody who reaches it")
def metrics_port(world: World) -> str:
    for name in ("plain", "mutual"):
        with urllib.request.urlopen(f"http://{world.server(name).metrics_address}/metrics", timeout=5) as reply:
            assert b"mixserve_serving 1.0" in reply.read()
    return "yes"


@row("any call on `metrics_port`")
def calls_on_metrics_port(world: World) -> str:
    address = world.server("plain").metrics_address
    for path in NEEDED:
        request = urllib.request.Request(f"http://{address}{path}", data=b"", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request, timeout=5)
    return "no: it answers GET with metrics, whatever the path"


@row("any user of the same machine, on loopback, without tokens and `client_ca`")
def loopback(world: World) -> str:
    server = world.server("plain")
    for method in NEEDED:
        assert status_of(server, method, None)[0] in ("OK", "INVALID_ARGUMENT")
    with world.client(server) as client:
        assert client.mixtures() == ("a", "b")
    return "yes"


@row("to serve an address that other machines can reach without TLS, or with neither tokens nor `client_ca`")
def open_address(world: World) -> str:
    from typer.testing import CliRunner

    config = write_mixture(world.folder)
    pair = world.made.server
    tls = f"tls: {{certificate: {pair.certificate}, key: {pair.key}}}"
    for server in ("", tls, f"tokens: {world.tokens.path}"):
        config.write_text(config.read_text().partition("server:")[0] + f"server: {{port: 0, {server}}}\n")
        ended = CliRunner().invoke(app, ["serve", str(config), "--host", "0.0.0.0"])
        assert ended.exit_code == 2
        assert "can be reached from other machines" in ended.stderr
    return "no: the server does not start, exit code 2"


@row("to serve it with `--insecure`")
def insecure(world: World) -> str:
    server = world.start("0.0.0.0:0", insecure=True)
    port = server.address.rpartition(":")[2]
    with MixClient.connect(f"127.0.0.1:{port}", patience_s=20) as client:
        client.session("s", mixture="a").close()
    return "yes"


@row("`unix:///path`: the same user, or root")
def unix(world: World) -> str:
    with world.client(world.server("socket")) as client:
        assert client.mixtures() == ("a", "b")
    assert words(list_mixtures(world.server("socket and tokens"), world.tokens["reader"])) == "yes"
    return "yes"


@row("`unix:///path` of a server with tokens, without one")
def unix_without_token(world: World) -> str:
    return words(list_mixtures(world.server("socket and tokens"), None))


def connect_as_nobody(folder: Path, name: str, kind: str) -> str:
    """What a process of another user prints that connects to a socket of `folder`. It works there from the start."""
    code = (
        f"import os, socket, sys; os.chdir(sys.argv[1]); there = socket.socket(socket.AF_UNIX, socket.{kind}); "
        "there.settimeout(20); os.setgid(65534); os.setuid(65534); there.connect(sys.argv[2]); print(there.recv(9))"
    )
    ended = subprocess.run([sys.executable, "-c", code, folder, name], capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


@row("`unix:///path`: another user of the machine")
def unix_of_others(world: World) -> str:
    needs_root()
    path = Path(world.server("socket").address.removeprefix("unix://"))
    world.folder.chmod(0o755)  # so that only the socket's own mode is left
    assert "PermissionError" in connect_as_nobody(path.parent, path.name, "SOCK_STREAM")
    return "no: the kernel refuses"


@row("to send a token to a socket that belongs to another user")
def socket_of_others(world: World) -> str:
    needs_root()
    server = world.start(f"unix://{world.folder}/theirs")
    os.chown(world.folder / "theirs", NOBODY, NOBODY)
    with world.client(server, token="mixserve_secret") as client:
        with pytest.raises(Unauthenticated, match="belongs to user") as refused:
            client.mixtures()
        assert "secret" not in str(refused.value)
    return "no: the client raises Unauthenticated"


@row("shared memory: the same user")
def shared_memory(world: World) -> str:
    memory = str(world.folder / "memory")
    with world.client(world.server("tokens"), token=world.tokens["reader-a"], shared_memory=memory) as client:
        assert len(next(client.batches(64, 1, mixture="a"))["id"]) == 64
        assert "shared memory" in client.transport
        with pytest.raises(PermissionDenied):
            client.get_batch_at(0, 64, 1, mixture="b")
    return "yes"


@row("shared memory: the same user without a token, if the server has tokens")
def shared_memory_without_token(world: World) -> str:
    memory = str(world.folder / "memory")
    with (
        world.client(world.server("tokens"), shared_memory=memory) as client,
        pytest.raises(Unauthenticated),
    ):
        client.get_batch_at(0, 64, 1, mixture="a")
    return "no: Unauthenticated"


@row("the path of the socket of shared memory, in the default folder, from another host")
def path_of_shared_memory(world: World) -> str:
    services = world.start(shared_memory=True)._services
    with acting_as(EVERYBODY, lambda: "ipv4:198.51.100.7:50000"):  # as the server does for a call from there
        told = decode_server(services.handle(methods.GET_SERVER, b"")).shared_memory
    with acting_as(EVERYBODY, lambda: "ipv4:127.0.0.1:50000"):
        assert decode_server(services.handle(methods.GET_SERVER, b"")).shared_memory
    return "yes" if told else "no: GetServer names none"


@row("shared memory: another user of the machine")
def shared_memory_of_others(world: World) -> str:
    needs_root()
    world.server("tokens")
    (path,) = (world.folder / "memory").glob("*/*.sock")
    assert "PermissionError" in connect_as_nobody(path.parent.parent, f"{path.parent.name}/{path.name}", SEQPACKET)
    path.parent.chmod(0o711)  # so that only the server's own look at the user is left
    path.chmod(0o777)
    try:
        said = connect_as_nobody(path.parent, path.name, SEQPACKET)
    finally:
        path.parent.chmod(0o700)
    assert said == "b''\n" or "ConnectionResetError" in said
    return "no: batches come over TCP"


SEQPACKET = "SOCK_SEQPACKET"


def batches_of(mixture: str, count: int = 1) -> bytes:
    first = mix_pb2.GetBatchAtRequest(mixture=mixture, key=KEY, size=64)
    return mix_pb2.StreamBatchesRequest(first=first, stride=64, count=count, reply_rows=64).SerializeToString()


@row("a bulk channel, with the token that `GetServer` has just given out")
def bulk_channel(world: World) -> str:
    server = world.server("tokens")
    with open_bulk(server, bearer(world.tokens["reader-a"])) as connection:
        (reply,) = stream_over_bulk(connection, 1, methods.STREAM_BATCHES, batches_of("a"))
    assert len(mix_pb2.Batch.FromString(reply).arrays) == 1
    with world.client(server, token=world.tokens["reader-a"]) as client:
        assert len(next(client.batches(64, 1, mixture="a"))["id"]) == 64
        assert client.transport.startswith("bulk ")
    return "yes"


def said_to(world: World, token: bytes) -> str:
    """What a server with tokens does after that hello."""
    with connect_bulk(world.server("tokens")) as connection:
        return "yes" if is_let_in(connection, token) else ENDS


ENDS = "no: the connection ends"


@row("a bulk channel, with a token that is wrong")
def bulk_wrong(world: World) -> str:
    right = bulk_token(world.server("tokens"), bearer(world.tokens["reader"]))
    assert said_to(world, right[:-1] + bytes([right[-1] ^ 1])) == ENDS
    assert said_to(world, bytes(32)) == ENDS
    assert said_to(world, right) == "yes"
    return ENDS


@row("a bulk channel, with a token that has opened another one")
def bulk_again(world: World) -> str:
    token = bulk_token(world.server("tokens"), bearer(world.tokens["reader"]))
    assert said_to(world, token) == "yes"
    return said_to(world, token)


@row("a bulk channel, with a token of `GetServer` that is older than 30 s")
def bulk_old(world: World) -> str:
    assert bulk._TOKEN_S == 30
    server, usual_s = world.server("tokens"), bulk._TOKEN_S
    bulk._TOKEN_S = 0.05
    try:
        token = bulk_token(server, bearer(world.tokens["reader"]))
        time.sleep(0.06)  # and so it is too old, however long this takes
        return said_to(world, token)
    finally:
        bulk._TOKEN_S = usual_s


def bulk_context(world: World, protocol: str | None, *, own: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.made.authority.ca))
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    if own:
        context.load_cert_chain(world.made.client.certificate, world.made.client.key)
    return context


def let_in_by(world: World, name: str, context: ssl.SSLContext | None) -> bool:
    """Whether a server with TLS lets a connection in whose token is right."""
    server, own = world.server(name), world.made.client
    credentials = grpc.ssl_channel_credentials(
        world.made.authority.ca.read_bytes(), own.key.read_bytes(), own.certificate.read_bytes()
    )
    token = bulk_token(server, channel=grpc.secure_channel(server.address, credentials))
    try:
        connection = connect_bulk(server, context)
    except (ssl.SSLError, ConnectionError):
        return False
    with connection:
        return is_let_in(connection, token)


@row("a bulk channel of a server with `tls`, without TLS or with another protocol in it")
def bulk_without_tls(world: World) -> str:
    assert let_in_by(world, "server", bulk_context(world, ALPN))
    for context in (None, bulk_context(world, None), bulk_context(world, "h2")):
        assert not let_in_by(world, "server", context)
    return ENDS


@row("a bulk channel of a server with `client_ca`, without a certificate")
def bulk_without_certificate(world: World) -> str:
    assert let_in_by(world, "mutual", bulk_context(world, ALPN, own=True))
    return "yes" if let_in_by(world, "mutual", bulk_context(world, ALPN)) else ENDS


@row("a server at the port of bulk channels with a certificate of another authority, or for another host")
def bulk_of_others(world: World) -> str:
    for other in ("stranger", "elsewhere"):
        server = world.start(tls=ServerTls(world.made.server.certificate, world.made.server.key))
        assert server._bulk is not None
        door, theirs = server._bulk._door, world.server(other)._bulk
        assert theirs is not None
        own_port, door.port = door.port, theirs.port  # as if they listened there
        with world.client(server, tls=world.made.authority.ca) as client, lines_of("mixserve_client") as lines:
            assert len(next(client.batches(64, 1, mixture="a"))["id"]) == 64
            assert client.transport == f"grpc {server.address}"
            (line,) = lines
            assert "CERTIFICATE_VERIFY_FAILED" in line
        door.port = own_port
        with world.client(server, tls=world.made.authority.ca) as client:
            next(client.batches(64, 1, mixture="a"))
            assert client.transport.startswith("bulk ")
    return "no: the client says no hello, and batches come over gRPC"


@row("any call but streams of batches over a bulk channel")
def others_over_bulk(world: World) -> str:
    with open_bulk(world.server("plain")) as connection:
        for number, method in enumerate(method for method in NEEDED if method not in STREAMS):
            assert isinstance(error_over_bulk(connection, number, method, b""), InvalidRequest)
        assert error_over_bulk(connection, 99, methods.STREAM_BATCHES, batches_of("a")) is None
    return "no: InvalidRequest"


@row("a mixture that is not in the token's list, over a bulk channel")
def mixture_over_bulk(world: World) -> str:
    with open_bulk(world.server("tokens"), bearer(world.tokens["reader-a"])) as connection:
        said = list[str]()
        for number, name in enumerate("bz"):
            refused = error_over_bulk(connection, number, methods.STREAM_BATCHES, batches_of(name))
            assert isinstance(refused, PermissionDenied)
            said.append(str(refused).replace(f"'{name}'", "it"))
        assert said[0] == said[1]
        assert error_over_bulk(connection, 9, methods.STREAM_BATCHES, batches_of("a")) is None
    return "no: PermissionDenied"


@row("to open a bulk channel through the socket of shared memory: the same user, with the token of `GetServer`")
def bulk_through_shared_memory(world: World) -> str:
    server = world.server("tokens")
    (path,) = (world.folder / "memory").glob("*/*.sock")
    right = bulk_token(server, bearer(world.tokens["reader"]))
    for token in (bytes(32), right):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with mine, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.connect(str(path))
            socket.send_fds(asking, [SLOT_PACKET.pack(CHANNEL_SIZE, 0)], [theirs.fileno()])
            assert asking.recv(100) == SLOT_ID.pack(1)
            theirs.close()
            mine.settimeout(20)
            assert is_let_in(mine, token) == (token == right)
    return "yes"


@row("a mixture that does not exist, with a token that is for others")
def mixtures_alike(world: World) -> str:
    said = list[str]()
    with world.client(world.server("tokens"), token=world.tokens["reader-a"]) as client:
        for name in ("b", "z"):
            with pytest.raises(PermissionDenied) as refused:
                client.get_batch_at(0, 4, 1, mixture=name)
            said.append(str(refused.value).replace(f"'{name}'", "it"))
    assert said[0] == said[1]
    return "no: PermissionDenied, in the same words"


@row("a token that was just added to the file")
def added(world: World) -> str:
    with own_tokens(world) as (server, tokens):
        return words(list_mixtures(server, tokens.add("new", "reader")))


@row("a token that is not in the file any more: new calls")
def revoked(world: World) -> str:
    with own_tokens(world) as (server, tokens):
        assert words(list_mixtures(server, tokens["mine"])) == "yes"
        tokens.write("mine")
        begun = time.monotonic()
        while (found := words(list_mixtures(server, tokens["mine"]))) == "yes":
            assert time.monotonic() - begun < 2
        return found


@row("a token that is not in the file any more: streams that run, over gRPC or a bulk channel")
def revoked_stream(world: World) -> str:
    with own_tokens(world) as (server, tokens), streams(server, tokens) as (call, replies):
        tokens.write("mine")
        assert ends_with(call, 3)[0] == "UNAUTHENTICATED"
        assert isinstance(ends_over_bulk_with(replies, 3), Unauthenticated)
    return "no: they end with Unauthenticated within 2 s"


@contextmanager
def streams(server: MixServer, tokens: Tokens) -> Iterator[tuple[Iterator[bytes], Iterator[bytes]]]:
    """One over gRPC and one over a bulk channel, that run."""
    with (
        endless_stream(server, tokens["mine"], "a") as call,
        open_bulk(server, bearer(tokens["mine"])) as connection,
    ):
        replies = stream_over_bulk(connection, 1, methods.STREAM_BATCHES, batches_of("a", 1 << 20))
        next(call)
        next(replies)
        yield call, replies


def ends_over_bulk_with(replies: Iterator[bytes], limit_s: float) -> MixserveError | None:
    deadline = time.monotonic() + limit_s
    try:
        for _ in replies:
            assert time.monotonic() < deadline, "it goes on"
    except MixserveError as error:
        return error
    return None


@row("a token that is not in the file any more: streams of reflection that are open")
def revoked_reflection(world: World) -> str:
    over = threading.Event()

    def asked() -> Iterator[bytes]:
        yield reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        over.wait(20)

    with own_tokens(world) as (server, tokens), grpc.insecure_channel(server.address) as made:
        call = made.stream_stream(REFLECTION)(asked(), metadata=bearer(tokens.add("second", "admin")), timeout=20)
        next(call)
        tokens.write("second")
        assert ends_with(call, 3)[0] == "UNAUTHENTICATED"
        over.set()
    return "no: they end with Unauthenticated within 2 s"


@row("a token that is not in the file any more: bulk channels that are open")
def revoked_channel(world: World) -> str:
    with own_tokens(world) as (server, tokens), open_bulk(server, bearer(tokens["mine"])) as connection:
        assert error_over_bulk(connection, 1, methods.STREAM_BATCHES, batches_of("a")) is None
        tokens.write("mine")
        look(server)
        for number in (2, 3):
            refused = error_over_bulk(connection, number, methods.STREAM_BATCHES, batches_of("a"))
            assert isinstance(refused, Unauthenticated)
    return "no: Unauthenticated for each request"


@row("a token that is not in the file any more: a single call that runs")
def revoked_call(world: World) -> str:
    answers = list[object]()
    with own_tokens(world) as (server, tokens), world.client(server, token=tokens["mine"]) as client:
        session = client.session("slow", mixture="a")
        BEGUN.clear()
        MAY_END.clear()
        calling = threading.Thread(target=lambda: answers.append(session.compute_statistics(0, 4, 1)))
        calling.start()
        assert BEGUN.wait(5)
        tokens.write("mine")
        look(server)
        assert words(list_mixtures(server, tokens["mine"])) == "no: Unauthenticated"
        MAY_END.set()
        calling.join(20)
        with suppress(Unauthenticated):
            session.close()
    assert answers == [{"rows": 4}]
    return "yes"


@row("a token whose mixture was taken away: streams that run, over gRPC or a bulk channel")
def other_mixtures(world: World) -> str:
    with own_tokens(world) as (server, tokens), streams(server, tokens) as (call, replies):
        tokens.rights["mine"] = "trainer", ["b"]
        tokens.write()
        assert ends_with(call, 3)[0] == "PERMISSION_DENIED"
        assert isinstance(ends_over_bulk_with(replies, 3), PermissionDenied)
    return "no: they end with PermissionDenied within 2 s"


@row("the tokens of a file that is broken or gone now")
def broken(world: World) -> str:
    with lines_of("mixserve", logging.ERROR) as errors, own_tokens(world) as (server, tokens):
        for number, spoil in enumerate(
            (lambda: replace_file(tokens.path, "tokens: ["), lambda: tokens.path.unlink()), 1
        ):
            spoil()
            for _ in range(3):
                look(server)
                assert words(list_mixtures(server, tokens["mine"])) == "yes"
            assert len(errors) == number
    return "yes"


@row("the sixth wrong token of a host within a minute")
def sixth_failure(world: World) -> str:
    with own_tokens(world) as (server, _):
        for _ in range(5):
            list_mixtures(server, "mixserve_wrong")
        begun = time.monotonic()
        found = words(list_mixtures(server, "mixserve_wrong"))
        assert time.monotonic() - begun >= 0.5
    return f"{found}, after 0.5 s and up to 2 s"


@row("a right token of a host with many failures")
def right_after_failures(world: World) -> str:
    with own_tokens(world) as (server, tokens):
        for _ in range(5):
            list_mixtures(server, "mixserve_wrong")
        failing = [threading.Thread(target=list_mixtures, args=(server, "mixserve_wrong")) for _ in range(3)]
        for thread in failing:  # for 0.5 s, 1 s and 2 s
            thread.start()
        begun = time.monotonic()
        found = words(list_mixtures(server, tokens["mine"]))
        assert any(thread.is_alive() for thread in failing)
        assert time.monotonic() - begun < 2
    for thread in failing:  # which the end of the server has answered
        thread.join()
    return found


@row("connections that exist, when `client_ca` is replaced")
def new_authority(world: World) -> str:
    made, client_ca = world.made, world.folder / "client-ca.pem"
    client_ca.write_bytes(made.authority.ca.read_bytes())
    server = world.start(tls=ServerTls(made.server.certificate, made.server.key, client_ca))
    tls = TlsOptions(made.authority.ca, made.client.certificate, made.client.key)
    with world.client(server, tls=tls) as client, world.client(server, tls=tls) as other:
        assert client.mixtures() == ("a", "b")
        replace_file(client_ca, made.other.ca.read_text())
        with pytest.raises(Unauthenticated, match="refuses the certificate"):
            other.mixtures()
        assert client.mixtures() == ("a", "b")
    return "yes"
