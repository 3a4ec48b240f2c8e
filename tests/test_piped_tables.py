"""What scripts get of the commands: whole lines in a pipe, and JSON."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.config import load_config
from mixserve_client import MixClient
from tests.processes import ONE_SIZE

LONG = "a-name-of-a-corpus-" * 6  # 114 characters: more than the 80 columns of a terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("piped") / LONG
    folder.mkdir()
    np.arange(4000, dtype=np.uint16).tofile(folder / "a.bin")
    np.savez(folder / "b.npz", tokens=np.arange(4000, 8000, dtype=np.uint16).reshape(1000, 4))
    (folder / "mixture.yaml").write_text(
        "mixtures:\n  train:\n    sources:\n"
        f"      {LONG}: {{kind: tokens, path: a.bin, dtype: uint16, sequence_length: 4, weight: 1}}\n"
        "      b: {kind: arrays, path: b.npz, weight: 1}\n"
    )
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    node = build_nodes(load_config(folder / "mixture.yaml"), folder / "mixture.yaml")["train"]
    with serve({"train": node}, state_dir=tmp_path_factory.mktemp("state")) as running:
        yield running


def run(*arguments: object, **environment: str) -> str:
    """The standard output of a command, which is not a terminal."""
    variables = {"COLUMNS": None, "LINES": None, "FORCE_COLOR": None, **environment}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=variables)
    assert result.exit_code == 0, result.output
    return result.stdout


def parse(*arguments: object) -> list[dict]:
    return json.loads(run("explain", *arguments, "--json"))


def test_a_pipe_gets_whole_paths_of_records(folder):
    for environment in ({}, {"FORCE_COLOR": "1", "TERM": "dumb"}):
        shown = run("explain", folder / "mixture.yaml", "--key", 7, "--size", 40, **environment)
        assert shown.count(f"{folder / 'a.bin'}, token ") == 40 - shown.count(f"{folder / 'b.npz'}, row ") > 0
        assert LONG in shown
    # Of a width that somebody asks for.
    narrow = run("explain", folder / "mixture.yaml", "--key", 7, "--size", 40, COLUMNS="80")
    assert str(folder / "a.bin") not in narrow
    assert max(map(len, narrow.splitlines())) == 80


def test_every_table_is_whole_in_a_pipe(folder, server, tmp_path):
    session = "a-session-" * 8
    with MixClient.connect(server.address) as client, client.session(session) as held:
        held.next_batch(4)
        held.save_checkpoint(LONG)
        tables = {
            "info": run("info", server.address),
            "simulate": run("check", folder / "mixture.yaml", "--simulate", 100, "--plot", tmp_path / "x.png"),
            "state list": run("state", "list", server.address),
            "state show": run("state", "show", server.address, session),
        }
    for command, shown in tables.items():
        rows = [line for line in shown.splitlines() if LONG in line and line.startswith("│")]
        assert rows, (command, shown)
    assert session in tables["state list"]
    proposed = run("init", folder / "a.bin", "--out", tmp_path / f"{LONG}.yaml")
    assert f"mixserve check {tmp_path / LONG}.yaml" in proposed


def test_json_has_the_records_of_the_table(folder, server):
    file = folder / "mixture.yaml"
    found = parse(file, "--key", 7, "--start", 30, "--size", 100)
    with MixClient.connect(server.address) as client:
        plan, rows = client.get_plan_at(30, 100, 7), client.get_batch_at(30, 100, 7)["tokens"]
    names = (LONG, "b")
    places = (f"{folder / 'a.bin'}, token {{}}", f"{folder / 'b.npz'}, row {{}}")
    expected = [
        {
            "position": position,
            "source": names[source],
            "record": record,
            "where": places[source].format(f"{(4, 1)[source] * record:,}"),
            "skipped": False,
        }
        for position, (source, record) in enumerate(
            zip(plan["source_id"].tolist(), plan["record_id"].tolist(), strict=True), 30
        )
    ]
    assert found == expected
    assert parse(file, "--key", 7, "--batch", 3, "--batch-size", 10) == expected[:10]
    # A server's client does not know where its records lie.
    assert parse(server.address, "--key", 7, "--start", 30, "--size", 100) == [
        row | {"where": None} for row in expected
    ]
    shown = parse(server.address, "--key", 7, "--start", 30, "--size", 3, "--show")
    assert [row["fields"] for row in shown] == [{"tokens": row} for row in rows[:3].tolist()]
    assert len(run("explain", file, "--key", 7, "--json").splitlines()) == 32 + 2  # a line for each record


def test_json_marks_skipped_records_and_does_not_read_them(folder, server, tmp_path):
    with MixClient.connect(server.address) as client, client.batches(8, 7, skip=[(10, 14)]) as batches:
        next(batches)
        (tmp_path / "state.json").write_text(json.dumps(batches.get_state()))
    found = parse(server.address, "--state", tmp_path / "state.json", "--size", 8, "--show")
    assert [row["position"] for row in found if row["skipped"]] == [10, 11, 12, 13]
    assert [row["position"] for row in found if "fields" in row] == [8, 9, 14, 15]


def test_json_has_numbers_of_every_dtype():
    record = {
        "half": np.array([[0.5, np.nan]], ml_dtypes.bfloat16),
        "large": np.array([2**63 + 1], np.uint64),
        "complex": np.array([1 + 2j]),
        "inside": {"flag": np.array([True])},
    }
    config = MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE)
    with serve({"m": MixDataSourcesNode(config, [ArraySource(record)])}) as server:
        (row,) = parse(server.address, "--key", 7, "--size", 1, "--show")
    assert row["fields"] == {"half": [0.5, "nan"], "large": 2**63 + 1, "complex": "(1+2j)", "inside/flag": True}
