"""Compiled programs: one per name for any number of threads, cached in a folder, and never worse than no cache."""

import logging
import os
import pickle
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from mixserve.mixture import compilation_cache, programs
from mixserve.mixture.compilation_cache import CompilationCache, choose_folder, chosen_cache
from mixserve.mixture.draw import Parts
from mixserve.mixture.plan import Planner
from mixserve.mixture.programs import ProgramName, begin, draws, forget, load, program
from mixserve_client.schema.keys import key_words
from tests.forked import Forked

PARTS = Parts(long=False, fetch=False)
NAME = ProgramName(8, 16, PARTS)
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


@pytest.fixture(autouse=True, scope="module")
def _without_jaxs_own_cache() -> Iterator[None]:
    own = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    jax.clear_caches()  # programs from that cache that are in memory
    yield
    jax.config.update("jax_compilation_cache_dir", own)
    reset_cache()


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    choose_folder(True)
    forget()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A configured folder that does not exist yet; no program is in memory."""
    chosen = tmp_path / "cache" / "mixserve"
    choose_folder(chosen)
    forget()
    return chosen


def settle() -> None:
    """Wait until all programs in progress are compiled and stored."""
    for thread in threading.enumerate():
        if thread.name.startswith(programs._THREAD):
            thread.join(60)
            assert not thread.is_alive()


def drawn() -> np.ndarray:
    """The draws of the program NAME through a planner; afterwards it is stored."""
    planner = Planner((0.25, 0.75), (100, 200))
    planner._few.most = 0  # or so few positions would need no program
    plan = planner.plan(key_words(3), 5, 11)
    settle()
    return np.stack([plan.source_ids, plan.record_ids])


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.program"))


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def expected(_without_jaxs_own_cache) -> np.ndarray:
    choose_folder(False)
    forget()
    return drawn()


def test_a_program_is_kept_and_found_again_without_compiling(folder, expected, monkeypatch):
    np.testing.assert_array_equal(drawn(), expected)
    (kept,) = files(folder)
    assert kept.name.startswith("draw-8x16-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not [file for file in folder.iterdir() if file != kept]
    forget()
    monkeypatch.setattr(jax, "jit", None)  # nothing can be compiled
    np.testing.assert_array_equal(drawn(), expected)


def test_another_process_finds_it(folder, expected):
    np.testing.assert_array_equal(drawn(), expected)
    code = (
        "import jax; from mixserve.mixture.plan import Planner; from mixserve_client.wire.key import key_words;"
        "planner = Planner((0.25, 0.75), (100, 200)); planner._few.most = 0; jax.jit = None;"
        "plan = planner.plan(key_words(3), 5, 11); print(*plan.source_ids, *plan.record_ids)"
    )
    environment = os.environ | {"MIXSERVE_COMPILATION_CACHE": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(word) for word in expected.ravel().tolist()]
    assert done.stderr == ""


def flip_at(at: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        place = int(at * (len(content) - 1))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


def foreign(content: bytes) -> bytes:
    """What another processor or JAX may have left in the folder: a valid file of a program that gives other bits."""
    header = len(compilation_cache._HEADER)
    serialized, given = pickle.loads(content[header + 32 :])
    body = pickle.dumps((serialized, bytes(len(given))))
    return content[:header] + compilation_cache.hashlib.sha256(body).digest() + body


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"x",
    "another version": lambda content: content.replace(b"program 1", b"program 2", 1),
    "no program": lambda content: b"\0" * 1000,
    "foreign": foreign,
    **{f"flipped at {at}": flip_at(at) for at in (0.0, 0.0001, 0.1, 0.5, 0.9, 1.0)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_or_foreign_is_compiled_anew(folder, expected, caplog, damage):
    caplog.set_level(logging.INFO, "mixserve")
    np.testing.assert_array_equal(drawn(), expected)
    (kept,) = files(folder)
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert f"ignoring the compiled program {kept}" in messages(caplog)
    assert len(kept.read_bytes()) == pytest.approx(len(whole), rel=0.1)
    caplog.clear()
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert messages(caplog) == ""


def test_other_versions_and_processors_have_other_files(tmp_path):
    def path(depends_on: bytes) -> Path:
        return CompilationCache(tmp_path, depends_on)._path("draw")

    assert path(b"one") == path(b"one") != path(b"other")
    assert compilation_cache.platform_digest() == compilation_cache.platform_digest()
    assert len(compilation_cache.platform_digest()) == 16


def denied(place: Path) -> None:
    place.parent.mkdir()
    place.touch()


def of_another_user(place: Path) -> None:
    place.mkdir(parents=True)
    os.chown(place, 65534, 65534)


def open_to_others(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o750)


def a_link(place: Path) -> None:
    place.parent.mkdir()
    own = place.parent / "own"
    own.mkdir(mode=0o700)
    place.symlink_to(own)


@pytest.mark.parametrize(
    "made", [pytest.param(denied, id="a file"), pytest.param(of_another_user, marks=as_root), open_to_others, a_link]
)
def test_a_folder_that_is_not_the_users_own_is_not_used(folder, expected, caplog, made):
    caplog.set_level(logging.INFO, "mixserve")
    made(folder)
    np.testing.assert_array_equal(drawn(), expected)
    assert not folder.is_dir() or not list(folder.iterdir())
    assert "cannot cache compiled programs" in messages(caplog)
    assert str(folder) in messages(caplog)


@pytest.mark.parametrize(
    "bend", [pytest.param(lambda kept: os.chown(kept, 65534, 65534), marks=as_root), lambda kept: kept.chmod(0o666)]
)
def test_a_file_that_others_may_have_written_is_not_read(folder, expected, caplog, bend):
    caplog.set_level(logging.INFO, "mixserve")
    drawn()
    (kept,) = files(folder)
    bend(kept)
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert "another user owns the file, or may write to it" in messages(caplog)


def test_a_folder_that_was_opened_to_others_meanwhile_is_not_used(folder, expected, caplog):
    caplog.set_level(logging.INFO, "mixserve")
    drawn()
    folder.chmod(0o777)
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert "compiling again: PermissionError" in messages(caplog)


def test_where_nothing_can_be_written_programs_are_compiled(expected, caplog):
    caplog.set_level(logging.INFO, "mixserve")
    choose_folder(Path("/proc/mixserve"))
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert "cannot cache compiled programs" in messages(caplog)


def test_the_variable_names_a_folder_or_turns_it_off(tmp_path, monkeypatch, expected):
    monkeypatch.setenv("MIXSERVE_COMPILATION_CACHE", str(tmp_path / "named"))
    forget()
    np.testing.assert_array_equal(drawn(), expected)
    assert files(tmp_path / "named")
    monkeypatch.setenv("MIXSERVE_COMPILATION_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert chosen_cache(programs) is None
    monkeypatch.delenv("MIXSERVE_COMPILATION_CACHE")
    found = chosen_cache(programs)
    assert found is not None
    assert found.folder == tmp_path / "xdg" / "mixserve"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compilation_cache._open.cache_clear()
    assert chosen_cache(programs).folder == tmp_path / "home" / ".cache" / "mixserve"


def draw_beside_jaxs_cache(of_jax: Path, folder: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(of_jax))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    choose_folder(folder)
    print(*drawn().ravel().tolist())


def test_what_jax_has_from_its_own_cache_is_kept_only_if_it_can_be_loaded(tmp_path, expected):
    """If JAX loaded a program from its own cache, it serializes it without its functions, and reports no error."""
    for run, folder in enumerate(("first", "second", "second")):
        process = Forked(draw_beside_jaxs_cache, tmp_path / "jax", tmp_path / folder, log=tmp_path / f"{run}.log")
        assert process.wait(60) == 0, process.log()
        assert process.log().split() == [str(word) for word in expected.ravel().tolist()]
    assert list((tmp_path / "jax").iterdir())
    assert files(tmp_path / "first")


def test_old_files_make_way(folder, monkeypatch):
    monkeypatch.setattr(compilation_cache, "_MOST_FILES", 2)
    folder.mkdir(parents=True, mode=0o700)
    young, old = folder / ".unfinished-young", folder / ".unfinished-old"
    for file in (young, old):
        file.touch()
    os.utime(old, (0, 0))
    load(draws(3, PARTS, (16, 32, 48)))
    settle()
    assert len(files(folder)) == 2
    assert young.exists()
    assert not old.exists()


def test_what_many_ask_for_is_made_once(folder, monkeypatch):
    made, compiled = list[str](), programs._compile
    monkeypatch.setattr(programs, "_compile", lambda name: made.append(str(name)) or compiled(name))
    begin([NAME])
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: id(program(NAME)), range(32)))
    assert len(found) == 1
    assert made == [str(NAME)]


def test_where_no_thread_can_be_started_the_next_one_tries_again(folder, expected, monkeypatch):
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            program(NAME)
    np.testing.assert_array_equal(drawn(), expected)


def test_what_waits_for_its_turn_can_be_dropped_and_begun_again(folder, expected, monkeypatch):
    monkeypatch.setattr(programs, "_turns", threading.Semaphore(0))
    begin([NAME])
    programs.drop_unstarted()
    assert not programs.is_being_made(NAME)
    programs._turns.release()
    settle()
    assert files(folder) == []
    programs._turns.release()
    np.testing.assert_array_equal(drawn(), expected)


def test_nobody_waits_until_a_program_is_kept(folder, monkeypatch):
    reached, go_on, save = threading.Event(), threading.Event(), CompilationCache.save

    def slow(*arguments: object) -> None:
        reached.set()
        assert go_on.wait(60)
        save(*arguments)

    monkeypatch.setattr(CompilationCache, "save", slow)
    assert isinstance(program(NAME), jax.stages.Compiled)
    assert reached.wait(60)
    assert files(folder) == []
    go_on.set()
    settle()
    assert len(files(folder)) == 1


def test_without_metadata_or_source_programs_are_compiled(folder, expected, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "mixserve")

    def lacks(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(compilation_cache, "version", lacks)
    np.testing.assert_array_equal(drawn(), expected)
    assert "cannot cache compiled programs" in messages(caplog)


def test_what_failed_is_tried_again(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", None)
        with pytest.raises(TypeError):
            program(NAME)
    assert isinstance(program(NAME), jax.stages.Compiled)


def test_a_larger_program_does_the_work_of_one_that_is_being_made(expected):
    planner = Planner((0.25, 0.75), (100, 200))
    planner._few.most = 0
    assert planner.programs(first=True) == draws(2, PARTS, (16, 256, 4096))
    assert planner.programs(first=False) == draws(2, PARTS)
    load(planner.programs(first=False))
    whole = planner.plan(key_words(3), 0, 5000)
    for being_made in ((16,), (16, 64), (256, 1024)):
        load(planner.programs(first=False))
        for size in being_made:
            programs._programs[ProgramName(8, size, PARTS)] = Future()  # never done
        for size in (1, 11, 64, 300, 1500, 5000):
            found = planner.plan(key_words(3), 0, size)
            np.testing.assert_array_equal(found.source_ids, whole.source_ids[:size])
            np.testing.assert_array_equal(found.record_ids, whole.record_ids[:size])
        forget()


def test_a_program_that_is_waited_for_is_the_one_that_is_being_made(expected):
    """The largest program has no larger one to use instead."""
    planner, waiting = Planner((0.25, 0.75), (100, 200), sizes=(16,)), Future()
    planner._few.most = 0
    made = program(NAME)
    programs._programs[NAME] = waiting
    found = list[np.ndarray]()
    thread = threading.Thread(target=lambda: found.append(planner.plan(key_words(3), 5, 11).record_ids))
    thread.start()
    waiting.set_result(made)
    thread.join(60)
    np.testing.assert_array_equal(found, [expected[1]])


def test_nothing_is_left_of_a_write_that_failed(folder, expected, monkeypatch):
    drawn()
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)

    def full(path: Path, target: Path) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        forget()
        np.testing.assert_array_equal(drawn(), expected)
    assert list(folder.iterdir()) == []
