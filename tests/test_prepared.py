"""What sources prepare is whole or not there, made once, and kept."""

import os
import signal
import threading
from pathlib import Path

import pytest

from mixserve.build import build_nodes
from mixserve.config import ConfigError, load_config
from mixserve.sources.prepared import kept, prepared_folder, preparing_in
from tests.records import tfrecord

DIGEST = bytes(range(32))


def write(content: str, calls: list[Path]):
    def make(path: Path) -> None:
        calls.append(path)
        assert not path.exists()
        path.write_text(content)

    return make


def test_it_is_made_once_per_name_and_digest(tmp_path):
    calls: list[Path] = []
    with preparing_in(tmp_path / "a/b"):
        first = kept("tar/one", DIGEST, write("1", calls))
        assert kept("tar/one", DIGEST, write("2", calls)) == first
        other = kept("tar/one", DIGEST[::-1], write("3", calls))
        assert (first.read_text(), other.read_text(), len(calls)) == ("1", "3", 2)
        assert sorted(first.parent.iterdir()) == sorted([first, other])
        assert first.parent == tmp_path / "a/b/tar"
        assert {(tmp_path / part).stat().st_mode & 0o777 for part in ("a", "a/b", "a/b/tar")} == {0o700}


def test_a_folder_is_kept_as_well_and_what_failed_leaves_nothing(tmp_path):
    def folder(path: Path) -> None:
        path.mkdir()
        (path / "values").write_bytes(b"1")

    def fails(path: Path) -> None:
        folder(path)
        raise ZeroDivisionError

    with preparing_in(tmp_path):
        with pytest.raises(ZeroDivisionError):
            kept("x", DIGEST, fails)
        assert list(tmp_path.iterdir()) == []
        path = kept("x", DIGEST, folder)
    assert (path / "values").read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_make_it_once(tmp_path):
    calls: list[Path] = []
    together = threading.Barrier(8)

    def work() -> None:
        with preparing_in(tmp_path):
            together.wait(10)
            assert kept("x", DIGEST, write("1", calls)).read_text() == "1"

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_what_a_killed_process_left_is_made_anew(tmp_path):
    def killed(path: Path) -> None:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with preparing_in(tmp_path):
            kept("x", DIGEST, killed)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = {path.suffix for path in tmp_path.iterdir()}
    assert left == {".lock", ".unfinished"}
    with preparing_in(tmp_path):
        path = kept("x", DIGEST, write("whole", []))
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with preparing_in(tmp_path / "file"), pytest.raises(OSError, match=r"choose another folder with server: \{prep"):
        kept("x", DIGEST, write("1", []))

    def lacks(path: Path) -> None:
        (tmp_path / "data").read_bytes()

    # The data's own error is not one of the folder.
    with preparing_in(tmp_path / "p"), pytest.raises(FileNotFoundError) as raised:
        kept("x", DIGEST, lacks)
    assert "choose" not in str(raised.value)


def test_the_folder_is_the_configurations_else_the_variables_else_the_users(tmp_path, monkeypatch):
    assert prepared_folder() == Path(os.environ["MIXSERVE_PREPARED"])
    monkeypatch.delenv("MIXSERVE_PREPARED")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared_folder() == tmp_path / "mixserve/prepared"
    file = tmp_path / "mixture.yaml"
    (tmp_path / "where.py").write_text(
        "from mixserve import ArraySource\nfrom mixserve.sources.prepared import kept, prepared_folder\n"
        "def make():\n"
        "    kept('x', bytes(32), lambda path: path.write_text('1'))\n"
        "    return ArraySource({'x': [1]})\n"
    )
    file.write_text(
        "mixtures: {m: {sources: {a: {kind: factory, function: 'where:make', weight: 1}}}}\nserver: {prepared: here}"
    )
    build_nodes(load_config(file), file)
    assert [path.read_text() for path in (tmp_path / "here").iterdir()] == ["1"]
    assert prepared_folder() == tmp_path / "mixserve/prepared"
    file.write_text(file.read_text().replace("here", "''"))
    with pytest.raises(ConfigError, match=r"server\.prepared"):
        load_config(file)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_what_killed_processes_left_under_other_digests_is_removed(tmp_path):
    def is_killed(path: Path) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"1")
        os.kill(os.getpid(), signal.SIGKILL)

    def waits(path: Path) -> None:
        path.write_text("2")
        began.set()
        assert go_on.wait(10)

    began, go_on = threading.Event(), threading.Event()
    with preparing_in(tmp_path):
        child = os.fork()
        if child == 0:
            kept("x", DIGEST, is_killed)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert (tmp_path / f".x-{DIGEST.hex()[:32]}.unfinished").is_dir()

        def keep() -> None:
            with preparing_in(tmp_path):
                kept("y", DIGEST, waits)

        busy = threading.Thread(target=keep)
        busy.start()
        assert began.wait(10)
        made = kept("z", DIGEST, write("3", []))
        busy_names = {f".y-{DIGEST.hex()[:32]}.{suffix}" for suffix in ("unfinished", "lock")}
        assert {path.name for path in tmp_path.iterdir()} == busy_names | {made.name}
        go_on.set()
        busy.join()
        assert {path.name[0] for path in tmp_path.iterdir()} == {"y", "z"}


def test_the_folder_in_the_file_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FAST", str(tmp_path / "fast"))
    (tmp_path / "a.tfrecord").write_bytes(tfrecord([b"1"]))
    source = "{kind: tfrecord, path: a.tfrecord, record: bytes, fields: {x: {from: data, length: 1}}, weight: 1}"
    for folder, made in (("~/kept", "home/kept"), ("$FAST/kept", "fast/kept")):
        config = tmp_path / "mixture.yaml"
        config.write_text(f"server: {{prepared: {folder}}}\nmixtures: {{m: {{sources: {{a: {source}}}}}}}\n")
        build_nodes(load_config(config), config)
        assert (tmp_path / made / "tfrecord").is_dir()
    config.write_text(f"server: {{prepared: $NONE/kept}}\nmixtures: {{m: {{sources: {{a: {source}}}}}}}\n")
    with pytest.raises(ConfigError, match=r"server.prepared: .*'NONE'"):
        build_nodes(load_config(config), config)
    assert not (tmp_path / "~").exists()
