"""What the commands print about sampling: descriptions, simulations, and the records of a range of positions."""

import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import serve
from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.cli.simulation import expected_distinct, expected_unseen, simulate
from mixserve.config import load_config
from mixserve.local import local_client
from mixserve_client import MixClient

LENGTHS = {"web": 4000, "code": 900, "math": 80}
MIXTURES = """
mixtures:
  drawn:
    sources:
      web: {kind: arrays, path: web.npz, weight: 0.7}
      code: {kind: arrays, path: code.npz, weight: 0.25}
      math: {kind: arrays, path: math.npz, weight: 0.05}
  passes:
    sampling: epoch
    block_size: 100
    stop: all_exhausted
    sources:
      web: {kind: arrays, path: web.npz, weight: 0.7}
      code: {kind: arrays, path: code.npz, weight: 0.25}
      math: {kind: arrays, path: math.npz, weight: 0.05}
  changing:
    sampling: epoch
    block_size: 100
    sources:
      web: {kind: arrays, path: web.npz}
      math: {kind: arrays, path: math.npz}
    schedule:
      - {from: 0, weights: {web: 1, math: 0}}
      - {from: 1000, weights: {web: 0.5, math: 0.5}}
  nested:
    sources:
      inner: {kind: factory, function: "inner_mixture:make", weight: 3}
      math: {kind: arrays, path: math.npz, weight: 1}
"""
INNER = """
import numpy as np
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

def make():
    arrays = [{"x": np.arange(2 * n, dtype=np.int32).reshape(n, 2)} for n in (50, 300)]
    sources = [ArraySource(one, name=f"part{i}") for i, one in enumerate(arrays)]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0.2, 0.8)), sources)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixtures")
    for place, (name, length) in enumerate(LENGTHS.items()):
        x = np.arange(2 * length, dtype=np.int32).reshape(length, 2) + 100_000 * place
        np.savez(folder / f"{name}.npz", x=x)
    (folder / "inner_mixture.py").write_text(INNER)
    file = folder / "mixture.yaml"
    file.write_text(MIXTURES)
    return file


@pytest.fixture(scope="module")
def address(config):
    with serve(build_nodes(load_config(config), config)) as running:
        yield running.address


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def rows(shown: str) -> list[list[str]]:
    """The cells of the rows of all tables."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if line.startswith("│")
    ]


def with_key(*arguments: object) -> tuple[object, ...]:
    """The arguments of `explain`, with the key 0 if they name neither a key nor a state."""
    return arguments if {"--key", "--state"} & set(arguments) else (*arguments, "--key", 0)


def run_explain(*arguments: object) -> list[tuple[int, str, int]]:
    """Position, source and record of every row that `explain` shows."""
    code, shown = run("explain", *with_key(*arguments))
    assert code == 0, shown
    plain = shown.replace(",", "")
    return [(int(at), name, int(record)) for at, name, record in re.findall(r"│ +(\d+) │ (\S+) +│ +(\d+) │", plain)]


def test_check_and_info_show_passes_end_schedule_and_leaves(config, address):
    for (code, shown), added in ((run("check", config), 1), (run("info", address), 0)):
        assert code == 0
        assert "block size 100, stop all_exhausted, end at position 5,71" in shown
        found = [cells[:2] + cells[2 + added :][:2] for cells in rows(shown)]  # check has a column of bytes there
        assert found.count(["math", "80", "5.0000%"]) == 1 - added  # with replacement there are no passes
        changing = shown[shown.index("mixture changing") :].partition("mixture nested" if added else "mixture drawn")[0]
        assert "no end" in changing
        assert ["1,000", "50.0000%", "50.0000%"] in rows(changing)
        assert ["web", "4,000", "100.0000%", "7,000"] in found
        assert "leaves, as source_id counts them: inner/part0, inner/part1, math" in shown
    shown = run("check", config, "--mixture", "passes")[1]
    assert "mixture passes" in shown
    assert "mixture drawn" not in shown


def test_long_schedules_are_cut(tmp_path, config):
    weights = "{web: 1, code: 1, math: 1}"
    entries = "\n".join(f"      - {{from: {100 * i}, weights: {weights}}}" for i in range(50))
    sources = "\n".join(f"      {name}: {{kind: arrays, path: {config.parent / name}.npz}}" for name in LENGTHS)
    file = tmp_path / "long.yaml"
    file.write_text(f"mixtures:\n  m:\n    sources:\n{sources}\n    schedule:\n{entries}\n")
    shown = run("check", file)[1]
    assert "1,900" in shown
    assert "2,000" not in shown
    assert "and 30 more entries" in shown


def test_simulated_draws_with_replacement(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = run("check", config, "--mixture", "drawn", "--simulate", "10_000", "--key", 3)
    assert code == 0
    with local_client(build_nodes(load_config(config), config)) as client:
        planned = client.get_plan_at(0, 10_000, 3, mixture="drawn")
    for place, (name, length) in enumerate(LENGTHS.items()):
        records = planned["record_id"][planned["source_id"] == place]
        share, count = (0.7, 0.25, 0.05)[place], len(records)
        assert [
            name,
            f"{share:.4%}",
            f"{count / 10_000:.4%}",
            f"{count / 10_000 - share:+.4%}",
            f"{count:,}",
        ] in rows(shown)
        distinct = len(np.unique(records))
        expected = count - length * (1 - (1 - 1 / length) ** count)
        assert [
            name,
            f"{length:,}",
            f"{count / length:.3f}",
            f"{distinct:,}",
            f"~{expected:,.0f}",
            f"{1 - distinct / length:.2%}",
        ] in rows(shown)
    assert "picture: drawn_simulated.png" in shown
    assert (tmp_path / "drawn_simulated.png").exists()


def test_simulated_passes_stop_at_the_end(config, tmp_path):
    picture = tmp_path / "picture.png"
    code, shown = run("check", config, "--mixture", "passes", "--simulate", 10**6, "--plot", picture)
    assert code == 0
    assert re.search(r"the mixture ends at position (5,71\d): \1 of 1,000,000 rows", shown)
    web = next(cells for cells in rows(shown) if cells[:2] == ["web", "4,000"] and len(cells) == 6)
    assert web == ["web", "4,000", "1.000", "4,000", "0", "0.00%"]
    math = next(cells for cells in rows(shown) if cells[:2] == ["math", "80"] and len(cells) == 6)
    assert math[3] == "80"
    assert int(math[4]) == pytest.approx(5715 * 0.05 - 80, abs=1)
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert struct.unpack(">II", content[16:24]) > (1000, 400)
    assert len(content) > 20_000


def test_requested_shares_are_the_average_of_the_schedule(config, tmp_path):
    arguments = ("check", config, "--mixture", "changing", "--simulate", 4000, "--plot", tmp_path / "x.png")
    assert ["math", "37.5000%", "37.5000%", "+0.0000%", "1,500"] in rows(run(*arguments)[1])


def test_windows_follow_the_schedule(config):
    nodes = build_nodes(load_config(config), config)
    with local_client(nodes) as client:
        simulated = simulate(client, nodes["changing"].mixture, "changing", 5000, 0)
    assert simulated.entries == ((0, 1000), (1000, 5000))
    assert simulated.rows.tolist() == [[100, 0]] * 10 + [[50, 50]] * 40


def test_nested_mixtures_are_simulated_by_leaves(config, tmp_path):
    arguments = ("check", config, "--mixture", "nested", "--simulate", 20_000, "--plot", tmp_path / "x.png")
    found = {cells[0]: cells for cells in rows(run(*arguments)[1]) if len(cells) == 5}
    for name, share in {"inner/part0": 15, "inner/part1": 60, "math": 25}.items():
        assert found[name][1] == f"{share}.0000%"
        assert abs(float(found[name][3].rstrip("%"))) < 2


def test_a_single_position_and_all_mixtures_of_a_file(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run("check", config, "--simulate", 1)
    assert code == 0
    assert len(list(tmp_path.glob("*_simulated.png"))) == 4


def test_expectations_lose_no_digits():
    assert expected_distinct(5, 1) == 1
    assert expected_distinct(0, 1) == expected_distinct(0, 10**15) == 0
    assert expected_distinct(2, 10**15) == pytest.approx(2, abs=1e-12)
    assert expected_distinct(10**6, 10**12) == pytest.approx(10**6 - 0.5, abs=1e-3)
    assert expected_unseen(1000, 1000) == pytest.approx(0.999**1000)


def test_without_matplotlib_there_is_one_line_and_no_picture(config, tmp_path):
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from mixserve.cli.main import app\n"
        f"app(['check', {str(config)!r}, '--mixture', 'passes', '--simulate', '500'])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "no picture: it needs matplotlib; pip install 'mixserve[demo]'" in ended.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mixture", ["drawn", "passes", "changing", "nested"])
def test_explain_is_the_same_by_file_by_server_and_by_provenance(config, address, mixture):
    options = ("--start", 990, "--size", 40, "--key", 7, "--mixture", mixture)
    shown = run_explain(config, *options)
    assert shown == run_explain(address, *options)
    with MixClient.connect(address) as client:
        batch = client.get_batch_at(990, 40, 7, mixture=mixture, provenance=True)
        names = client.mixture(mixture).leaves
    where = zip(batch["source_id"].tolist(), batch["record_id"].tolist(), strict=True)
    assert shown == [(990 + row, names[source], record) for row, (source, record) in enumerate(where)]


def test_explain_shows_the_ends_of_many_rows_and_counts_all(config):
    options = (config, "--mixture", "changing", "--start", 1000, "--size", 200_000)
    shown = run("explain", *with_key(*options))[1]
    assert [position for position, _, _ in run_explain(*options)] == [*range(1000, 1032), *range(200_968, 201_000)]
    assert "199,936 more rows; --all shows them" in shown
    assert ["math", "100,000", "50.0000%"] in rows(shown)
    assert len(run_explain(config, "--mixture", "changing", "--size", 100, "--all")) == 100


def test_explain_shows_the_records(config, address):
    for target in (config, address):
        code, shown = run("explain", target, "--mixture", "drawn", "--size", 3, "--key", 1, "--show")
        assert code == 0
        with MixClient.connect(address) as client:
            batch = client.get_batch_at(0, 3, 1, mixture="drawn")
        assert [f"[{a} {b}]" for a, b in batch["x"].tolist()] == re.findall(r"x: (\[.*\])", shown)


def test_explain_takes_the_state_of_an_iterator(config, address, tmp_path):
    file = tmp_path / "state.json"
    with (
        MixClient.connect(address) as client,
        client.batches(50, [5, 6], mixture="changing", provenance=True, skip=[(210, 220)]) as batches,
    ):
        next(batches)
        assert batches.schedule_weights({"web": 1, "math": 3}, 150) == 200
        for _ in range(3):
            next(batches)
        file.write_text(json.dumps(batches.get_state()))
        coming = next(batches)
    for target in (config, address):
        shown = run_explain(target, "--state", file, "--size", 60)
        assert [position for position, _, _ in shown] == [*range(200, 260)]
        kept = [(name, record) for position, name, record in shown if not 210 <= position < 220]
        names = [("web", "math")[source] for source in coming["source_id"]]
        assert kept == list(zip(names, coming["record_id"].tolist(), strict=True))
    shown = run("explain", config, "--state", file, "--size", 60, "--show")[1]
    assert "10 of the 60 rows are skipped by the state, and not counted" in shown
    assert len(re.findall("│ skipped │", shown)) == 10
    assert len(re.findall("x: ", shown)) == 50
    # Flags override the state.
    flagged = run_explain(config, "--state", file, "--key", 9, "--start", 0, "--size", 5)
    assert flagged == run_explain(config, "--mixture", "changing", "--key", 9, "--size", 5)
    code, shown = run("explain", config, "--state", file, "--mixture", "drawn")
    assert code == 2
    assert "the state was taken from the mixture 'changing' with the fingerprint" in shown


def test_explain_stops_at_the_end_of_the_schedule_of_the_state(config, tmp_path):
    with local_client(build_nodes(load_config(config), config)) as client:
        batches = client.batches(50, 0, mixture="passes")
        batches.schedule_weights([0.1, 0.8, 0.1], 0)
        state = tmp_path / "state.json"
        state.write_text(json.dumps(batches.get_state()))
        end = client.mixture("passes").end
    assert end is not None
    last = run_explain(config, "--state", state, "--start", end, "--size", 5)
    assert len(last) == 5  # web takes longer now
    assert len(run_explain(config, "--mixture", "passes", "--start", end - 3, "--size", 5)) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mixture", "passes", "--start", 10**6), "start must be below that, got 1000000"),
        (("--mixture", "passes", "--size", 0), "size must be at least 1, got 0"),
        (("--mixture", "passes", "--start", -1), "start must be"),
        (("--mixture", "passes", "--key", -1), "key must be an integer seed"),
        (("--mixture", "none"), "must be one of 'changing', 'drawn', 'nested', 'passes', got 'none'"),
        ((), "mixture is required: this server has several"),
        (("--state", "none.json"), "--state none.json: cannot be read: No such file"),
    ],
)
def test_explain_says_what_is_wrong(config, address, arguments, said):
    for target in (config, address):
        code, shown = run("explain", target, *with_key(*arguments))
        assert code == 2
        assert said in shown
        assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "an object that names its mixture; got [1]"),
        ('{"mixture": 5}', "an object that names its mixture"),
        ('{"mixture": "drawn"}', "a state must be a dict of exactly version, mixture"),
        ('{"version": 1, "mixture": "drawn", "fingerprint": "00", "key": [0, 1], "position": 0}', "fingerprint 00"),
        ('{"version": 1, "mixture": "drawn", "fingerprint": "00", "key": [0], "position": 0}', "key must be"),
    ],
)
def test_explain_refuses_what_is_no_state(config, tmp_path, content, said):
    file = tmp_path / "state.json"
    file.write_text(content)
    code, shown = run("explain", config, "--state", file)
    assert code == 2
    assert said in shown


def test_other_things_that_are_wrong(config, tmp_path):
    code, shown = run("explain", *with_key(tmp_path / "none.yaml"))
    assert (code, "none.yaml: cannot be read: No such file" in shown) == (2, True)
    assert run("explain", "127.0.0.1:1", "--timeout-s", 0.2, "--key", 1)[0] == 2
    for arguments, said in (
        (("--plot", "x.png"), "needs --simulate N"),
        (("--simulate", 10, "--plot", "x.txt"), "--plot must be a .png file, got x.txt"),
        (("--simulate", 10, "--plot", "none/x.png"), "--plot must be in a folder that exists"),
        (("--simulate", 10, "--plot", "x.png"), "choose one with --mixture"),
        (("--simulate", 10, "--key", -1), "key must be an integer seed"),
        (("--simulate", 10, "--mixture", "none"), "got 'none'"),
        (("--mixture", "none"), "got 'none'"),
        (("--simulate", 0), "--simulate"),
    ):
        code, shown = run("check", config, *arguments)
        assert code == 2, arguments
        assert said in shown
