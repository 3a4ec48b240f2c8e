"""A token that is given where something else is due is shown nowhere, and sent nowhere."""

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mixserve import MixDataSourcesNode, ServerTls, serve
from mixserve.access.audit import audit
from mixserve.access.entries import check_entry, new_token
from mixserve.build import build_nodes
from mixserve.cli.start import main
from mixserve.config import ConfigError, load_config
from mixserve_client import AsyncMixClient, InvalidRequest, MixClient, MixserveError, TlsOptions
from mixserve_client.credentials import from_environment
from mixserve_client.redaction import has_token, hide_tokens
from tests.forked import Forked
from tests.processes import DEADLINE_S, write_mixture

ADDRESS = "127.0.0.1:1"
TOKEN = new_token()


def mixtures(**options: Any) -> object:
    with MixClient.connect(ADDRESS, patience_s=0.1, shared_memory=False, **options) as client:
        return client.mixtures()


CLIENT: Mapping[str, Callable[[], object]] = {
    "token_file": lambda: mixtures(token_file=TOKEN),
    "token_file of bytes": lambda: mixtures(token_file=TOKEN.encode()),
    "token of bytes": lambda: mixtures(token=TOKEN.encode()),
    "two tokens": lambda: mixtures(token=f"{TOKEN} {TOKEN}"),
    "tls": lambda: mixtures(tls=TOKEN),
    "a list": lambda: mixtures(tls=[TOKEN]),
    "ca": lambda: TlsOptions(Path("certificates") / TOKEN),
    "certificate": lambda: TlsOptions("ca.pem", TOKEN, "me.key"),
    "key": lambda: TlsOptions("ca.pem", "me.pem", TOKEN),
    "MIXSERVE_CA": lambda: mixtures(**from_environment({"MIXSERVE_CA": TOKEN})),
    "address": lambda: MixClient.connect(TOKEN),
    "host": lambda: MixClient.connect(f"{TOKEN}:50051"),
    "one of the addresses": lambda: MixClient.connect([ADDRESS, TOKEN]),
    "address of AsyncMixClient": lambda: AsyncMixClient.connect(TOKEN),
    "folder of shared memory": lambda: MixClient.connect(ADDRESS, shared_memory=f"folders/{TOKEN}"),
    "shared_memory": lambda: MixClient.connect(ADDRESS, shared_memory=[TOKEN]),  # pyright: ignore[reportArgumentType]
    "patience_s": lambda: MixClient.connect(ADDRESS, patience_s=TOKEN),  # pyright: ignore[reportArgumentType]
    "mixture": lambda: MixClient.connect(ADDRESS, shared_memory=False).mixture(TOKEN),
}


@pytest.mark.parametrize("call", CLIENT.values(), ids=CLIENT)
def test_clients_do_not_show_it(call: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        call()
    check_hidden(raised.value)


SERVER: Mapping[str, Callable[[MixDataSourcesNode], object]] = {
    "tokens": lambda node: serve({"train": node}, tokens=TOKEN),
    "tls": lambda node: serve({"train": node}, tls=TOKEN),  # pyright: ignore[reportArgumentType]
    "tls in a mapping": lambda node: serve({"train": node}, tls={"certificate": TOKEN, "key": "server.key"}),
    "certificate": lambda _: ServerTls(TOKEN, "server.key"),
    "client_ca": lambda _: ServerTls("server.pem", "server.key", TOKEN),
    "address": lambda node: serve({"train": node}, TOKEN),
    "host": lambda node: serve({"train": node}, f"{TOKEN}:0"),
    "socket": lambda node: serve({"train": node}, f"unix:///nowhere/{TOKEN}"),
    "state_dir": lambda node: serve({"train": node}, state_dir=TOKEN),
    "shared_memory": lambda node: serve({"train": node}, shared_memory=TOKEN),
    "health_host": lambda node: serve({"train": node}, health_port=0, health_host=TOKEN),
    "mixture": lambda _: check_entry({"name": "a", "role": "reader", "mixtures": [TOKEN], "sha256": "0" * 64}),
    "key": lambda _: check_entry({"name": "a", "role": "reader", TOKEN: 1, "sha256": "0" * 64}),
}


@pytest.mark.parametrize("call", SERVER.values(), ids=SERVER)
def test_servers_do_not_show_it(
    node: MixDataSourcesNode, call: Callable[[MixDataSourcesNode], object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, OSError)) as raised:
        call(node)
    check_hidden(raised.value)
    assert TOKEN not in "".join(capfd.readouterr())


@pytest.mark.parametrize("line", ["tokens: [{}]", "tls: {}", "host: {}", "state_dir: [{}]", "port: {}"])
def test_files_of_configuration_do_not_show_it(tmp_path: Path, line: str) -> None:
    config = write_mixture(tmp_path)
    config.write_text(config.read_text().partition("server:")[0] + f"server: {{{line.format(TOKEN)}}}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(config)
    assert TOKEN not in str(raised.value)


# With ids: those made of a token would differ between the processes that share the tests.
@pytest.mark.parametrize("name", ["{}", "{}/*.bin", "~/$HOME/{}"], ids=["name", "pattern", "variable"])
@pytest.mark.parametrize(
    "source",
    [
        "{{kind: tokens, path: '{}', dtype: uint16, sequence_length: 8, weight: 1}}",
        "{{kind: hf, path: '{}', weight: 1}}",
        "{{kind: remote, address: '127.0.0.1:1', token_file: '{}', weight: 1}}",
    ],
    ids=["tokens", "hf", "remote"],
)
def test_paths_of_sources_do_not_show_it(tmp_path: Path, source: str, name: str) -> None:
    config = tmp_path / "mixture.yaml"
    config.write_text(f"mixtures: {{train: {{sources: {{a: {source.format(name.format(TOKEN))}}}}}}}\n")
    with pytest.raises(ConfigError, match=r"train\.sources\.a: ") as raised:
        build_nodes(load_config(config), config)
    check_hidden(raised.value)


def run_main(*arguments: str) -> None:
    sys.argv = ["mixserve", *arguments]
    main()


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", ADDRESS, "--token-file", TOKEN),
        ("info", ADDRESS, f"--token={TOKEN}"),
        ("info", TOKEN),
        ("token", "new", "reader", "--mixture", TOKEN),
        (TOKEN,),
    ],
)
def test_commands_do_not_show_it(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = Forked(run_main, *arguments, log=tmp_path / "log")
    assert done.wait(DEADLINE_S) == 2
    assert "a token is among the arguments of the command" in done.log()
    assert TOKEN[:20] not in done.log()


def test_the_audit_does_not_show_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mixserve.audit")
    audit("session-opened", session=TOKEN)
    assert "session=" in caplog.text
    assert TOKEN not in caplog.text


def test_every_token_is_recognised_and_no_name_of_ours() -> None:
    for _ in range(2000):
        token = new_token()
        assert has_token(f"/run/secrets/{token}.txt")
        for shown in (token, token[:40], token + token):
            assert hide_tokens(f"got '{shown}' here") == "got 'mixserve_…' here"
    for name in (
        "mixserve_client/transport/credentials.py",
        "mixserve_training_run_of_november_with_a_long_name_of_52",
        "MIXSERVE_TOKEN",
        "mixserve_",
        "mixserve_TrainingRun",
    ):
        assert not has_token(name)
        assert hide_tokens(name) == name


def test_every_error_of_ours_hides_it() -> None:
    pending = [MixserveError]
    while pending:
        kind = pending.pop()
        if kind.__module__.startswith("mixserve"):  # tests have others
            assert str(kind(f"got {TOKEN} here")) == "got mixserve_… here"
        pending += kind.__subclasses__()


def check_hidden(error: BaseException) -> None:
    shown = "".join(traceback.format_exception(error))
    assert TOKEN[:20] not in shown
    assert "mixserve_…" in str(error) or "token" in str(error)
