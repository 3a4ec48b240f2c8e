"""Files that change under a server: refused, named, and the rest goes on; and cold files are announced."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, TokenSource, serve
from mixserve.mixture import file_guard, read_ahead
from mixserve.mixture.gather import HostGather
from mixserve.mixture.leaves import Plan
from mixserve.node import children
from mixserve.sources import open_file
from mixserve.sources.open_file import OpenFile, file_of, map_file
from mixserve_client import MixClient, SourceChanged, Unavailable
from mixserve_client.schema.fields import Field
from tests.conftest import assert_batches_equal
from tests.processes import ONE_SIZE

DEADLINE_S = 60
LENGTH = 8


@pytest.fixture
def look_always(monkeypatch):
    monkeypatch.setattr(file_guard, "_LOOK_S", 0.0)
    monkeypatch.setattr(open_file, "_LOOK_S", 0.0)
    monkeypatch.setattr(file_guard, "_LARGEST_SHARE", 1e9)


def tokens(path: Path, count: int = 4096, first: int = 0) -> Path:
    np.arange(first, first + count, dtype=np.uint16).tofile(path)
    return path


def mixture(path: Path, other: Path) -> MixDataSourcesNode:
    sources = [
        TokenSource(path, sequence_length=LENGTH, dtype="uint16", name="web"),
        TokenSource(other, sequence_length=LENGTH, dtype="uint16", name="code"),
    ]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE), sources)


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\1\2\3\4")


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\1\2")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "has 4,096 bytes now; it had 8,192 when it was opened"),
    "written to": (overwrite, "was written to after it was opened"),
    "appended to": (grow, "has 8,194 bytes now"),
}


@pytest.mark.usefixtures("look_always")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused_by_name_and_other_mixtures_go_on(change, tmp_path, caplog):
    web, code, prose = (tokens(tmp_path / f"{name}.bin", first=i) for i, name in enumerate(("web", "code", "prose")))
    others = mixture(prose, code)
    with (
        serve({"train": mixture(web, code), "other": others}) as server,
        MixClient.connect(server.address) as client,
    ):
        before = client.get_batch_at(0, 64, 7, mixture="train")
        kept = client.get_batch_at(0, 64, 7, mixture="other")
        change_it, said = CHANGES[change]
        change_it(web)
        for size in (64, 9000):  # one call, and a stream
            with pytest.raises(SourceChanged) as raised:
                client.get_batch_at(0, size, 7, mixture="train")
            assert f"'web' cannot be read: {web}" in str(raised.value)
            assert said in str(raised.value)
        assert_batches_equal(client.get_batch_at(0, 64, 7, mixture="other"), kept)
        assert sum(str(web) in record.getMessage() for record in caplog.records) == 1  # not once per request
        tokens(web)
        os.utime(web, ns=(0, OpenFile(web)._changed_ns))
        with pytest.raises(SourceChanged):
            client.get_batch_at(0, 64, 7, mixture="train")
    assert len(before["tokens"]) == 64


@pytest.mark.usefixtures("look_always")
def test_a_file_may_be_replaced_by_renaming_or_removed(tmp_path):
    web, code = tokens(tmp_path / "web.bin"), tokens(tmp_path / "code.bin", first=7)
    with serve({"train": mixture(web, code)}) as server, MixClient.connect(server.address) as client:
        before = client.get_batch_at(0, 64, 7)
        tokens(tmp_path / "new.bin", first=99).rename(web)
        code.unlink()
        assert_batches_equal(client.get_batch_at(0, 64, 7), before)


def test_a_look_takes_place_once_per_second_and_after_every_error(tmp_path):
    class Failing(TokenSource):
        def blocks(self):
            raise AttributeError

    files = [OpenFile(tokens(tmp_path / f"{i}.bin")) for i in range(2)]
    guard = file_guard.FileGuard({0: files[:1], 1: files[1:]}, ["web", "code"])
    cut(tmp_path / "0.bin")
    guard.check(np.array([0, 1]))  # looked less than a second ago
    guard.look()
    guard.check(np.array([1, 1]))
    with pytest.raises(SourceChanged, match="'web'"):
        guard.check(np.array([1, 0]))


def test_a_server_that_reads_a_cut_file_before_it_looks_leaves_a_trace(tmp_path):
    tokens(tmp_path / "web.bin", 1 << 20)
    (tmp_path / "mixture.yaml").write_text(
        "mixtures: {train: {sources: {web: "
        "{kind: tokens, path: web.bin, dtype: uint16, sequence_length: 8, weight: 1}}}}"
    )
    script = (
        "import runpy, sys\nfrom mixserve.mixture import file_guard\nfile_guard._LOOK_S = 1e9\n"
        "sys.argv = ['mixserve', 'serve', 'mixture.yaml', '--port', '0']\n"
        "runpy.run_module('mixserve', run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        try:
            line = ""
            while "serving on" not in line:
                line = next(process.stderr)
            with MixClient.connect(line.split()[-1], patience_s=0.1) as client:
                client.mixture()
                cut(tmp_path / "web.bin")
                with pytest.raises(Unavailable):
                    client.get_batch_at(0, 4096, 7, timeout_s=DEADLINE_S)
            text = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in text
    assert "rows.py" in text


def make_gather(path: Path, row_bytes: int, begin: int) -> tuple[HostGather, np.ndarray]:
    mapped = map_file(path)
    rows = mapped[begin : begin + (len(mapped) - begin) // row_bytes * row_bytes].reshape(-1, row_bytes)
    source = ArraySource({"x": rows}, name="a")
    return HostGather([source], (Field("x", np.dtype(np.uint8), (row_bytes,)),), ["a"]), rows


@pytest.mark.parametrize(("row_bytes", "begin"), [(8192, 0), (4098, 2), (1030, 1), (65536, 4096)])
def test_cold_rows_are_announced_all_together_and_are_right(row_bytes, begin, tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "_LOOK_S", 0.0)
    path = tmp_path / "data.bin"
    path.write_bytes(np.random.default_rng(0).bytes(8 << 20))
    gather, rows = make_gather(path, row_bytes, begin)
    announced = list[tuple[int, int]]()
    monkeypatch.setattr(OpenFile, "announce", lambda _, offset, size: announced.append((offset, size)))
    monkeypatch.setattr(OpenFile, "is_cached", lambda *_: False)
    ids = np.random.default_rng(1).integers(0, len(rows), 40)
    plan, out = Plan(np.zeros(40, np.int32), ids), np.empty((40, row_bytes), np.uint8)
    gather.prefetch(plan)
    gather.into(plan, {"x": out})
    np.testing.assert_array_equal(out, rows[ids])
    assert announced == [(begin + i * row_bytes, row_bytes) for i in ids.tolist()]

    # In memory: after some batches nothing is announced, until this process reads from a disk again.
    monkeypatch.setattr(OpenFile, "is_cached", lambda *_: True)
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_majflt": 5, "ru_inblock": 7}))
    announced.clear()
    for _ in range(read_ahead._WARM_BATCHES + 1):
        gather.prefetch(plan)
    assert not gather.is_cold()
    assert not announced
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_majflt": 6, "ru_inblock": 7}))
    assert gather.is_cold()


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in memory")
def test_the_system_reads_what_was_announced(tmp_path):
    path = tmp_path / "data.bin"
    with path.open("wb") as file:
        file.write(bytes(8 << 20))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    opened = OpenFile(path)
    if opened.is_cached(4 << 20):
        pytest.skip("this file system keeps its files in memory")
    opened.announce(4 << 20, 4096)
    deadline = time.monotonic() + DEADLINE_S
    while not opened.is_cached(4 << 20):
        assert time.monotonic() < deadline


def test_any_view_of_a_map_knows_its_file_and_its_place(tmp_path):
    path = tokens(tmp_path / "a.bin")
    own, users = map_file(path).view(np.uint16), np.memmap(path, np.uint16, "r")
    for mapped in (own, users):
        for view, byte in ((mapped, 0), (mapped[5:], 10), (mapped[5:].reshape(-1, 1)[::-1], 10), (mapped[::3], 0)):
            found = file_of(view)
            assert found is not None
            assert (found[0].path, found[1]) == (path, byte)
    assert file_of(np.arange(4)) is None
    path.unlink()
    assert file_of(np.memmap(tokens(tmp_path / "b.bin"), np.uint16, "r")[:0]) is None


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(list(Path("/dev/fd").iterdir()))  # servers of other tests may be among them
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_hundreds_of_files_are_opened_under_a_low_soft_limit(tmp_path):
    paths = [tokens(tmp_path / f"{i:03d}.bin", 16, i) for i in range(300)]
    maps = [map_file(path) for path in paths]
    assert [int(one.view(np.uint16)[0]) for one in maps] == list(range(300))


def test_servers_stop_with_open_files_left(tmp_path):
    path = tokens(tmp_path / "a.bin")
    server: MixServer = serve({"train": mixture(path, tokens(tmp_path / "b.bin"))})
    server.stop()


@pytest.mark.usefixtures("look_always")
def test_single_records_of_a_changed_file_are_refused_too(tmp_path):
    web = tokens(tmp_path / "web.bin")
    node = mixture(web, tokens(tmp_path / "code.bin"))
    records = iter(node)
    next(records)
    cut(web)
    with pytest.raises(SourceChanged, match="'web' cannot be read"):
        for _ in range(4):
            next(records)


def stale(*_: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.usefixtures("look_always")
def test_a_file_that_its_server_has_lost_is_one_that_has_changed(tmp_path, monkeypatch):
    web, code = tokens(tmp_path / "web.bin"), tokens(tmp_path / "code.bin", first=1)
    guard = file_guard.FileGuard({0: [OpenFile(web)], 1: [OpenFile(code)]}, ["web", "code"])
    gone, fstat = guard._files[0][0]._descriptor, os.fstat
    monkeypatch.setattr(os, "fstat", lambda descriptor: stale() if descriptor == gone else fstat(descriptor))
    guard.check(np.array([1]))  # the others go on, also in the look that notices it
    for _ in range(2):
        with pytest.raises(SourceChanged, match=r"'web' cannot be read: .*web.bin can no longer be read: Stale file"):
            guard.check(np.array([0]))


def test_a_file_is_looked_at_twice_a_second_however_many_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(file_guard, "_LOOK_S", 0.0)
    file = OpenFile(tokens(tmp_path / "web.bin"))
    looks, fstat = [0], os.fstat

    def count(descriptor: int) -> os.stat_result:
        looks[0] += 1
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", count)
    file._look_at = 0.0
    for _ in range(50):
        file_guard.FileGuard({0: [file]}, ["web"]).check(np.array([0]))
    assert looks[0] == 1
    cut(file.path)
    file._look_at = 0.0
    for _ in range(2):  # a later guard need not find out again
        with pytest.raises(SourceChanged, match="has 4,096 bytes now"):
            file_guard.FileGuard({0: [file]}, ["web"]).check(np.array([0]))
    assert looks[0] == 2


def test_a_single_record_that_cannot_be_read_names_the_file_that_was_cut(tmp_path, monkeypatch):
    path = tokens(tmp_path / "web.bin")
    monkeypatch.setattr(open_file, "_LOOK_S", 1e9)
    monkeypatch.setattr(file_guard, "_LOOK_S", 1e9)  # no look but the one after the error

    class Reads(TokenSource):
        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            raise RuntimeError(f"no record {index}")

    sources = [Reads(path, sequence_length=LENGTH, dtype="uint16", name="web")]
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), sources)
    records = children._Records(node.mixture.leaves[0], "web")
    assert records._guard._files
    monkeypatch.setattr(children, "read_record", lambda source, index: source[index])
    cut(path)
    with pytest.raises(SourceChanged, match=r"web\.bin has 4,096 bytes now"):
        records[3]


def test_a_hint_that_fails_is_no_error(tmp_path, monkeypatch, caplog):
    file = OpenFile(tokens(tmp_path / "web.bin"))
    monkeypatch.setattr(os, "posix_fadvise", stale, raising=False)
    file.announce(0, 16)

    class Source:
        calls = 0

        def prefetch(self, record_ids: np.ndarray) -> None:
            Source.calls += 1
            stale()

    ahead = read_ahead.ReadAhead([], [Source()])
    for _ in range(3):
        ahead.prefetch(np.zeros(4, np.int32), np.arange(4))
    assert Source.calls == 1
    assert "the prefetch of a source failed" in caplog.text


def test_bytes_that_a_file_never_had_are_no_short_read(tmp_path):
    file = OpenFile(tokens(tmp_path / "web.bin"))
    assert file.read(8190, 2) == file.map()[8190:].tobytes()
    assert len(file.read_head(1 << 20)) == 8192
    with pytest.raises(SourceChanged, match="ended at byte 8,192, and bytes up to 8,193 were to be read"):
        file.read(8191, 2)
