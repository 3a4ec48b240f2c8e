"""TLS at both ends, with real certificates: right ones serve, and wrong ones are refused at once, with the reason."""

import asyncio
import logging
import pickle
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mixserve import MixDataSourcesNode, MixServer, ServerTls, serve
from mixserve.access.certificates import Certificates
from mixserve_client import AsyncMixClient, InvalidRequest, MixClient, TlsOptions, Unauthenticated, Unavailable
from mixserve_client.transport import credentials, diagnosis
from tests.certificates import NEEDS_OPENSSL, Made, Pair
from tests.ports import free_ports
from tests.waiting import wait_until

pytestmark = NEEDS_OPENSSL

DEADLINE_S = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.in_folder(tmp_path_factory.mktemp("certificates"))


def start(
    node: MixDataSourcesNode, pair: Pair, client_ca: Path | None = None, address: str = "127.0.0.1:0"
) -> MixServer:
    tls = ServerTls(pair.certificate, pair.key, client_ca)
    return serve({"train": node}, address, tls=tls, shared_memory=False)


@pytest.fixture(scope="module")
def secure(node: MixDataSourcesNode, made: Made) -> Iterator[MixServer]:
    with start(node, made.server) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(node: MixDataSourcesNode, made: Made) -> Iterator[MixServer]:
    with start(node, made.server, made.authority.ca) as running:
        yield running


def connect(server: MixServer, tls: TlsOptions | Path | bool | None, **options: float) -> MixClient:
    return MixClient.connect(server.address, tls=tls, shared_memory=False, **{"patience_s": 60, **options})


def refusal(server: MixServer, tls: TlsOptions | Path | bool | None) -> str:
    """The message of the error that a client gets, and gets at once."""
    with connect(server, tls) as client:
        begun = time.monotonic()
        with pytest.raises(Unauthenticated) as refused:
            client.mixtures()
        assert time.monotonic() - begun < 5
        with pytest.raises(Unauthenticated):  # and again, on the same channel
            client.get_batch_at(0, 4, key=1)
    assert str(refused.value).startswith(f"{server.address}: ")
    return str(refused.value)


def test_a_client_that_trusts_the_authority_reads(secure: MixServer, server: MixServer, made: Made) -> None:
    with connect(secure, made.authority.ca) as client, connect(server, None) as plain:
        assert client.mixtures() == plain.mixtures()
        batches, expected = client.batches(4, key=1), plain.batches(4, key=1)
        assert (next(batches)["id"] == next(expected)["id"]).all()
        again = pickle.loads(pickle.dumps(client))
        with again:
            assert again.mixtures() == plain.mixtures()


def test_a_name_resolves_to_the_server(secure: MixServer, made: Made) -> None:
    port = secure.address.rpartition(":")[2]
    with MixClient.connect(f"dns:///localhost:{port}", tls=made.authority.ca, patience_s=20) as client:
        assert client.mixtures()


def test_a_socket_may_speak_tls_too(node: MixDataSourcesNode, made: Made, tmp_path: Path) -> None:
    with start(node, made.server, address=f"unix://{tmp_path}/socket") as server:
        with connect(server, made.authority.ca) as client:
            assert client.mixtures()
        with connect(server, None, patience_s=0.3) as client, pytest.raises(Unavailable):  # as gRPC says it
            client.mixtures()


def test_the_client_for_asyncio_says_the_reason_too(secure: MixServer) -> None:
    async def ask() -> None:
        async with AsyncMixClient.connect(secure.address, patience_s=60) as client:
            await client.mixtures()

    with pytest.raises(Unauthenticated, match="the server speaks TLS"):
        asyncio.run(ask())


def test_a_reader_of_batches_says_the_reason_too(secure: MixServer, made: Made) -> None:
    with connect(secure, made.authority.ca) as client:
        batches = pickle.dumps(client.batches(4, key=1))
    with connect(secure, made.other.ca) as client, pytest.raises(Unauthenticated, match="signed by CN=Test Authority"):
        next(client.batches(4, key=1, mixture="train"))
    assert next(pickle.loads(batches))["id"].shape == (4,)


def test_a_certificate_that_the_client_does_not_trust_is_named(secure: MixServer, made: Made) -> None:
    message = refusal(secure, made.other.ca)
    assert "of CN=server" in message
    assert "signed by CN=Test Authority" in message
    assert str(made.other.ca) in message
    assert "the authorities that gRPC brings" in refusal(secure, True)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("expired", ["CN=old", "expired on 2001-01-01 00:00:00 UTC", "clock says 20"]),
        ("early", ["CN=early", "not valid yet before 2080-01-01 00:00:00 UTC"]),
        ("elsewhere", ["data.example, 192.0.2.7", "not for 127.0.0.1"]),
        ("alone", ["CN=alone", "self-signed"]),
        ("stranger", ["CN=stranger", "signed by CN=Other Authority"]),
    ],
)
def test_what_is_wrong_with_a_servers_certificate_is_said(
    node: MixDataSourcesNode, made: Made, pair: str, words: list[str]
) -> None:
    with start(node, getattr(made, pair)) as server:
        message = refusal(server, made.authority.ca)
    for word in words:
        assert word in message


def test_a_self_signed_certificate_may_be_trusted_by_itself(node: MixDataSourcesNode, made: Made) -> None:
    with start(node, made.alone) as server, connect(server, made.alone.certificate) as client:
        assert client.mixtures()


def test_a_server_may_require_certificates_of_clients(mutual: MixServer, made: Made) -> None:
    ca = made.authority.ca
    with connect(mutual, TlsOptions(ca, made.client.certificate, made.client.key)) as client:
        assert client.mixtures()
    assert "asks for a certificate of the client's" in refusal(mutual, ca)
    for pair in (made.stranger, made.expired, made.alone):
        message = refusal(mutual, TlsOptions(ca, pair.certificate, pair.key))
        assert f"refuses the certificate of the client's, {pair.certificate}" in message


def test_one_side_without_tls_is_named(secure: MixServer, mutual: MixServer, server: MixServer, made: Made) -> None:
    assert "the client speaks TLS, and the server does not" in refusal(server, made.authority.ca)
    for running in (secure, mutual):
        assert "the server speaks TLS, and the client does not" in refusal(running, None)


def test_a_server_that_is_not_there_is_waited_for(node: MixDataSourcesNode, made: Made) -> None:
    port = free_ports()
    for tls in (made.authority.ca, None):
        with MixClient.connect(f"127.0.0.1:{port}", tls=tls, patience_s=0.2) as client, pytest.raises(Unavailable):
            client.mixtures()
    with MixClient.connect(f"127.0.0.1:{port}", tls=made.authority.ca, patience_s=DEADLINE_S) as client:
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(client.mixtures()))
        asking.start()
        with start(node, made.server, address=f"127.0.0.1:{port}"):
            asking.join(DEADLINE_S)
            assert answers


class Listener:
    """Answers each connection as `answer` says, and ends it."""

    def __init__(self, answer: Callable[[socket.socket], None]):
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections = 0
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError):
                self._answer(connection)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.mark.parametrize("tls", [True, False])
def test_a_proxy_without_a_server_behind_it_is_waited_for(made: Made, tls: bool) -> None:
    """It accepts connections, also with TLS, and ends them: a server will be there in a moment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.server.certificate, made.server.key)

    def end(connection: socket.socket) -> None:
        if tls:
            context.wrap_socket(connection, server_side=True).close()

    proxy = Listener(end)
    with (
        closing(proxy),
        MixClient.connect(proxy.address, tls=made.authority.ca, patience_s=1) as client,
        pytest.raises(Unavailable),
    ):
        client.mixtures()
    assert proxy.connections


def test_a_server_that_says_nothing_costs_no_more_than_the_calls_time(made: Made) -> None:
    silent = Listener(lambda connection: time.sleep(30))
    with closing(silent), MixClient.connect(silent.address, tls=made.authority.ca, patience_s=60) as client:
        begun = time.monotonic()
        with pytest.raises((Unavailable, TimeoutError)):
            client.get_batch_at(0, 4, key=1, timeout_s=1)
        assert time.monotonic() - begun < 3


def test_what_grpc_accepts_is_not_blamed(secure: MixServer, mutual: MixServer, server: MixServer, made: Made) -> None:
    """If a call fails for another reason, and the server is well a moment later."""
    leaf = TlsOptions(made.server.certificate)  # no authority, but in the file
    for running, tls in (
        (secure, TlsOptions(made.authority.ca)),
        (secure, leaf),
        (mutual, TlsOptions(made.authority.ca, made.client.certificate, made.client.key)),
        (server, None),
    ):
        with connect(running, tls) as client:
            assert client.mixtures()
        assert diagnosis.Diagnosis(running.address, tls).reason("Socket closed", 5) is None


def test_the_reason_is_looked_for_once_in_two_seconds(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(diagnosis, "_find", lambda *arguments: looked.append(arguments))
    asked = diagnosis.Diagnosis("127.0.0.1:1", TlsOptions(made.authority.ca))
    for _ in range(5):
        assert asked.reason("Socket closed", None) is None
    assert len(looked) == 1
    assert asked.reason("Connection refused", None) is None
    assert diagnosis.Diagnosis("unix:///tmp/x", None).reason("Socket closed", None) is None


def test_a_client_uses_its_new_certificate(
    mutual: MixServer, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not what does not fit."""
    monkeypatch.setattr(credentials, "_LOOK_EVERY_S", 0.1)
    pair = made.client.copy_to(tmp_path)
    with connect(mutual, TlsOptions(made.authority.ca, pair.certificate, pair.key)) as client:
        assert client.mixtures()
        shutil.copyfile(made.stranger.key, pair.key)  # half of a change
        begun = time.monotonic()
        while time.monotonic() - begun < 0.3:  # it looks every 0.1 s
            assert client.mixtures()
        made.stranger.copy_to(tmp_path)

        def is_refused() -> bool:
            try:
                client.mixtures()
            except Unauthenticated:
                return True
            return False

        assert wait_until(is_refused, "that the client is refused") < 5
        made.client.copy_to(tmp_path)
        assert wait_until(lambda: not is_refused(), "that the client is served again") < 5
    with pytest.raises(InvalidRequest, match="do not fit each other"):
        connect(mutual, TlsOptions(made.authority.ca, made.client.certificate, made.server.key)).mixtures()


def test_a_link_to_new_files_is_followed(made: Made, tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: a link to a folder, which is replaced at once."""
    for name, pair in (("one", made.server), ("two", made.client)):
        (tmp_path / name).mkdir()
        pair.copy_to(tmp_path / name)
    (tmp_path / "data").symlink_to("one")
    certificates = Certificates(ServerTls(tmp_path / "data" / "tls.pem", tmp_path / "data" / "tls.key"))
    first = certificates.pair
    assert first.certificate == made.server.certificate.read_bytes()
    assert certificates.pair is first
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "data")
    changed = certificates.pair
    assert changed is not first
    assert changed.certificate == made.client.certificate.read_bytes()
    assert changed.key == made.client.key.read_bytes()
    assert certificates.pair is changed


def test_files_that_do_not_fit_are_not_used(
    secure: MixServer, made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = made.server.copy_to(tmp_path)
    certificates = Certificates(ServerTls(pair.certificate, pair.key, made.authority.ca))
    first = certificates.pair
    for spoil in (
        lambda: shutil.copyfile(made.client.key, pair.key),
        lambda: pair.certificate.write_bytes(made.client.certificate.read_bytes()[:200]),
        lambda: pair.key.unlink(),
    ):
        caplog.clear()
        spoil()
        with caplog.at_level(logging.ERROR):
            assert certificates.pair is first
            assert certificates.pair is first
        assert len(caplog.records) == 1
        assert "goes on with the certificate that it had" in caplog.text
    made.client.copy_to(tmp_path)
    changed = certificates.pair
    assert changed is not first
    assert changed.key == made.client.key.read_bytes()


def encrypt(made: Made, folder: Path) -> Path:
    from tests.certificates import _openssl

    _openssl("ec", "-in", made.server.key, "-aes128", "-passout", "pass:secret", "-out", folder / "encrypted.key")
    return folder / "encrypted.key"


def test_what_is_wrong_at_the_start_is_said_with_the_file(node: MixDataSourcesNode, made: Made, tmp_path: Path) -> None:
    half = tmp_path / "half.pem"
    half.write_bytes(made.server.certificate.read_bytes()[:200])
    chain = tmp_path / "chain.pem"
    chain.write_bytes(made.authority.ca.read_bytes() + made.server.certificate.read_bytes())
    empty = tmp_path / "empty.pem"
    empty.touch()
    weak = made.authority.issue("weak", bits=1024)
    certificate, key, ca = made.server.certificate, made.server.key, made.authority.ca
    for options, words in (
        ((certificate, made.client.key), f"key: {made.client.key} is not the key of {certificate}"),
        ((chain, key), "the first certificate in that file must be the server's own"),
        ((half, key), f"certificate: {half} has a damaged certificate"),
        ((weak.certificate, weak.key), f"{weak.certificate} with {weak.key} is refused by OpenSSL"),
        ((empty, key), f"certificate: {empty} has no certificate in PEM"),
        ((certificate, certificate), f"key: {certificate} has no private key in PEM"),
        ((certificate, encrypt(made, tmp_path)), "is encrypted"),
        ((tmp_path / "none.pem", key), "none.pem cannot be read: No such file or directory"),
        ((certificate, key, half), f"client_ca: {half} has a damaged certificate"),
        ((certificate, key, key), f"client_ca: {key} has no certificate in PEM"),
        ((certificate, key, tmp_path), f"client_ca: {tmp_path} cannot be read"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            serve({"train": node}, tls=ServerTls(*options))
    for given in (True, "server.pem", {"certificate": "a"}, {"certificate": 1, "key": "b"}, {"cert": "a", "key": "b"}):
        with pytest.raises(ValueError, match="tls"):
            serve({"train": node}, tls=given)  # pyright: ignore[reportArgumentType]
    with serve({"train": node}, tls={"certificate": certificate, "key": key, "client_ca": ca}) as server:
        assert "asks for a certificate" in refusal(server, ca)


def test_a_chain_is_sent_whole(node: MixDataSourcesNode, made: Made, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_bytes(made.server.certificate.read_bytes() + made.authority.ca.read_bytes())
    with start(node, Pair(chain, made.server.key)) as server, connect(server, made.authority.ca) as client:
        assert client.mixtures()


def test_the_five_lines_of_the_page_make_certificates(node: MixDataSourcesNode, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
    (lines,) = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "openssl" in block]
    assert len(lines.splitlines()) == 5
    subprocess.run(["bash", "-ec", lines], cwd=tmp_path, check=True, capture_output=True)
    with (
        start(node, Pair(tmp_path / "server.pem", tmp_path / "server.key")) as server,
        connect(server, tmp_path / "ca.pem") as client,
    ):
        assert client.mixtures()
