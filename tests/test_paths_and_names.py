"""Names and paths in a configuration file mean what is written."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mixserve.build import build_nodes
from mixserve.config import ConfigError, load_config
from tests.test_cli import run

TOKENS = "kind: tokens, dtype: uint16, sequence_length: 4, weight: 1"


def write(folder: Path, text: str) -> Path:
    file = folder / "mixture.yaml"
    file.write_text(text)
    return file


def tokens(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.full(8, value, np.uint16).tofile(path)
    return path


def opened(folder: Path, path: str) -> list[int]:
    """The first token of each record of a source with that path, written in YAML."""
    file = write(folder, f"mixtures: {{m: {{sources: {{s: {{{TOKENS}, path: {path}}}}}}}}}")
    (source,) = build_nodes(load_config(file), file)["m"].sources
    return source.take(np.arange(len(source)))["tokens"][:, 0].tolist()


# Names


@pytest.mark.parametrize(
    "name", ["no", "2024", "1.50", "null", "on", "~", "2024-01-01", "0x10", "1_000", "yes", ".inf"]
)
def test_names_are_what_is_written(tmp_path, name):
    tokens(tmp_path / "a.bin")
    source = "{kind: tokens, dtype: uint16, sequence_length: 4, path: a.bin}"
    text = (
        f"mixtures:\n  {name}:\n    sources:\n      {name}: {source}\n      other: {source}\n"
        f"    schedule: [{{from: 0, weights: {{{name}: 1, other: 2}}}}]\n"
    )
    config = load_config(write(tmp_path, text))
    assert list(config.mixtures) == [name]
    assert list(config.mixtures[name].sources) == [name, "other"]
    assert config.mixtures[name].weights == (1, 2)
    code, shown = run("check", tmp_path / "mixture.yaml")
    assert code == 0
    assert name in shown


def test_a_name_is_there_twice_however_it_is_quoted(tmp_path):
    file = write(tmp_path, f"mixtures: {{m: {{sources: {{no: {{{TOKENS}, path: a}}, 'no': {{{TOKENS}, path: a}}}}}}}}")
    with pytest.raises(ConfigError, match="the key 'no' is there twice"):
        load_config(file)


def test_what_a_user_gives_to_a_function_keeps_the_types_of_yaml(tmp_path):
    file = write(
        tmp_path,
        "mixtures:\n  m:\n    precomputed_stats: {1: {2: 3}}\n    sources:\n"
        "      s: {kind: factory, function: 'a:b', weight: 1, arguments: {on: {1: no, 2.5: ~}}}\n"
        "      t: &t {kind: factory, function: 'a:b', weight: 1}\n      1: {<<: *t, weight: 2}\n",
    )
    mixture = load_config(file).mixtures["m"]
    assert mixture.precomputed_stats == {"1": {2: 3}}
    assert mixture.sources["s"].model_dump()["arguments"] == {"on": {1: False, 2.5: None}}
    assert mixture.sources["1"].weight == 2


# Paths


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    tokens(tmp_path / "home" / "a.bin", 1)
    tokens(tmp_path / "data [v2]" / "b.bin", 2)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data [v2]"))
    monkeypatch.setenv("NAME", "b")
    assert opened(tmp_path, '"~/a.bin"') == [1, 1]
    assert opened(tmp_path, '"~/*.bin"') == [1, 1]
    for path in ("$DATA/b.bin", "${DATA}/b.bin", "${DATA}/$NAME.bin", "$DATA/*.bin", "$DATA/${NAME}*"):
        assert opened(tmp_path, f'"{path}"') == [2, 2]


@pytest.mark.parametrize("path", ["$NOT_SET/a.bin", "x/${NOT_SET}/*.bin"])
def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch, path):
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(
        ConfigError, match=r"sources\.s: path: the path '.*' has the variable 'NOT_SET', which is not set"
    ):
        opened(tmp_path, f'"{path}"')


@pytest.mark.parametrize("name", ["a[1].bin", "what?.bin", "all*.bin", "$x.bin", "~a.bin", "[!a].bin"])
def test_a_path_that_exists_is_that_path(tmp_path, name):
    tokens(tmp_path / name, 7)
    for other in ("a1.bin", "whats.bin", "all.bin", "b.bin"):
        tokens(tmp_path / other, 0)
    assert opened(tmp_path, f"'{name}'") == [7, 7]


def test_folders_that_exist_are_no_patterns(tmp_path):
    tokens(tmp_path / "data [v2]" / "x?" / "a.bin", 7)
    tokens(tmp_path / "data v" / "xy" / "a.bin", 0)
    assert opened(tmp_path, '"data [v2]/x?/*.bin"') == [7, 7]
    assert opened(tmp_path, f'"{tmp_path}/data [v2]/x?/*.bin"') == [7, 7]
    assert opened(tmp_path, '"data [v]/x?/*.bin"') == [0, 0]


@pytest.mark.parametrize("paths", ["'*.bin', 'a*'", "a.bin, '*.bin'", "a.bin, ./a.bin", "a.bin, 'x/../a.bin'"])
def test_a_file_that_two_patterns_match_is_an_error(tmp_path, paths):
    tokens(tmp_path / "a.bin")
    tokens(tmp_path / "x" / "b.bin")
    first, second = (path.strip("' ") for path in paths.split(","))
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, f"[{paths}]")
    assert f"sources.s: path: '{first}' and '{second}' both match {tmp_path / 'a.bin'}" in str(caught.value)


FACTORY = """
from mixserve import ArraySource
def make(**given):
    seen.update(given)
    return ArraySource({"x": [1, 2, 3]})
seen = {}
"""


def test_paths_for_a_factory_are_relative_to_the_file(tmp_path, monkeypatch):
    module = "factory_with_paths"
    (tmp_path / f"{module}.py").write_text(FACTORY)
    monkeypatch.setenv("DATA", "/data")
    file = write(
        tmp_path,
        f"mixtures: {{m: {{sources: {{s: {{kind: factory, function: '{module}:make', weight: 1, arguments: {{"
        "path: a.bin, files: [b.bin, /c.bin], cache_dir: $DATA/d, index_file: 'gs://b/c', path_of: e.bin, name: a/b, "
        "profile: x, data_path: {a: b}, folder: .}}}}}",
    )
    monkeypatch.chdir("/")
    build_nodes(load_config(file), file)
    assert sys.modules[module].seen == {
        "path": str(tmp_path / "a.bin"),
        "files": [str(tmp_path / "b.bin"), "/c.bin"],
        "cache_dir": "/data/d",
        "index_file": "gs://b/c",
        "path_of": "e.bin",
        "name": "a/b",
        "profile": "x",
        "data_path": {"a": "b"},
        "folder": str(tmp_path),
    }
    monkeypatch.delenv("DATA")
    with pytest.raises(ConfigError, match=r"sources\.s: arguments\.cache_dir: the path .* 'DATA', which is not set"):
        build_nodes(load_config(file), file)


def test_folders_of_the_server_are_expanded_too(tmp_path):
    tokens(tmp_path / "a.bin")
    for key in ("state_dir", "shared_memory", "compilation_cache"):
        file = write(
            tmp_path,
            f"mixtures: {{m: {{sources: {{s: {{{TOKENS}, path: a.bin}}}}}}}}\nserver: {{port: 0, {key}: $NOT_SET/x}}",
        )
        code, shown = run("serve", file)
        assert code == 2
        assert f"server.{key}: the path '$NOT_SET/x' has the variable 'NOT_SET', which is not set" in shown
