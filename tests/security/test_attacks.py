"""What an attacker found once: each is refused, bounded, or kept out of the log."""

import logging
import os
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from mixserve import MixDataSourcesNode, MixServer, ServerTls, serve
from mixserve.access import tokens as token_files
from mixserve.access.audit import Refusals
from mixserve.access.certificates import Certificates
from mixserve.access.entries import digest_of, new_token
from mixserve.access.tokens import TokenFile
from mixserve.serving import certificates as server_certificates
from mixserve.serving.grpc_log import limit_grpc_log
from mixserve.serving.guard import Guard
from mixserve_client import InvalidRequest, MixClient, ServerFault, Unauthenticated, Unavailable
from mixserve_client.schema.certificate import decode
from mixserve_client.transport import credentials
from mixserve_client.transport.endpoints import check_may_have_token
from mixserve_client.wire import methods
from tests.certificates import NEEDS_OPENSSL, Made
from tests.hostile import Answers, hostile_server
from tests.tokens.calling import bearer, look
from tests.tokens.files import Tokens

DEADLINE_S = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.in_folder(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.1:50051",
        "data.example:50051",
        "dns:///data.example:1",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "unix-abstract:x",
        # gRPC connects to what stands before # and ?, and asks the name server that stands after dns://.
        "dns:10.0.0.1:1#/localhost:1",
        "dns:10.0.0.1:1?/localhost:1",
        "ipv4:10.0.0.1:1#/127.0.0.1:1",
        "dns://10.0.0.1/localhost:1",
        "dns://localhost:1",
    ],
)
def test_no_token_is_sent_in_plain_text_to_others(target: str) -> None:
    with (
        MixClient.connect(target, token=new_token(), shared_memory=False, patience_s=1) as client,
        pytest.raises(Unauthenticated, match=r"no token is sent to .* without TLS"),
    ):
        client.mixtures()


def test_no_token_is_sent_to_a_socket_that_grpc_finds_elsewhere(tmp_path: Path) -> None:
    """gRPC decodes %41, so that the owner of another file would be looked at."""
    target = f"unix://{tmp_path}/%41"
    for tls in (None, True):
        with (
            MixClient.connect(target, token=new_token(), tls=tls, shared_memory=False, patience_s=1) as client,
            pytest.raises(Unauthenticated, match="must not have the character %"),
        ):
            client.mixtures()


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.1:1", "127.9.0.1:1", "[::1]:1", "dns:///localhost:1"])
def test_this_machine_may_have_a_token(target: str) -> None:
    check_may_have_token(target)


def test_headers_that_grpc_cannot_read_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        limit_grpc_log()
    logger = logging.getLogger("grpc._cython.cygrpc")
    logger.error("Invalid encoding on %r", b"Bearer secret\xa0")
    logger.error("something else")
    assert caplog.messages == ["something else"]


def test_a_server_that_is_not_ours_writes_nothing_to_the_terminal() -> None:
    def fail(*_: object) -> list[bytes]:
        raise ValueError("\x1b[2J\x9b31m\u202e\r\bwiped\nsecond")

    with (
        hostile_server(Answers(fail)) as address,
        MixClient.connect(address, shared_memory=False, patience_s=1) as client,
        pytest.raises(ServerFault, match="wiped\nsecond") as raised,
    ):
        client.mixtures()
    assert str(raised.value).replace("\n", "").isprintable()
    assert r"\x1b[2J\x9b31m\u202e\r\x08" in str(raised.value)


@NEEDS_OPENSSL
def test_a_certificate_writes_nothing_to_the_terminal(made: Made) -> None:
    der = ssl.PEM_cert_to_DER_cert(made.server.certificate.read_text())
    assert der.count(since := b"000101000000Z") == 1
    assert decode(der.replace(since, b"\x1b[2J\r0101000Z")).not_before.isprintable()


def test_two_strangers_have_lines_of_their_own_and_no_call_is_left_uncounted(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    refusals = Refusals(lambda: now)
    caplog.set_level(logging.INFO, logger="mixserve.audit")
    for port in range(50):
        refusals.add("Unauthenticated", "unknown", f"ipv4:10.0.0.66:{port + 1}", "GetMixture", "no token")
        refusals.add("Unauthenticated", "unknown", f"ipv4:10.0.0.7:{port + 1}", "GetMixture", "no token")
    now += 2
    refusals.report()
    refusals.report()
    counted = [
        (line.split("peer=ipv4:")[1].split(":")[0], line.split("calls=")[1].split()[0]) for line in caplog.messages
    ]
    assert counted == [("10.0.0.66", "1"), ("10.0.0.7", "1"), ("10.0.0.66", "49"), ("10.0.0.7", "49")]


def test_no_repr_has_the_digest_of_a_token(tmp_path: Path) -> None:
    token, path = new_token(), tmp_path / "tokens.yaml"
    path.write_text(f"tokens: [{{name: one, role: reader, sha256: {digest_of(token).hex()}}}]\n")
    admission = Guard(TokenFile(path)).admit(methods.LIST_MIXTURES, bearer(token))
    for thing in (admission, token_files.read_tokens(path)):
        assert "one" in repr(thing)
        assert repr(digest_of(token))[2:20] not in repr(thing)
        assert digest_of(token).hex()[:10] not in repr(thing)


def test_an_empty_token_file_revokes_nobody(tmp_path: Path) -> None:
    token, path = new_token(), tmp_path / "tokens.yaml"
    path.write_text(f"tokens: [{{name: one, role: reader, sha256: {digest_of(token).hex()}}}]\n")
    found = TokenFile(path, clock=lambda: time.monotonic() * 1e6)
    for content, known in (("", True), ("\n", True), ("{tokens: []}\n", False)):
        path.write_text(content)
        assert (found.find(token) is not None) is known
    assert token_files.read_tokens(path) == ()


def test_a_token_file_that_is_being_written_ends_no_trainer(
    node: MixDataSourcesNode, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_LOOK_EVERY_S", 0.0)
    tokens, token_file = Tokens(tmp_path / "tokens.yaml", {"one": ("reader", None)}), tmp_path / "token"
    token_file.write_text("")
    with serve({"train": node}, tokens=tokens.path, shared_memory=False) as server:
        with (
            MixClient.connect(server.address, token_file=token_file, patience_s=1) as client,
            pytest.raises(InvalidRequest, match="got 0 characters"),  # there is no token yet
        ):
            client.mixtures()
        token_file.write_text(tokens["one"])
        with MixClient.connect(server.address, token_file=token_file, patience_s=1) as client:
            assert client.mixtures() == ("train",)
            for written in (b"", b"\xff\xfe", b"two words", b"x" * (2 << 20), None):
                token_file.unlink() if written is None else token_file.write_bytes(written)
                caplog.clear()
                for _ in range(3):
                    assert client.mixtures() == ("train",)
                (line,) = caplog.messages
                assert line.endswith("the client goes on with the token that it had")
            token_file.write_text(tokens.add("two", "reader"))
            tokens.write("one")
            assert client.mixtures() == ("train",)
            token_file.write_text("")
            tokens.write("one", "two")
            look(server)
            with pytest.raises(Unauthenticated):
                client.mixtures()


@NEEDS_OPENSSL
def test_pipes_are_no_files_of_secrets(made: Made, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"key: .*pipe must be a file"):
        Certificates(ServerTls(made.server.certificate, pipe))
    with (
        MixClient.connect("127.0.0.1:1", token_file=pipe, patience_s=1) as client,
        pytest.raises(InvalidRequest, match=r"token_file: .*pipe must be a file"),
    ):
        client.mixtures()


@NEEDS_OPENSSL
def test_a_key_that_grpc_cannot_serve_is_refused(made: Made, tmp_path: Path) -> None:
    certificate, key = tmp_path / "ed.pem", tmp_path / "ed.key"
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=ed", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    with pytest.raises(ValueError, match="has a key that gRPC cannot serve: make one of RSA, or of the curves P-256"):
        Certificates(ServerTls(certificate, key))
    Certificates(ServerTls(made.server.certificate, made.server.key))


def resumed(server: MixServer, made: Made) -> bool:
    """Whether a client of TLS 1.2 may go on with its session, without showing its certificate again."""
    host, _, port = server.address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(made.authority.ca)
    context.load_cert_chain(made.client.certificate, made.client.key)
    context.set_alpn_protocols(["h2"])
    session = None
    for _ in range(2):
        with (
            socket.create_connection((host, int(port)), DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname=host, session=session) as secured,
        ):
            secured.recv(1)
            session, was_reused = secured.session, secured.session_reused
    return bool(was_reused)


@NEEDS_OPENSSL
def test_sessions_of_clients_are_not_resumed_for_long(
    node: MixDataSourcesNode, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a certificate that has expired would still open connections."""
    tls = ServerTls(made.server.certificate, made.server.key, made.authority.ca)
    with serve({"train": node}, "127.0.0.1:0", tls=tls, shared_memory=False) as server:
        assert resumed(server, made)
        monkeypatch.setattr(server_certificates, "_RESUMED_S", 0.0)
        assert not resumed(server, made)


@NEEDS_OPENSSL
def test_what_disturbs_a_client_that_was_served_is_waited_out(node: MixDataSourcesNode, made: Made) -> None:
    """A proxy in plain text for a moment, for example; a client that was never served is told at once."""
    tls = ServerTls(made.server.certificate, made.server.key)
    with serve({"train": node}, "127.0.0.1:0", tls=tls, shared_memory=False) as server:
        address = server.address
        client = MixClient.connect(address, tls=made.authority.ca, patience_s=2, shared_memory=False)
        assert client.mixtures() == ("train",)
    with serve({"train": node}, address, shared_memory=False):
        with pytest.raises(Unavailable, match="the server does not"):
            client.mixtures()
        with (
            MixClient.connect(address, tls=made.authority.ca, patience_s=60, shared_memory=False) as other,
            pytest.raises(Unauthenticated, match="the server does not"),
        ):
            other.mixtures()
    with serve({"train": node}, address, tls=tls, shared_memory=False), client:
        assert client.mixtures() == ("train",)
