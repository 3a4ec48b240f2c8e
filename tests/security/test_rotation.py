"""Certificates, authorities and tokens are all replaced while trainers read: no error, and the new ones are used."""

import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mixserve import MixServer, ServerTls
from mixserve_client import MixClient, TlsOptions, Unauthenticated
from mixserve_client.schema.files import version_of
from mixserve_client.transport.bulk import BulkTransport
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.workers import WorkersTransport
from tests.certificates import NEEDS_OPENSSL, Authority, Pair
from tests.security.world import World
from tests.tokens.files import Tokens, replace_file

pytestmark = NEEDS_OPENSSL

DEADLINE_S, LIMIT_S = 20, 5
TRAINERS = 4


class Trainer(threading.Thread):
    """Reads batches and opens sessions, until it is told to end or fails."""

    def __init__(self, number: int, connect: Callable[[], MixClient], ending: threading.Event):
        super().__init__()
        self.number, self._connect, self._ending = number, connect, ending
        self.read, self.error, self.files = 0, None, None
        self.start()

    error: Exception | None
    files: object  # the versions of the files that its channel was opened with

    def run(self) -> None:
        try:
            with self._connect() as client, client.batches(8, key=self.number, mixture="a") as batches:
                outer = client._caller.transport
                assert isinstance(outer, WorkersTransport)
                bulk = outer._shared
                assert isinstance(bulk, BulkTransport)
                transport = bulk._inner
                assert isinstance(transport, GrpcTransport)
                while not self._ending.is_set():
                    next(batches)
                    client.session(f"of-{self.number}", mixture="b").close()  # whose audit lines say which token it has
                    assert transport._channel is not None
                    self.read, self.files = self.read + 1, transport._channel.version
        except Exception as error:
            self.error = error


class Audit(logging.Handler):
    """Which token each session was opened with last."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.who = dict[str, str]()

    def emit(self, record: logging.LogRecord) -> None:
        event = record.__dict__["audit"]
        if event["event"] == "session-opened":
            self.who[event["session"]] = event["who"]


def serial_of(certificate: bytes) -> str:
    """The serial number of a certificate in PEM."""
    command = ["openssl", "x509", "-noout", "-serial"]
    return subprocess.run(command, input=certificate, capture_output=True, check=True).stdout.decode()


def serial_at(server: MixServer, own: Pair) -> str:
    """The serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(own.certificate, own.key)
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as secured:
        found = secured.getpeercert(binary_form=True)
    assert found is not None
    return serial_of(ssl.DER_cert_to_PEM_cert(found).encode())


def wait_until(condition: Callable[[], bool], trainers: list[Trainer]) -> float:
    """How long it took. All trainers must be well."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < DEADLINE_S
        assert [trainer.error for trainer in trainers] == [None] * len(trainers)
        time.sleep(0.02)
    return time.monotonic() - begun


def test_all_is_replaced_while_four_trainers_read(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new", "New Authority")
    for folder in ("server", "client"):
        (tmp_path / folder).mkdir()
    pair, own = old.issue("server").copy_to(tmp_path / "server"), old.issue("trainer").copy_to(tmp_path / "client")
    client_ca, ca = tmp_path / "client_ca.pem", tmp_path / "ca.pem"
    for trusted in (client_ca, ca):
        shutil.copyfile(old.ca, trusted)
    tokens = Tokens(tmp_path / "tokens.yaml", {"first": ("trainer", None)})
    token_file = tmp_path / "token"
    replace_file(token_file, tokens["first"])
    old_own = TlsOptions(ca, *_copy(own, tmp_path / "old-client"))

    server = world.start(tls=ServerTls(pair.certificate, pair.key, client_ca), tokens=tokens.path)
    tls, ending, audit = TlsOptions(ca, own.certificate, own.key), threading.Event(), Audit()
    caplog.set_level(logging.INFO, "mixserve.audit")
    logging.getLogger("mixserve.audit").addHandler(audit)
    trainers = [
        Trainer(number, lambda: world.client(server, tls=tls, token_file=token_file), ending)
        for number in range(TRAINERS)
    ]
    # Its token is a text, so that it cannot get another one.
    revoked = Trainer(TRAINERS, lambda: world.client(server, tls=tls, token=tokens["first"]), ending)
    everybody = [*trainers, revoked]

    def all_use_these_files() -> bool:
        now = tuple(version_of(path) for path in (ca, own.certificate, own.key))
        return all(trainer.files == now for trainer in everybody)

    def read_on(who: list[Trainer]) -> None:
        counts = [trainer.read for trainer in who]
        wait_until(lambda: all(now.read > then + 3 for now, then in zip(who, counts, strict=True)), who)

    try:
        read_on(everybody)
        assert set(audit.who.values()) == {"first"}
        serial = serial_at(server, own)
        assert serial == serial_of(pair.certificate.read_bytes())

        # Both ends trust both authorities; then all else is replaced.
        for trusted in (client_ca, ca):
            replace_file(trusted, old.ca.read_text() + new.ca.read_text())
        new.issue("server").copy_to(tmp_path / "server")
        new.issue("trainer").copy_to(tmp_path / "client")
        replace_file(token_file, tokens.add("second", "trainer"))
        took = wait_until(
            lambda: (
                all_use_these_files()
                and serial_at(server, own) == serial_of(pair.certificate.read_bytes()) != serial
                and all(audit.who[f"of-{trainer.number}"] == "second" for trainer in trainers)
            ),
            everybody,
        )
        assert took < LIMIT_S

        # The old authority is trusted no more: each trainer connects again, and only new certificates let it.
        for trusted in (client_ca, ca):
            replace_file(trusted, new.ca.read_text())
        assert wait_until(all_use_these_files, everybody) < LIMIT_S
        with world.client(server, tls=old_own, token_file=token_file) as client, pytest.raises(Unauthenticated):
            client.mixtures()

        # The old token is revoked: who has it alone ends, and all others go on.
        assert revoked.error is None
        tokens.write("first")
        begun = time.monotonic()
        revoked.join(LIMIT_S)
        assert time.monotonic() - begun < LIMIT_S
        assert isinstance(revoked.error, Unauthenticated)
        read_on(trainers)
        assert tokens["first"] not in str(revoked.error)
    finally:
        ending.set()
        logging.getLogger("mixserve.audit").removeHandler(audit)
        for trainer in everybody:
            trainer.join(DEADLINE_S)
    assert [trainer.error for trainer in trainers] == [None] * TRAINERS


def _copy(pair: Pair, folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    copied = pair.copy_to(folder)
    return copied.certificate, copied.key
