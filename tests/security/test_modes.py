"""Files of secrets that other users can read: a line in the log for each, and no refusal."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixserve import MixDataSourcesNode, ServerTls, serve
from mixserve.access.certificates import Certificates
from mixserve.access.tokens import TokenFile
from mixserve_client import MixClient, TlsOptions
from mixserve_client.schema import files
from mixserve_client.schema.files import warn_of_readers, who_may_use
from tests.certificates import NEEDS_OPENSSL, Made
from tests.tokens.files import Tokens

LOGGER = logging.getLogger("mixserve_client")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    files._warned.clear()
    yield
    files._warned.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.in_folder(tmp_path_factory.mktemp("certificates"))


GROUP, ALL = "its group", "every user of this machine"


@pytest.mark.parametrize(
    ("mode", "own", "given_by_root"),
    [
        (0o600, None, None),
        (0o400, None, None),
        (0o640, GROUP, None),  # a secret of Kubernetes with fsGroup is root's
        (0o440, GROUP, None),
        (0o620, GROUP, None),
        (0o644, ALL, ALL),
        (0o604, ALL, ALL),
        (0o602, ALL, ALL),
    ],
)
def test_which_modes_are_warned_of(mode: int, own: str | None, given_by_root: str | None) -> None:
    assert who_may_use(mode, 1000, 1000) == own
    assert who_may_use(mode, 0, 1000) == given_by_root
    assert who_may_use(mode, 0, 0) == given_by_root


def test_missing_files_are_not_its_business(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_readers(tmp_path / "nothing", "key", LOGGER)
    assert not caplog.messages


@NEEDS_OPENSSL
def test_each_end_warns_once_of_each_file(
    node: MixDataSourcesNode, made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = made.server.copy_to(_folder(tmp_path / "s")), made.client.copy_to(_folder(tmp_path / "c"))
    tokens = Tokens(tmp_path / "tokens.yaml", {"r": ("reader", None)})
    token_file = tmp_path / "token"
    token_file.write_text(tokens["r"])
    secrets = (server.key, client.key, token_file)
    for path in (*secrets, server.certificate, tokens.path):
        path.chmod(0o644)  # certificates and hashes are for everybody to read
    tls = ServerTls(server.certificate, server.key, made.authority.ca)
    own = TlsOptions(made.authority.ca, client.certificate, client.key)
    with serve({"train": node}, "127.0.0.1:0", tls=tls, tokens=tokens.path, shared_memory=False) as running:
        for _ in range(2):
            with MixClient.connect(running.address, tls=own, token_file=token_file, shared_memory=False) as reader:
                assert reader.mixtures() == ("train",)
        said = [line for line in caplog.messages if "chmod 600" in line]
    assert [path for path in secrets if sum(f" in {path}," in line for line in said) == 1] == list(secrets)
    assert len(said) == len(secrets)


@NEEDS_OPENSSL
def test_new_files_are_looked_at_too(made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = made.server.copy_to(tmp_path)
    pair.key.chmod(0o600)
    certificates = Certificates(ServerTls(pair.certificate, pair.key))
    tokens = Tokens(tmp_path / "tokens.yaml", {"r": ("reader", None)})
    found = TokenFile(tokens.path)
    assert not caplog.messages
    before = certificates.pair
    made.server.copy_to(tmp_path).key.chmod(0o644)
    assert certificates.pair is not before
    assert f"may use the key in {pair.key}" in caplog.text
    tokens.add("another", "reader")
    tokens.path.chmod(0o666)
    assert found.find("a token that makes it look") is None
    assert f"others may write the token file {tokens.path}" in caplog.text


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
