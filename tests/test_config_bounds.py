"""`mixserve check` on hostile and odd configuration files: one short message and exit code 2, and soon."""

import os
import socket
import subprocess
import sys
import time
import zipfile
from glob import glob, has_magic
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve.sources.kinds.globbing import matches
from mixserve.yaml_file import MOST_LEVELS, BadYaml, parse_yaml
from mixserve_client.schema.text import MESSAGE_CHARACTERS, describe_error, shorten, show
from tests.processes import write_mixture
from tests.profiles import examples

LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])]
TOKENS = "kind: tokens, path: a.bin, dtype: uint16, sequence_length: 16"


def check_message(file: Path, *flags: str) -> str:
    """The one message with which `mixserve check` ends."""
    result = CliRunner().invoke(app, ["check", str(file), *flags])
    assert result.exit_code == 2, (result.exit_code, result.exception, result.output)
    assert isinstance(result.exception, SystemExit), result.exception
    said = result.stderr
    assert said.startswith("mixserve: "), said
    assert len(said) < MESSAGE_CHARACTERS + 100
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mixture(tmp_path)
    return tmp_path


def mixture(folder: Path, sources: str, name: str = "odd.yaml", settings: str = "") -> Path:
    file = folder / name
    file.write_text(f"mixtures: {{m: {{{settings} sources: {{{sources}}}}}}}")
    return file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 50_000, f"nested at most {MOST_LEVELS} levels deep"),
        ("- " * 3_000, f"nested at most {MOST_LEVELS} levels deep"),
        ("{a: " * 50_000, f"nested at most {MOST_LEVELS} levels deep"),
        ("a: " + "9" * 5_000, "has 5,000; quote it"),
        ("a: 1" + ":00" * 5_000, "quote it"),
        ("a: 0x" + "f" * 900, "a: unknown key"),
        ("server: {port: 0x" + "f" * 900 + "}", "an integer of 3,600 bits"),
        ("server: {session_ttl_s: 0x" + "f" * 900 + "}", "server.session_ttl_s"),
        ("server: {session_ttl_s: .inf}", "server.session_ttl_s: must be a positive, finite"),
        ("server: {port: .nan}", "server.port"),
        ("server: {port: -1}", "server.port"),
        ("a: 2001-99-99", "line 1, column 4: '2001-99-99' is not a valid timestamp"),
        ("!!int abc", "'abc' is not a valid int"),
        ("!!float abc", "'abc' is not a valid float"),
        ("!!bool abc", "'abc' is not a valid bool"),
        ("!!int ''", "'' is not a valid int"),
        ("a: !!timestamp b", "'b' is not a valid timestamp"),
        ("a: !!binary é", "is not a valid binary"),
        ("!!map abc", "tag 'tag:yaml.org,2002:map' is not known for 'abc'"),
        ("!!python/object/apply:os.getcwd []", "is not known for a list"),
        ("!unknown {}", "the tag '!unknown' is not known for a mapping"),
        ("? [1]\n: 2", "a key must be a text or a number, got [1]"),
        ("? {a: 1}\n: 2", "a key must be a text or a number"),
        ("mixtures: {x: {a: 1, a: 2}}", "the key 'a' is there twice"),
        (
            "mixtures: {x: {sources: {a: {kind: factory, arguments: {q: [{b: 1, b: 2}]}}}}}",
            "the key 'b' is there twice",
        ),
        ("{1: a, '1': b}", "the key '1' is there twice"),
        ("a: *nothing", "the alias *nothing has no anchor"),
        ("&a [*a]", "the alias *a is inside its own anchor"),
        ("a: <<", "<< is for keys"),
        ("{<<: 3}", "<< merges a mapping or a list of mappings, got 3"),
        ("a: 1\n---\nb: 2", "a second one begins here"),
        ("1: 2", "1: "),
        ("null: 2", "null: unknown key"),
        ("mixtures: {1: {}}", "mixtures.1"),
        ("mixtures: {a\\u0085b: {sources: {}}}", "mixtures."),
        ('mixtures: {"a\\u200bb": {sources: {a: {a: 1}}}}', "must be printable, got 'a\\u200bb'"),
        ("x" * 100_000, "must have the keys mixtures, server, ray, got str"),
        ('mixtures:\n  ? "' + "x" * 100_000 + '"\n  : 1', "more characters"),
        ("server: {host: '" + "x" * 100_000 + "'}", "server.host"),
        ("mixtures: {m: {placement: [" + "abcdefgh, " * 10_000 + "]}}", "mixtures.m.placement"),
        ("\n".join(f"key-{i}: 1" for i in range(10_000)), "and 9,996 more problems"),
    ],
)
def test_odd_yaml_ends_with_one_short_message(tmp_path, content, said):
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    shown_text = check_message(file)
    assert str(file) in shown_text
    assert said in shown_text


@pytest.mark.parametrize("loader", LOADERS)
def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path, loader):
    lists = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    merges = "a0: &a0 {k: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)
    )
    texts = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 10_000)}]\n"
    for content in (lists, merges, texts):
        with pytest.raises(BadYaml, match="with those that its aliases repeat"):
            parse_yaml(content, loader)


def test_files_that_are_no_text_are_named_as_such(tmp_path):
    file = tmp_path / "odd.yaml"
    for content, said in (
        ("mixtures: {}".encode("utf-16"), "is not YAML in UTF-8: byte 0 is 0xff"),
        (bytes(range(256)), "is not YAML"),
        (b"\x00" * 100, "is not YAML"),
        (b"", "must have the keys mixtures, server, ray, got NoneType"),
        (b"# nothing\n", "got NoneType"),
        (b"\xef\xbb\xbfmixtures: {}", "at least 1 item"),  # a byte order mark does not count as text
    ):
        file.write_bytes(content)
        assert said in check_message(file)
    with file.open("wb") as out:
        out.truncate((64 << 20) + 1)
    assert "may have at most 64 MiB" in check_message(file)
    assert "cannot be read: Is a directory" in check_message(tmp_path)
    assert "cannot be read: No such file" in check_message(tmp_path / "none")
    assert "cannot be read: File name too long" in check_message(tmp_path / ("x" * 3000))


def test_pipes_and_devices_are_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        assert "must be a regular file" in check_message(file)


def test_sources_may_not_be_pipes_sockets_or_devices(folder):
    os.mkfifo(folder / "pipe")
    (folder / "arrays").mkdir()
    os.mkfifo(folder / "arrays" / "x.npy")
    with socket.socket(socket.AF_UNIX) as listening, TemporaryDirectory() as short_folder:
        listening.bind(f"{short_folder}/socket")
        for path, found in (
            ("pipe", "pipe must be a file{}, got a pipe"),
            (f"{short_folder}/socket", "must be a file{}, got a socket"),
            ("/dev/zero", "must be a file{}, got a device"),
            ("p*e", "must be a file{}, got a pipe"),
        ):
            tokens = f"a: {{kind: tokens, path: '{path}', dtype: uint16, sequence_length: 2, weight: 1}}"
            arrays = f"a: {{kind: arrays, path: '{path}', weight: 1}}"
            for sources, extra in ((tokens, ""), (arrays, " or a folder")):
                said = check_message(mixture(folder, sources))
                assert "mixtures.m.sources.a: path: " in said
                assert found.format(extra) in said
    said = check_message(
        mixture(folder, "a: {kind: tokens, path: arrays, dtype: uint16, sequence_length: 2, weight: 1}")
    )
    assert "arrays must be a file, got a folder" in said
    assert "x.npy must be a file, got a pipe" in check_message(
        mixture(folder, "a: {kind: arrays, path: arrays, weight: 1}")
    )


def test_damaged_and_foreign_arrays_are_named(folder):
    np.savez(folder / "pickles.npz", x=np.array([{}, None], dtype=object))
    np.savez_compressed(folder / "good.npz", x=np.arange(100_000))
    whole = (folder / "good.npz").read_bytes()
    (folder / "short.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "bent.npz").write_bytes(whole[:5000] + bytes(1000) + whole[6000:])
    (folder / "text.npz").write_bytes(b"no zip at all")
    (folder / "pickled.npz").write_bytes(b"\x80\x04N.")
    with zipfile.ZipFile(folder / "foreign.npz", "w") as zipped:
        zipped.writestr("notes.txt", "hello")
    with zipfile.ZipFile(folder / "empty.npz", "w"):
        pass
    for name in ("objects", "cut", "huge", "list"):
        (folder / name).mkdir()
    np.save(folder / "objects" / "x.npy", np.array([{}], dtype=object))
    np.save(folder / "cut" / "x.npy", np.arange(1000))
    whole = (folder / "cut" / "x.npy").read_bytes()
    (folder / "cut" / "x.npy").write_bytes(whole[:500])
    (folder / "huge" / "x.npy").write_bytes(whole.replace(b"(1000,)", b"(9" + b"9" * 17 + b",)")[:128] + bytes(8))
    (folder / "list" / "x.npy").write_bytes((folder / "good.npz").read_bytes())
    for path in ("pickles.npz", "short.npz", "bent.npz", "text.npz", "pickled.npz", "foreign.npz", "empty.npz"):
        said = check_message(mixture(folder, f"a: {{kind: arrays, path: {path}, weight: 1}}"))
        assert "mixtures.m.sources.a: path: " in said, path
        assert path in said
    for path in ("objects", "cut", "huge", "list"):
        said = check_message(mixture(folder, f"a: {{kind: arrays, path: {path}, weight: 1}}"))
        assert "mixtures.m.sources.a: path: " in said, path
        assert path in said


@pytest.mark.parametrize(
    "raised", ["SystemExit(0)", "GeneratorExit()", "StopIteration(1)", "RecursionError('deep')", "Odd()"]
)
@pytest.mark.parametrize("where", ["import", "call", "len", "spec", "digest"])
def test_whatever_the_users_code_raises_is_one_message(folder, raised, where):
    module = f"raising_{where}_{raised.partition('(')[0]}"
    (folder / f"{module}.py").write_text(
        "import numpy as np\n"
        "class Odd(BaseException):\n    def __str__(self): raise ZeroDivisionError\n"
        f"def fail(*_): raise {raised}\n"
        "class Made:\n"
        "    name = None\n"
        f"    def __len__(self): return {'fail()' if where == 'len' else 4}\n"
        f"    def element_spec(self): return {'fail()' if where == 'spec' else 'np.zeros(())'}\n"
        "    def take(self, ids): return np.asarray(ids)\n"
        f"    def content_digest(self): return {'fail()' if where == 'digest' else repr(b'')}\n"
        f"def make(): {'fail()' if where == 'call' else 'return Made()'}\n"
        f"{'fail()' if where == 'import' else ''}\n"
    )
    said = check_message(mixture(folder, f"a: {{kind: factory, function: '{module}:make', weight: 1}}"))
    assert "odd.yaml: mixtures.m" in said
    if where == "import":
        file = mixture(folder, f"a: {{{TOKENS}, weight: 1}}", settings=f"batch_stats_fn: '{module}:make',")
        assert f"batch_stats_fn: {module}:make failed: " in check_message(file)


def test_sys_exit_is_no_factory_and_no_success(folder):
    said = check_message(mixture(folder, "a: {kind: factory, function: 'sys:exit', weight: 1}"))
    assert "function: sys:exit failed: SystemExit" in said
    file = mixture(folder, f"a: {{{TOKENS}, weight: 1}}", settings="batch_stats_fn: 'sys:argv',")
    assert "batch_stats_fn: sys:argv must be a function" in check_message(file)
    long = mixture(
        folder, f"a: {{kind: factory, function: 'builtins:dict', arguments: {{a: {'x' * 9999}}}, weight: 1}}"
    )
    assert "must return a Source, got {'a': 'xxx" in check_message(long)


def test_globs_end_in_folders_that_link_to_themselves(folder):
    (folder / "data").mkdir()
    for link in ("left", "right"):
        (folder / "data" / link).symlink_to(".")
    np.savez(folder / "data" / "x.npz", x=np.arange(4))
    began = time.monotonic()
    assert matches("data/**/*.npz", str(folder)) == ["data/x.npz"]
    file = mixture(folder, "a: {kind: arrays, path: 'data/**/*.npz', weight: 1}")
    assert CliRunner().invoke(app, ["check", str(file)]).exit_code == 0
    assert time.monotonic() - began < 20


def test_globs_have_bounds(folder, monkeypatch):
    monkeypatch.setattr("mixserve.sources.kinds.globbing.MOST_FOLDERS", 50)
    monkeypatch.setattr("mixserve.sources.kinds.globbing.MOST_MATCHES", 20)
    for i in range(30):  # no link points back, and there are 2^30 paths through
        (folder / f"d{i}").mkdir()
        for link in "pq":
            (folder / f"d{i}" / link).symlink_to(f"../d{i + 1}")
        (folder / f"f{i}.npz").touch()
    for pattern, said in (("d0/**/*.npz", "more than 50 folders"), ("f*.npz", "more than 20 paths match")):
        assert said in check_message(mixture(folder, f"a: {{kind: arrays, path: '{pattern}', weight: 1}}"))


PARTS = st.lists(st.sampled_from(["*", "**", "a", "?", "*.npy", ".*", "[ab]", "b", ".", "a*"]), min_size=1, max_size=4)
TREES = st.lists(
    st.lists(st.sampled_from(["a", "b", ".h", "ab", "a.npy"]), min_size=1, max_size=4).map("/".join), max_size=8
)


@settings(max_examples=examples(60))
@given(TREES, PARTS.map("/".join), st.booleans(), st.booleans())
def test_globs_find_what_pythons_own_finds(tree, pattern, is_absolute, only_folders):
    with TemporaryDirectory() as folder:
        for path in tree:
            try:
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).touch()
            except OSError:
                pass  # a file is in the way
        pattern = f"{folder}/" * is_absolute + pattern + "/" * only_folders
        found = set(glob(pattern, root_dir=folder, recursive=True))
        found = {path for path in found if os.path.lexists(f"{folder}/{path}" if not is_absolute else path)}
        assert not has_magic(pattern) or matches(pattern, folder) == sorted(found)


def test_ten_thousand_sources_are_checked_in_seconds(tmp_path):
    (tmp_path / "one_source.py").write_text(
        "import numpy as np\nfrom mixserve import ArraySource\n"
        "source = ArraySource({'x': np.arange(8)})\ndef make():\n    return source\n"
    )
    file = tmp_path / "many.yaml"
    sources = "".join(f"      s{i}: {{<<: *one}}\n" for i in range(10_000))
    file.write_text(
        "mixtures:\n  m:\n    sources:\n"
        f"      first: &one {{kind: factory, function: 'one_source:make', weight: 1}}\n{sources}"
    )
    began = time.process_time()
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    assert "and 9,501 more sources" in result.output
    assert time.process_time() - began < 12


WORDS = (
    "mixtures: server: sources: kind: weight: schedule: from: weights: path: arguments: a: ? - [ ] { } , & * <<: *a &a "
    "!!int !!set !!omap !!binary !!timestamp !x tokens arrays factory 1 -1 .nan .inf 1e999 0x10 07 1:30 2001-99-99 ~ "
    "null true yes = '' \"\\x00\" --- ... | > % @ ` # : \\"
)
TOKEN = st.sampled_from(WORDS.split()) | st.sampled_from(
    ["\n", "\n  ", "\n    ", "\n      ", "- ", "x: ", "\t", "\x00", "\ufeff", "é", "\u2028"]
)
TEXTS = st.lists(TOKEN, max_size=40).map(" ".join) | st.lists(TOKEN, max_size=40).map("".join)


@settings(max_examples=examples(300))
@given(TEXTS)
def test_any_text_is_a_configuration_or_a_config_error(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, newline="")
    try:
        load_config(file)
    except ConfigError as error:
        assert len(str(error)) <= MESSAGE_CHARACTERS
        assert str(file) in str(error)


@settings(max_examples=examples(300))
@given(TEXTS)
def test_what_pyyaml_reads_is_read_alike(text):
    """If PyYAML accepts it and no mapping repeats a key: both of its scanners, same values, same order."""
    for loader in LOADERS:
        try:
            ours = parse_yaml(text, loader)
        except BadYaml:
            continue
        try:
            theirs = yaml.load(text, loader)
        except yaml.YAMLError:
            continue  # an anchor twice, or "=" as a value
        assert repr(ours) == repr(theirs)


def test_merges_are_those_of_pyyaml():
    text = (
        "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: {q: 4}}\n"
        "c: {w: 0, <<: [*a, *b], x: 9}\nd: {<<: *a, <<: *b}\ne: {<<: {<<: *b, t: 1}}\n"
        "f: !!set {a, b}\ng: !!omap [k: 1, l: 2]\nh: !!pairs [k: 1, k: 2]\ni: !!binary aGk=\nj: ! 1\nk: '<<'\n"
    )
    for loader in LOADERS:
        assert repr(parse_yaml(text, loader)) == repr(yaml.load(text, loader))


@settings(max_examples=examples(100))
@given(
    st.recursive(
        st.integers(-(1 << 20_000), 1 << 20_000) | st.text() | st.binary() | st.floats() | st.none() | st.booleans(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    ),
    st.integers(10, 300),
)
def test_whatever_is_shown_is_short(value, limit):
    assert len(show(value, limit)) <= limit
    assert len(shorten(str(type(value)) * 50, limit)) <= limit


def test_objects_without_a_repr_are_shown_by_their_class():
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Odd" in show(Odd())
    assert show({"a": [1, "x"]}) == "{'a': [1, 'x']}"
    assert describe_error(KeyError("a")) == "a"
    assert describe_error(ValueError("")) == "ValueError"


def test_serve_simulate_and_explain_say_the_same(folder):
    file = mixture(folder, "a: {kind: factory, function: 'sys:exit', weight: 1}")
    command = [sys.executable, "-m", "mixserve", "serve", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, "function: sys:exit failed: SystemExit" in ended.stderr) == (2, True)
    assert "Traceback" not in ended.stderr
    for arguments in (["check", str(file), "--simulate", "10"], ["explain", str(file), "--key", "0"]):
        result = CliRunner().invoke(app, arguments)
        assert (result.exit_code, "sys:exit failed" in result.stderr) == (2, True)


def test_records_that_end_the_process_end_no_command_with_success(folder):
    (folder / "ending_take.py").write_text(
        "import sys\nimport numpy as np\n"
        "class Made:\n    name = None\n    def __len__(self): return 4\n"
        "    def element_spec(self): return np.zeros(())\n    def take(self, ids): sys.exit(0)\n"
    )
    file = mixture(folder, "a: {kind: factory, function: 'ending_take:Made', weight: 1}")
    result = CliRunner().invoke(app, ["explain", str(file), "--key", "0", "--show", "--size", "1"])
    assert result.exit_code == 2, result.output
