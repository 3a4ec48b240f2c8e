"""Commands with an address, and a server from a configuration file, with tokens."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixserve.cli.connecting import Connection
from mixserve.cli.main import app
from mixserve_client import InvalidRequest, MixClient, PermissionDenied, Unauthenticated
from mixserve_client.credentials import TlsOptions
from tests.processes import server_process, write_mixture
from tests.tokens.calling import client_of
from tests.tokens.files import Tokens, replace_file


def run(*arguments: object, **environ: str) -> tuple[int, str]:
    result = CliRunner(env=environ).invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


COMMANDS = [
    ("info", "{}"),
    ("fetch", "{}", "--mixture", "a", "--key", "7"),
    ("explain", "{}", "--mixture", "a", "--key", "7"),
    ("bench", "{}", "--mixture", "a", "--seconds", "0.1", "--batch-size", "8"),
    ("state", "list", "{}"),
    ("state", "show", "{}", "of-commands", "--mixture", "a"),
    ("state", "save", "{}", "of-commands", "one", "--mixture", "a"),
    ("state", "restore", "{}", "of-commands", "one", "--mixture", "a", "--take-over"),
    ("state", "delete", "{}", "of-commands", "one", "--mixture", "a"),
]


def test_every_command_with_an_address_takes_a_token(server, tokens, tmp_path, quick):
    with client_of(server, tokens["trainer"]) as client:
        client.session("of-commands", mixture="a").close()
    mine, wrong = tmp_path / "token", tmp_path / "wrong"
    mine.write_text(tokens["trainer"])
    wrong.write_text("mixserve_wrong")
    for command in COMMANDS:
        arguments = [part.format(server.address) for part in command]
        code, output = run(*arguments)
        assert (code, "requires a token" in output) == (2, True), output
        code, output = run(*arguments, MIXSERVE_TOKEN=tokens["trainer"])
        assert code == 0, output
        assert tokens["trainer"] not in output
    # An option beats the variable, even one that cannot be used.
    for variable in ("mixserve_wrong", "two words"):
        code, output = run("info", server.address, "--token-file", mine, MIXSERVE_TOKEN=variable)
        assert code == 0, output
    code, output = run("info", server.address, "--token-file", wrong, MIXSERVE_TOKEN=tokens["trainer"])
    assert (code, "does not know this token" in output) == (2, True)
    code, output = run("info", server.address, "--token-file", tmp_path / "none")
    assert (code, "token_file" in output) == (2, True)
    assert run("health", server.address) == (0, "SERVING\n")
    assert run("health", server.address, "--token-file", wrong) == (0, "SERVING\n")


def test_no_option_takes_a_token_itself():
    for command in ("info", "fetch", "explain", "bench", "health", "serve"):
        code, output = run(command, "--token", "mixserve_secret")
        assert code == 2
        assert "--token" in output
        assert "mixserve_secret" not in output


def test_a_configuration_names_the_file_and_no_output_has_a_token(tmp_path, capfd):
    config = write_mixture(tmp_path)
    config.write_text(config.read_text().replace("server: {port: 0}", "server: {port: 0, tokens: secret/tokens.yaml}"))
    (tmp_path / "secret").mkdir()
    code, output = run("serve", config)
    assert (code, "secret/tokens.yaml cannot be read: No such file" in output) == (2, True), output
    tokens = Tokens(tmp_path / "secret" / "tokens.yaml", {"t": ("trainer", ["train"]), "r": ("reader", None)})
    tokens.path.write_text(f"tokens: [{tokens['t']}]")
    code, output = run("serve", config)
    assert (code, "server.tokens: the token file" in output) == (2, True), output
    assert tokens["t"] not in output
    tokens.write()
    with server_process(config) as server:
        address = server.address()
        command_line = Path(f"/proc/{server.process.pid}/cmdline")
        with MixClient.connect(address, token=tokens["t"]) as client, client.session("s") as session:
            next(session)
            replace_file(tokens.path, f"tokens: [{tokens['t']}")  # broken
            with MixClient.connect(address, token=f"{tokens['t']}x") as other, pytest.raises(Unauthenticated):
                other.mixtures()
            next(session)
        with MixClient.connect(address, token=tokens["r"]) as client, pytest.raises(PermissionDenied):
            client.session("s")
        title = command_line.read_bytes().decode() if command_line.exists() else ""
        assert server.terminate() == 0
        log = server.log()
    said = "".join(capfd.readouterr())
    for token in tokens.by_name.values():
        assert token.removeprefix("mixserve_") not in log + said + title
    assert "calls need one of 2 tokens of" in log
    assert "event=session-opened who=t peer=ipv4:127.0.0.1:" in log
    assert "event=refused who=r peer=ipv4:127.0.0.1:" in log
    assert "The tokens that were read before stay valid" in log
    assert "refused 1 call without a valid token from 127.0.0.1" in log


def test_options_of_commands_are_those_of_connect(tmp_path, monkeypatch):
    ca, mine, key = (tmp_path / name for name in ("ca.pem", "mine.pem", "key.pem"))
    for name in ("MIXSERVE_CA", "MIXSERVE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    assert Connection().credentials() == {}
    assert Connection(tls=True).credentials() == {"tls": TlsOptions()}
    assert Connection(ca=ca).credentials() == {"tls": TlsOptions(ca)}
    assert Connection(certificate=mine, key_file=key).credentials() == {"tls": TlsOptions(None, mine, key)}
    with pytest.raises(InvalidRequest, match="belong together"):
        Connection(certificate=mine).credentials()
    monkeypatch.setenv("MIXSERVE_CA", str(tmp_path / "other.pem"))
    monkeypatch.setenv("MIXSERVE_TOKEN", "mixserve_one")
    assert Connection().credentials() == {"tls": str(tmp_path / "other.pem"), "token": "mixserve_one"}
    assert Connection(tls=True, token_file=mine).credentials() == {
        "tls": TlsOptions(tmp_path / "other.pem"),
        "token_file": mine,
    }
    assert Connection(ca=ca).credentials() == {"tls": TlsOptions(ca), "token": "mixserve_one"}
