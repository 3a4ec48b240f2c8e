"""What the commands say about single records: their files, their numbers, and whether they can be read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    RandomAccessSource,
    TokenSource,
    local_client,
    serve,
)
from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.config import load_config
from mixserve.sources.location import locate
from tests.processes import ONE_SIZE

LENGTH = 4
MIXTURES = """
mixtures:
  train:
    sources:
      tokens: {kind: tokens, path: ["a.bin", "b.bin"], dtype: uint16, sequence_length: 4, weight: 1}
      mapped: {kind: arrays, path: mapped, weight: 1}
      loaded: {kind: arrays, path: loaded.npz, weight: 1}
"""
BROKEN = """
import numpy as np

class Broken:
    def __len__(self): return 9
    def element_spec(self): return {"tokens": np.zeros(4, np.uint16)}
    def content_digest(self): return b"known"
    def take(self, record_ids):
        if 8 in record_ids: raise OSError(5, "the disk is gone")
        return {"tokens": np.zeros((len(record_ids), 4), np.WRONG)}

def make(): return Broken()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    np.arange(0, 26, dtype=np.uint16).tofile(folder / "a.bin")
    np.arange(26, 60, dtype=np.uint16).tofile(folder / "b.bin")
    (folder / "mapped").mkdir()
    np.save(folder / "mapped" / "tokens.npy", np.arange(100, 180, dtype=np.uint16).reshape(20, LENGTH))
    np.savez(folder / "loaded.npz", tokens=np.arange(200, 280, dtype=np.uint16).reshape(20, LENGTH))
    (folder / "mixture.yaml").write_text(MIXTURES)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_explain_says_where_records_lie(folder):
    code, shown = run("explain", folder / "mixture.yaml", "--size", 60, "--show", "--key", 0)
    assert code == 0
    found = re.findall(r"│ +(\d+) │ (\S+) +│ +(\d+) │ (.+?) +│", shown)
    tokens = [list(map(int, numbers.split())) for numbers in re.findall(r"tokens: \[(.*)\]", shown)]
    assert len(found) == len(tokens) == 60
    assert {name for _, name, _, _ in found} == {"tokens", "mapped", "loaded"}
    for (_, name, record, where), row in zip(found, tokens, strict=True):
        if name == "loaded":
            assert where == f"{folder / 'loaded.npz'}, row {record}"
            continue
        if name == "mapped":
            file, byte = re.fullmatch(r"(.*), byte ([\d,]+)", where).groups()
        else:
            file, token = re.fullmatch(r"(.*), token ([\d,]+)", where).groups()
            byte = str(2 * int(token))
        assert np.fromfile(file, np.uint16, LENGTH, offset=int(byte.replace(",", "")))[0] == row[0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 5))
def test_the_place_of_a_window_is_that_of_its_first_token(lengths, window):
    joined = np.arange(sum(lengths))
    parts = np.split(joined, np.cumsum(lengths)[:-1])
    if len(joined) < window:
        return
    source = TokenSource(parts, sequence_length=window)
    for record in range(len(source)):
        number, token = map(int, re.fullmatch(r"input (\d+), token (\d+)", locate(source, record)).groups())
        assert parts[number][token] == record * window


def test_locations_of_views_of_a_map(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(60, dtype=np.int32).reshape(20, 3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for view in (mapped, mapped[5:], mapped[::-2], mapped[7:9]):
        source = ArraySource({"x": view})
        for record in range(len(source)):
            byte = int(locate(source, record).split("byte ")[1].replace(",", ""))
            assert np.fromfile(tmp_path / "x.npy", np.int32, 3, offset=byte).tolist() == view[record].tolist()
    assert locate(ArraySource({"x": np.zeros(3)}), 0) == ""
    assert locate(ArraySource({"x": np.zeros(3)}, {"x": np.zeros(2)}), 4) == "dict 1, row 1"


def test_a_data_set_may_say_where_its_items_lie():
    class Images(list):
        def locate(self, record_id):
            return f"image-{record_id}.jpg"

    assert locate(RandomAccessSource(Images([{"x": 1}] * 3)), 2) == "image-2.jpg"
    assert locate(RandomAccessSource([{"x": 1}] * 3), 2) == ""


def test_explain_takes_the_number_of_a_batch(folder):
    file = folder / "mixture.yaml"
    code, shown = run("explain", file, "--batch", 12, "--batch-size", 5, "--key", 0)
    assert code == 0
    assert shown.startswith("batch 12: the positions 60 to 64\n")
    assert shown.partition("\n")[2] == run("explain", file, "--start", 60, "--size", 5, "--key", 0)[1]
    later = run("explain", file, "--batch", 2, "--batch-size", 5, "--start", 50, "--key", 0)[1]
    assert later.partition("\n")[2] == shown.partition("\n")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--batch", 3), "--batch N needs --batch-size B"),
        (("--batch-size", 3), "--batch N needs --batch-size B"),
        (("--batch", 3, "--batch-size", 3, "--size", 5), "takes no --size"),
        (("--batch", -1, "--batch-size", 3), "--batch must be an integer of at least 0, got -1"),
        (("--batch", 1, "--batch-size", 0), "--batch-size must be an integer of at least 1, got 0"),
    ],
)
def test_explain_says_which_options_go_together(folder, arguments, said):
    code, shown = run("explain", folder / "mixture.yaml", *arguments, "--key", 0)
    assert code == 2
    assert said in shown
    assert shown.count("\n") == 1


def test_records_are_shown_whole_up_to_a_page(tmp_path):
    for length in (4096, 4097):
        np.zeros(length, np.uint16).tofile(tmp_path / f"{length}.bin")
        source = f"{{kind: tokens, path: {length}.bin, dtype: uint16, sequence_length: {length}, weight: 1}}"
        file = tmp_path / f"{length}.yaml"
        file.write_text(f"mixtures: {{m: {{sources: {{s: {source}}}}}}}")
        shown = run("explain", file, "--size", 1, "--show", "--key", 0)[1]
        assert ("..." in shown) == ("(4,097 numbers; --whole shows all)" in shown) == (length > 4096)
        assert "..." not in run("explain", file, "--size", 1, "--show", "--whole", "--key", 0)[1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "uint16",
            "mixtures.m.sources.s: reading the record 8 of the source 's' failed: OSError: [Errno 5] the disk is gone",
        ),
        ("int64", "mixtures.m.sources.s: reading the record 0 of the source 's' failed: WrongRecord: take of"),
    ],
)
def test_check_reads_records_of_every_source(tmp_path, wrong, said):
    module = f"broken_{wrong}"  # Python keeps modules by name
    (tmp_path / f"{module}.py").write_text(BROKEN.replace("WRONG", wrong))
    file = tmp_path / "mixture.yaml"
    file.write_text(f"mixtures: {{m: {{sources: {{s: {{kind: factory, function: '{module}:make', weight: 1}}}}}}}}")
    code, shown = run("check", file)
    assert code == 2
    assert said in shown


def test_fetch_shows_and_writes_nested_records(tmp_path):
    nested = ArraySource({"image": {"pixels": np.zeros((9, 2))}, "label": np.arange(9)}, name="nested")
    alone = ArraySource(np.arange(18).reshape(9, 2), name="alone")
    config = MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE)
    nodes = {"nested": MixDataSourcesNode(config, [nested]), "alone": MixDataSourcesNode(config, [alone])}
    with serve(nodes) as server:
        for mixture, names in (("nested", ["image/pixels", "label"]), ("alone", ["record"])):
            code, shown = run("fetch", server.address, "--mixture", mixture)
            assert code == 0
            assert re.findall(r"^(\S+): \w+\[8", shown, re.MULTILINE) == names
            out = tmp_path / f"{mixture}.npz"
            assert run("fetch", server.address, "--mixture", mixture, "--out", out)[0] == 0
            assert sorted(np.load(out)) == names


def test_the_batch_of_a_state_counts_from_the_beginning_of_the_run(folder, tmp_path):
    file = folder / "mixture.yaml"
    with local_client(build_nodes(load_config(str(file)), str(file))) as client, client.batches(5, 7) as batches:
        for _ in range(4):
            next(batches)
        (tmp_path / "state.json").write_text(json.dumps(batches.get_state()))
    by_state = run("explain", file, "--state", tmp_path / "state.json", "--batch", 3, "--batch-size", 5)
    assert by_state == run("explain", file, "--key", 7, "--batch", 3, "--batch-size", 5)
    assert "batch 3: the positions 15 to 19" in by_state[1]
    assert "key [0, 7]" in by_state[1]


def test_explain_does_not_guess_the_key(folder):
    code, shown = run("explain", folder / "mixture.yaml")
    assert code == 2
    assert "--key is needed" in shown


@pytest.mark.parametrize("command", ["check", "explain --key 0 --size 2000 --all"])
def test_a_reader_of_the_output_may_stop_reading(command, folder):
    name, *options = command.split()
    arguments = [sys.executable, "-m", "mixserve", name, str(folder / "mixture.yaml"), *options]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
