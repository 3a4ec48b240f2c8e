"""What a server may listen on without TLS and credentials."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixserve import MixDataSourcesNode, serve
from mixserve.access.exposure import check_exposure, is_local
from mixserve.cli.main import app
from mixserve_client import MixClient, Unauthenticated
from mixserve_client.transport.sockets import check_owner
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.processes import server_process, write_mixture

LOCAL = (
    "127.0.0.1:0", "127.8.9.10:1", "localhost:1", "[::1]:1",
    "[::ffff:127.0.0.1]:1", "unix:///tmp/s", "unix:s", "127.1:1"
)  # fmt: skip
OPEN = ("0.0.0.0:1", "[::]:1", "0:1", "10.1.2.3:1", "[fe80::1]:1", "[::ffff:0.0.0.0]:1", "[::ffff:10.0.0.1]:1")


@pytest.mark.parametrize("address", LOCAL)
def test_loopback_and_sockets_are_local(address: str) -> None:
    assert is_local(address)
    check_exposure(address, has_tls=False, has_client_ca=False, has_tokens=False)


@pytest.mark.parametrize("address", OPEN)
def test_all_else_is_open(address: str) -> None:
    assert not is_local(address)


def test_a_name_is_local_only_if_all_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name of every machine has both kinds."""
    found = [("127.0.0.1", 0), ("10.0.0.1", 0)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", address) for address in found])
    assert not is_local("both.example:1")
    del found[1]
    assert is_local("both.example:1")


def test_a_name_without_an_address_is_an_error() -> None:
    with pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:1"):
        is_local("nowhere.invalid:1")


def test_the_rule() -> None:
    """TLS, and tokens or certificates of clients."""
    for has_tls in (False, True):
        for has_client_ca in (False, True):
            for has_tokens in (False, True):
                has = {"has_tls": has_tls, "has_client_ca": has_client_ca, "has_tokens": has_tokens}
                check_exposure("0.0.0.0:1", **has, insecure=True)
                if has_tls and (has_client_ca or has_tokens):
                    check_exposure("0.0.0.0:1", **has)
                    continue
                with pytest.raises(ValueError, match="can be reached from other machines") as refused:
                    check_exposure("0.0.0.0:1", **has)
                assert ("certificate: server.pem" in str(refused.value)) is not has_tls
                assert ("tokens: tokens.yaml" in str(refused.value)) is not (has_tokens or has_client_ca)
                assert "--insecure" in str(refused.value)


@NEEDS_OPENSSL
def test_serve_keeps_to_it(node: MixDataSourcesNode, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("server")
    files = {"certificate": pair.certificate, "key": pair.key}
    for tls in (None, files):
        with pytest.raises(ValueError, match="can be reached from other machines"):
            serve({"train": node}, "0.0.0.0:0", tls=tls)
        serve({"train": node}, "0.0.0.0:0", tls=tls, insecure=True, shared_memory=False).stop()
    serve({"train": node}, "0.0.0.0:0", tls=files | {"client_ca": authority.ca}, shared_memory=False).stop()


@NEEDS_OPENSSL
def test_the_command_keeps_to_it_before_it_opens_data(tmp_path: Path) -> None:
    config = write_mixture(tmp_path)
    (tmp_path / "a.bin").unlink()  # which would be an error later

    def message(server: str = "", *flags: str) -> str:
        config.write_text(config.read_text().partition("server:")[0] + f"server: {{port: 0, {server}}}\n")
        result = CliRunner().invoke(app, ["serve", str(config), *flags])
        assert result.exit_code == 2
        return result.stderr

    assert "can be reached from other machines" in message("", "--host", "0.0.0.0")
    assert "can be reached from other machines" in message("host: '::'")
    assert "certificate: server.pem" in message("host: 0.0.0.0")
    for server, flags in (("host: 0.0.0.0, insecure: true", ()), ("host: 0.0.0.0", ("--insecure",))):
        assert "a.bin" in message(server, *flags)
    Authority(tmp_path / "authority").issue("server").copy_to(tmp_path)
    assert "a.bin" in message("host: 0.0.0.0, tls: {certificate: tls.pem, key: tls.key, client_ca: authority/ca.pem}")
    assert "none.pem cannot be read" in message("tls: {certificate: none.pem, key: tls.key}")
    assert "server.tls.key: is required" in message("tls: {certificate: tls.pem}")
    assert "server.tls.ca: unknown key; allowed here are certificate, key, client_ca" in message("tls: {ca: x}")


@NEEDS_OPENSSL
def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    authority.issue("server").copy_to(tmp_path)
    config = write_mixture(tmp_path)
    config.write_text(config.read_text().replace("port: 0", "port: 0, tls: {certificate: tls.pem, key: tls.key}"))
    with (
        server_process(config, "--health-port", "0") as server,
        MixClient.connect(server.address(), tls=authority.ca, patience_s=20) as client,
    ):
        assert client.mixtures()
        log = server.log()
        assert log.index("health on 127.0.0.1:") < log.index("serving on 127.0.0.1:")
        assert CliRunner().invoke(app, ["health", server.wait_for_log(r"health on (\S+)")[1]]).stdout == "SERVING\n"


def test_a_socket_belongs_to_its_user_alone(
    node: MixDataSourcesNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first moment on."""
    path, modes, chmod = tmp_path / "socket", list[int](), Path.chmod

    def look(self: Path, mode: int) -> None:
        modes.append(stat.S_IMODE(self.stat().st_mode))
        chmod(self, mode)

    monkeypatch.setattr(Path, "chmod", look)
    before = os.umask(0)
    try:
        with serve({"train": node}, f"unix://{path}") as server, MixClient.connect(server.address) as client:
            assert client.mixtures()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o700]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_cannot_connect_nor_collect_tokens(node: MixDataSourcesNode, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/") and folder.name != "tmp":
            folder.chmod(0o755)
    path = tmp_path / "socket"
    code = (
        f"import os, socket; os.setgid(65534); os.setuid(65534); socket.socket(socket.AF_UNIX).connect({str(path)!r})"
    )
    with serve({"train": node}, f"unix://{path}") as server:
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "PermissionError" in ended.stderr
        path.chmod(0o666)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # the file's mode it was
        os.chown(path, 65534, 65534)
        with MixClient.connect(server.address, token="secret-token", patience_s=20) as client:
            with pytest.raises(Unauthenticated, match="belongs to user 65534") as refused:
                client.mixtures()
            assert "secret" not in str(refused.value)
        with MixClient.connect(server.address, patience_s=20) as client:
            assert client.mixtures()
    check_owner(str(path))  # gone
