"""The command line and its configuration: its output, and its messages for mistakes."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve_client import MixClient
from tests.processes import server_process, write_mixture


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output + result.stderr


def test_check_shows_the_mixtures(tmp_path):
    code, shown = run("check", write_mixture(tmp_path))
    assert code == 0
    for part in ("mixture train", "70.0000%", "field tokens: uint16[16]", "placement host", "fingerprint"):
        assert part in shown


def test_info_fetch_and_health_ask_a_running_server(server, tmp_path):
    code, shown = run("info", server.address)
    assert code == 0
    assert "source-2" in shown
    assert run("health", server.address) == (0, "SERVING\n")
    code, shown = run("fetch", server.address, "--size", 3, "--key", 7, "--start", 5)
    assert code == 0
    assert "tokens: uint16[3, 5]" in shown
    out = tmp_path / "batch.npz"
    assert run("fetch", server.address, "--size", 3, "--key", 7, "--start", 5, "--out", out)[0] == 0
    with np.load(out) as saved, MixClient.connect(server.address) as client:
        np.testing.assert_array_equal(saved["id"], client.get_batch_at(5, 3, 7)["id"])


def test_asking_where_no_server_is(tmp_path):
    for command in (["info"], ["fetch"]):
        code, shown = run(*command, "127.0.0.1:1", "--timeout-s", 0.2)
        assert code == 2
        assert "mixserve: " in shown
    assert run("health", "127.0.0.1:1", "--timeout-s", 0.2)[0] == 1


def test_fetch_says_what_is_wrong(server):
    assert "size must be at least 1, got 0" in run("fetch", server.address, "--size", 0)[1]
    assert "must be one of 'train', got 'x'" in run("fetch", server.address, "--mixture", "x")[1]
    assert "must be an .npz file" in run("fetch", server.address, "--out", "x.txt")[1]


def test_bench_shows_how_fast_batches_come(server):
    sizes = ("--batch-size", 8, "--batch-size", 3000, "--seconds", 0.1)
    code, shown = run("bench", server.address, *sizes)
    assert code == 0
    for part in ("batches/s", "p99", "3,000", f"shared memory, grpc {server.address}"):
        assert part in shown
    code, shown = run("bench", server.address, *sizes, "--shared-memory", "off")
    assert code == 0
    assert "shared memory" not in shown
    assert run("bench", server.address, "--batch-size", 0)[0] == 2
    assert "must be one of 'train', got 'x'" in run("bench", server.address, "--mixture", "x")[1]


@pytest.mark.parametrize("given", ["flag", "file"])
def test_shared_memory_can_be_turned_off(tmp_path, given):
    config = write_mixture(tmp_path)
    if given == "file":
        config.write_text(config.read_text().replace("{port: 0}", "{port: 0, shared_memory: false}"))
    flags = ("--shared-memory", "off") if given == "flag" else ()
    with server_process(config, *flags) as server, MixClient.connect(server.address()) as client:
        client.get_batch_at(0, 10_000, 0)
        assert "shared memory" not in client.transport


def test_compiled_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    """A cold start of a real server, and starts that find its files. Precedence: flag, file, variable, XDG's."""
    for name in ("MIXSERVE_COMPILATION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    plain = write_mixture(tmp_path)
    config = tmp_path / "named.yaml"
    config.write_text(plain.read_text().replace("{port: 0}", "{port: 0, compilation_cache: named}"))

    def kept(folder: str) -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / folder).glob("*.program")}

    def batch(config: Path, *flags: str, real: bool = False) -> np.ndarray:
        with server_process(config, *flags, real=real) as server:
            with MixClient.connect(server.address()) as client:
                found = client.get_batch_at(0, 100, 3)["tokens"]
            assert server.terminate() == 0
            return found

    expected = batch(config, real=True)
    programs = kept("named")
    names = {name.rpartition("-")[0] for name in programs}
    assert names == {"scores-8x16", *(f"draw-8x{size}" for size in (16, 64, 256, 1024, 4096))}

    np.testing.assert_array_equal(batch(config), expected)
    (tmp_path / "named").rename(tmp_path / "flagged")
    np.testing.assert_array_equal(batch(config, "--compilation-cache", str(tmp_path / "flagged")), expected)
    assert not any((tmp_path / name).exists() for name in ("named", "MIXSERVE_COMPILATION_CACHE", "XDG_CACHE_HOME"))
    (tmp_path / "flagged").rename(tmp_path / "MIXSERVE_COMPILATION_CACHE")
    np.testing.assert_array_equal(batch(plain), expected)
    monkeypatch.delenv("MIXSERVE_COMPILATION_CACHE")
    (tmp_path / "XDG_CACHE_HOME").mkdir()
    (tmp_path / "MIXSERVE_COMPILATION_CACHE").rename(tmp_path / "XDG_CACHE_HOME" / "mixserve")
    np.testing.assert_array_equal(batch(plain), expected)
    assert kept("XDG_CACHE_HOME/mixserve") == programs


@pytest.mark.parametrize("given", ["flag", "file", "variable"])
def test_programs_need_not_be_kept(tmp_path, monkeypatch, given):
    monkeypatch.delenv("MIXSERVE_COMPILATION_CACHE", raising=False)
    if given == "variable":
        monkeypatch.setenv("MIXSERVE_COMPILATION_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    config = write_mixture(tmp_path, sampling="epoch")  # epoch mode plans without a compiled program
    if given == "file":
        config.write_text(config.read_text().replace("{port: 0}", "{port: 0, compilation_cache: false}"))
    with server_process(config, *(("--compilation-cache", "off") if given == "flag" else ())) as server:
        server.address()
    assert not (tmp_path / "xdg").exists()


def test_a_folder_for_programs_needs_a_name(tmp_path):
    config = write_mixture(tmp_path)
    code, shown = run("serve", config, "--compilation-cache", "")
    assert (code, "--compilation-cache must be a folder or off, got ''" in shown) == (2, True)
    config.write_text(config.read_text().replace("{port: 0}", "{port: 0, compilation_cache: ''}"))
    code, shown = run("check", config)
    assert (code, "server.compilation_cache" in shown) == (2, True)


GOOD = "{kind: tokens, path: a.bin, dtype: uint16, sequence_length: 16, weight: 1}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("mixtures: {}", "mixtures: Dictionary should have at least 1 item"),
        ("", "must have the keys mixtures, server, ray, got NoneType"),
        ("[1", "is not YAML"),
        ("mixturs: {}", "mixturs: unknown key; allowed here are mixtures, server"),
        (
            "server: {prot: 1}\nmixtures: {x: {sources: {a: %s}}}",
            "server.prot: unknown key; allowed here are host, port",
        ),
        (
            "server: {limits: {replies: 1}}\nmixtures: {x: {sources: {a: %s}}}",
            "server.limits.replies: unknown key; allowed here are ",
        ),
        (
            "server: {limits: {reply_bytes: 0}}\nmixtures: {x: {sources: {a: %s}}}",
            "server.limits: reply_bytes must be a positive integer, got 0",
        ),
        (
            "server: {limits: {read_timeout_s: 0}}\nmixtures: {x: {sources: {a: %s}}}",
            "server.limits: read_timeout_s must be a number of seconds above 0, got 0",
        ),
        (
            "mixtures: {x: {sauces: {a: %s}}}",
            "mixtures.x.sauces: unknown key; allowed here are sampling, block_size, stop, sources, schedule",
        ),
        ("mixtures: {x: {sources: {a: %s, a: %s}}}", "the key 'a' is there twice"),
        (
            "mixtures: {x: {placement: moon, sources: {a: %s}}}",
            "mixtures.x.placement: Input should be 'auto', 'host' or",
        ),
        ("mixtures: {x: {sources: {a: {kind: csv, weight: 1}}}}", "mixtures.x.sources.a: "),
        ("mixtures: {x: {sources: {a: {weight: 1}}}}", "mixtures.x.sources.a: "),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, paths: a, dtype: uint16, sequence_length: 16, weight: 1}}}}",
            "a.paths: unknown key; allowed here are weight, content_id, on_error, kind, path, dtype, sequence_length",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: a.npz}}}}",
            "mixtures.x: sources.a.weight is required, unless a schedule starts from 0",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: a, weight: -1}}}}",
            "a.weight: weights must be positive or zero",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: a, weight: .nan}}}}",
            "a.weight: weights must be positive or zero",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: a, weight: many}}}}",
            "a.weight: Input should be a valid number",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: a.npz, weight: 1}}}}",
            "mixtures.x.sources.a: [Errno 2] No such file",
        ),
        ("mixtures: {'': {sources: {a: %s}}}", "mixtures."),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, path: [], dtype: uint16, sequence_length: 1, weight: 1}}}}",
            ".path",
        ),
        ("mixtures: {x: {sources: {a: {kind: arrays, path: empty.npz, weight: 1}}}}", "mixtures.x.sources.a: "),
        (
            "mixtures: {x: {sources: {a: {kind: arrays, path: x.npz, dtypes: {x: float32}, weight: 1}}}}",
            "stored as int32",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: factory, function: 'broken:f', weight: 1}}}}",
            "broken:f failed: SyntaxError",
        ),
        ("mixtures: {x: {sources: {a: {kind: arrays, path: '*.npy', weight: 1}}}}", "path: no file matches '*.npy'"),
        ("mixtures: {x: {sources: {a: {kind: arrays, path: a.bin, weight: 1}}}}", "mixtures.x.sources.a: "),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, path: o.bin, dtype: uint16, sequence_length: 1, weight: 1}}}}",
            "o.bin has 3 bytes, which is not a multiple of the 2 bytes of uint16",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, path: a.bin, dtype: word, sequence_length: 2, weight: 1}}}}",
            "mixtures.x.sources.a: dtype must be one of bool, int8",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, path: a.bin, dtype: uint16, sequence_length: 0, weight: 1}}}}",
            "sequence_length: Input should be greater than or equal to 1",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: tokens, path: a.bin, dtype: uint16, sequence_length: 2, weight: 0}}}}",
            "mixtures.x: weights must have a positive, finite sum",
        ),
        ("mixtures: {x: {sources: {a: {kind: factory, function: os.getcwd, weight: 1}}}}", "a.function: "),
        (
            "mixtures: {x: {sources: {a: {kind: factory, function: 'os:getcwd', weight: 1}}}}",
            "must return a Source, got",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: factory, function: 'no_such:f', weight: 1}}}}",
            "No module named 'no_such'",
        ),
        (
            "mixtures: {x: {sources: {a: {kind: factory, function: 'words:make', weight: 1}}}}",
            "mixtures.x: the source 'a' has no numeric element_spec",
        ),
        ("server: {port: 70000}\nmixtures: {x: {sources: {a: %s}}}", "server.port: Input should be less than or equal"),
    ],
)
def test_configurations_that_are_wrong_end_with_2_and_name_file_and_key(tmp_path, content, said):
    write_mixture(tmp_path)
    (tmp_path / "o.bin").write_bytes(b"123")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "x.npz", x=np.arange(4, dtype=np.int32))
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "words.py").write_text(
        "from mixserve import RandomAccessSource\ndef make():\n    return RandomAccessSource([{'t': 'a'}])\n"
    )
    file = tmp_path / "wrong.yaml"
    file.write_text(content.replace("%s", GOOD))
    code, shown = run("check", file)
    assert code == 2
    assert str(file) in shown.replace("\n", "") or str(file) in shown
    assert said in shown


def test_a_missing_file_is_named(tmp_path):
    code, shown = run("serve", tmp_path / "none.yaml")
    assert code == 2
    assert "none.yaml: cannot be read: No such file" in shown


def test_a_wrong_configuration_prints_no_traceback(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("mixtures: {x: {sources: {a: {kind: arrays, path: none.npz, weight: 1}}}}")
    ended = subprocess.run([sys.executable, "-m", "mixserve", "check", file], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "none.npz" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_kinds_of_sources(tmp_path):
    np.savez(tmp_path / "one.npz", x=np.arange(6).reshape(3, 2), y=np.ones(3, ml_dtypes.bfloat16))
    np.savez(tmp_path / "two.npz", x=np.arange(4).reshape(2, 2), y=np.ones(2, ml_dtypes.bfloat16))
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "x.npy", np.arange(8).reshape(4, 2))
    np.save(folder / "y.npy", np.ones(4, ml_dtypes.bfloat16))
    (tmp_path / "homemade.py").write_text(
        "import ml_dtypes, numpy as np\nfrom mixserve import ArraySource\n"
        "def make(rows):\n"
        "    return ArraySource({'x': np.zeros((rows, 2), int), 'y': np.zeros(rows, ml_dtypes.bfloat16)})\n"
    )
    file = tmp_path / "mixture.yaml"
    file.write_text(
        "mixtures:\n  m:\n    sources:\n"
        "      zips: {kind: arrays, path: ['t*.npz', 'one.npz'], dtypes: {y: bfloat16}, weight: 1}\n"
        "      maps: {kind: arrays, path: folder, dtypes: {y: bfloat16}, weight: 1}\n"
        "      made: {kind: factory, function: 'homemade:make', arguments: {rows: 7}, weight: 2}\n"
    )
    node = build_nodes(load_config(file), file)["m"]
    zips, maps, made = node.sources
    assert node.mixture.names == ("zips", "maps", "made")
    assert node.config.weights == (0.25, 0.25, 0.5)
    assert zips.take(np.array([0, 2]))["x"].tolist() == [[0, 1], [0, 1]]
    assert (len(zips), len(maps), len(made)) == (5, 4, 7)
    assert not maps.blocks()[0]["x"].flags.writeable
    assert str(tmp_path) not in sys.path
    file.write_text(file.read_text().replace("dtypes: {y", "dtypes: {z", 1))
    with pytest.raises(ConfigError, match=r"mixtures\.m\.sources\.zips: dtypes: .* fields \['x', 'y'\], not \['z'\]"):
        build_nodes(load_config(file), file)


def test_flags_come_before_the_file(tmp_path):
    config = write_mixture(tmp_path)
    assert "placement device" in run("check", config, "--placement", "device")[1]
    code, shown = run("check", config, "--placement", "moon")
    assert code == 2
    assert "placement must be one of auto, host, device, got 'moon'" in shown


def test_sources_may_share_settings_through_yaml_merges_and_have_odd_names(tmp_path):
    write_mixture(tmp_path)
    file = tmp_path / "merged.yaml"
    file.write_text(
        "mixtures:\n  m:\n    sources:\n"
        "      '[/foo]': &t {kind: tokens, path: a.bin, dtype: uint16, sequence_length: 16, weight: 1}\n"
        "      b: {<<: *t, path: b.bin, weight: 3}\n"
    )
    code, shown = run("check", file)
    assert code == 0
    assert "[/foo]" in shown
    assert "75.0000%" in shown


def test_a_probe_without_an_address_says_so():
    assert run("health", "")[0] == 1


def test_a_mixture_configures_the_surface_of_its_node(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(6, dtype=np.int32))
    (tmp_path / "known_stats.py").write_text("def total(batch):\n    return {'total': int(batch['x'].sum())}\n")
    (tmp_path / "bad_stats.py").write_text("def f(:")
    file = tmp_path / "mixture.yaml"

    def node_of(settings: str):
        file.write_text("mixtures: {m: {sources: {a: {kind: arrays, path: x.npz, weight: 1}}, %s}}" % settings)  # noqa: UP031
        return build_nodes(load_config(file), file)["m"]

    node = node_of("cacheable: true, batch_stats_fn: 'known_stats:total'")
    batch = node.get_batch_at(0, 5, 1)
    assert node.config.cacheable
    assert node.compute_statistics(batch) == {"total": int(batch["x"].sum())} == node.get_statistics()
    assert node_of("precomputed_stats: {mean: [1.5, 2]}").get_statistics() == {"mean": [1.5, 2]}
    for settings, said in (
        ("batch_stats_fn: 'known_stats:none'", r"mixtures\.m: batch_stats_fn: known_stats:none failed"),
        ("batch_stats_fn: 'bad_stats:f'", "batch_stats_fn: bad_stats:f failed: SyntaxError"),
        ("batch_stats_fn: len", r"mixtures\.m\.batch_stats_fn"),
        ("batch_stats_fn: 'os:getcwd', precomputed_stats: {}", "exclude each other"),
        ("cacheable: often", r"mixtures\.m\.cacheable"),
    ):
        with pytest.raises(ConfigError, match=said):
            node_of(settings)
