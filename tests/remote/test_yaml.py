"""`kind: remote` in a configuration file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import MixServer
from mixserve.build import open_nodes
from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve_client.credentials import TlsOptions
from tests.remote.serving import NAMES, array_sources, serve_sources, write_yaml

FILES = {name: f"{{kind: arrays, path: {name}.npz, weight: 1}}" for name in NAMES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the data of three sources."""
    for name, source in zip(NAMES, array_sources(), strict=True):
        np.savez(tmp_path / f"{name}.npz", **source.blocks()[0])
    return tmp_path


@pytest.fixture(scope="module")
def data() -> Iterator[MixServer]:
    with serve_sources(array_sources(), NAMES) as server:
        yield server


def test_a_file_with_remote_sources_makes_the_same_mixture(folder, data):
    far = {name: f"{{kind: remote, address: '{data.address}', source: {name}, weight: 1}}" for name in NAMES[1:]}
    here = open_nodes(write_yaml(folder, "here.yaml", {"train": FILES}))["train"]
    there = open_nodes(write_yaml(folder, "there.yaml", {"train": FILES | far}))["train"]
    assert there.mixture.fingerprint == here.mixture.fingerprint


def test_a_content_id_stands_for_the_content(folder, data):
    far = {"a": f"{{kind: remote, address: '{data.address}', source: a, weight: 1, content_id: of mine}}"}
    near = {"a": "{kind: arrays, path: a.npz, weight: 1, content_id: of mine}"}
    one, other = (
        open_nodes(write_yaml(folder, f"{number}.yaml", {"train": sources}))["train"]
        for number, sources in enumerate((far, near))
    )
    assert one.mixture.fingerprint == other.mixture.fingerprint


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_check_and_explain_show_a_remote_source(folder, data):
    written = f"{{kind: remote, address: ['{data.address}'], mixture: data, source: b, weight: 1}}"
    file = write_yaml(folder, "mixture.yaml", {"train": {"far": written}})
    checked = shown("check", str(file), "--full")
    assert "far" in checked
    assert "80" in checked
    assert data.address in shown("explain", str(file), "--key", "0", "--size", "2")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("", r"a\.address: is required"),
        ("address: nowhere", r"a\.address.*must be host:port.*'nowhere'"),
        ("address: []", r"a\.address.*at least 1 item"),
        ("address: ['h:1', 'h:0']", r"a\.address.*'h:0'"),
        ("address: 'h:1', source: ''", r"a\.source.*at least 1 character"),
        ("address: 'h:1', patience_s: -1", r"a\.patience_s.*positive number of seconds.*-1"),
        ("address: 'h:1', tls: {ca: x, pass: y}", r"a\.tls\.pass: unknown key; allowed here are ca, certificate, key"),
        ("address: 'h:1', tls: 7", r"a\.tls"),
        ("address: 'h:1', token: mixserve_x", r"a\.token: unknown key; allowed here are .*token_file"),
        ("address: 'h:1', on_error: skip", r"on_error: skip is for the server that has the data"),
    ],
)
def test_wrong_keys_are_named(tmp_path, keys, said):
    file = write_yaml(tmp_path, "mixture.yaml", {"train": {"a": f"{{kind: remote, weight: 1, {keys}}}"}})
    with pytest.raises(ConfigError, match=said):
        load_config(file)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("source: z", r"mixtures\.train\.sources\.far: UnknownSource: .*one of a, b, c, got 'z'"),
        ("mixture: other, source: a", r"sources\.far: UnknownMixture: .*'data', got 'other'"),
        ("source: a, token_file: no.token", r"sources\.far: .*no\.token"),
        ("source: a, token_file: $NOT_SET/x", r"sources\.far: token_file: .*NOT_SET"),
        ("source: a, tls: no.pem", r"sources\.far: .*no\.pem"),
    ],
)
def test_what_is_not_there_is_named_with_its_key(tmp_path, data, keys, said):
    written = f"{{kind: remote, address: '{data.address}', weight: 1, patience_s: 0.5, {keys}}}"
    file = write_yaml(tmp_path, "mixture.yaml", {"train": {"far": written}})
    with pytest.raises(ConfigError, match=said):
        open_nodes(file)


@pytest.mark.parametrize(
    ("written", "made"),
    [
        ("true", TlsOptions()),
        ("ca.pem", "ca.pem"),
        ("{ca: ca.pem, certificate: c.pem, key: c.key}", {"ca": "ca.pem", "certificate": "c.pem", "key": "c.key"}),
        ("false", None),
    ],
)
def test_tls_is_a_switch_a_path_or_files(tmp_path, monkeypatch, written, made):
    if isinstance(made, str):
        made = {"ca": made}
    if isinstance(made, dict):
        made = TlsOptions(**{key: tmp_path / name for key, name in made.items()})
    given = {}

    def remember(address, **options):
        given.update(options)

    monkeypatch.setattr("mixserve.sources.remote_source.RemoteSource", remember)
    file = write_yaml(
        tmp_path,
        "mixture.yaml",
        {"train": {"a": f"{{kind: remote, weight: 1, address: 'h:1', zone: z, tls: {written}}}"}},
    )
    load_config(file).mixtures["train"].sources["a"].open(tmp_path)
    assert given["tls"] == made
    assert (given["patience_s"], given["zone"]) == (30, "z")
