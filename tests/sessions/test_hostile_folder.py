"""State folders from unknown origins: only a checkpoint's own folder is opened, and every byte in it is compared."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore

from mixserve import local_client
from mixserve.sessions import StateFolder, manifest, orbax_files
from mixserve.sessions import checkpoints as checkpoints_module
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.record import read_record
from mixserve_client.errors import CorruptCheckpoint, UnknownCheckpoint
from mixserve_client.wire.value import encode_value
from tests.sessions.test_checkpoints import FINGERPRINT, STATE, save, state
from tests.sessions.test_faults import DEADLINE_S, SOON_S, ids, make_node, stream


@pytest.fixture
def checkpoints(tmp_path):
    folder = StateFolder(tmp_path / "state")
    yield Checkpoints(folder, "train")
    folder.close()


@pytest.fixture
def unread(monkeypatch):
    """Fail if Orbax is called."""
    monkeypatch.setattr(checkpoints_module, "read_orbax", lambda path: pytest.fail(f"Orbax was to read {path}"))


def folder_of(checkpoints, name="a"):
    (folder,) = checkpoints._path.glob(f"run/{name}.*")
    return folder


def rewrite(folder, change):
    """A manifest that `change` alters, with the matching hash."""
    path = folder / manifest.MANIFEST
    said = json.loads(path.read_bytes())
    change(said)
    said["sha256"] = manifest.manifest_hash(said)
    path.write_text(json.dumps(said))


def name_also(name, size=0):
    def change(said):
        said["files"][name] = {"bytes": size, "sha256": "0" * 64}
        said["bytes"] += size

    return change


def assert_refused_at_once(checkpoints, said):
    began = time.monotonic()
    with pytest.raises(CorruptCheckpoint, match=said) as refused:
        checkpoints.load("run", "a")
    assert time.monotonic() - began < SOON_S
    assert len(str(refused.value)) < 1000


# Checkpoints


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "orbax/../../../../outside", "orbax/none", "orbax//x", ""])
@pytest.mark.usefixtures("unread")
def test_a_manifest_leads_nowhere_else(checkpoints, name):
    save(checkpoints, "a")
    (checkpoints._path / "outside").write_bytes(b"")
    rewrite(folder_of(checkpoints), name_also(name))
    assert_refused_at_once(checkpoints, "it is missing|may list only files in orbax/")


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/hostname", "orbax/_METADATA"])
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.usefixtures("unread")
def test_links_are_not_followed(checkpoints, target, size):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    (folder / "orbax" / "link").symlink_to(target)
    rewrite(folder, name_also("orbax/link", size))
    assert_refused_at_once(checkpoints, "link is damaged: it is neither a regular file nor a folder")


@pytest.mark.usefixtures("unread")
def test_a_folder_that_is_a_link_is_not_followed(checkpoints, tmp_path):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    shutil.move(folder / "orbax" / "arrays", tmp_path / "arrays")
    (folder / "orbax" / "arrays").symlink_to(tmp_path / "arrays")
    assert_refused_at_once(checkpoints, "arrays is damaged: it is neither a regular file nor a folder")
    shutil.move(folder, tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert_refused_at_once(checkpoints, "damaged: it is a link")
    assert "damaged" in checkpoints.delete("run", "a")
    assert (tmp_path / "moved").is_dir()
    assert checkpoints.names("run") == ()


@pytest.mark.usefixtures("unread")
def test_pipes_are_not_waited_for(checkpoints):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    os.mkfifo(folder / "orbax" / "pipe")
    rewrite(folder, name_also("orbax/pipe"))
    assert_refused_at_once(checkpoints, "neither a regular file nor a folder")
    (folder / manifest.MANIFEST).unlink()
    os.mkfifo(folder / manifest.MANIFEST)
    assert_refused_at_once(checkpoints, "not a regular file")
    assert "damaged" in checkpoints.describe_all("run")[0]


@pytest.mark.usefixtures("unread")
def test_files_that_are_not_named_are_not_restored(checkpoints):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    (folder / "orbax" / "more").write_bytes(b"")
    assert_refused_at_once(checkpoints, "more is damaged: the manifest does not list it")
    for change in (lambda said: said["files"].popitem(), lambda said: said.update(files={}, bytes=0)):
        rewrite(folder, change)
        assert_refused_at_once(checkpoints, "must be a dict of 1 to|files have|does not list it")


@pytest.mark.usefixtures("unread")
def test_a_size_is_compared_before_anything_is_read(checkpoints, monkeypatch):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    with (folder / "orbax" / "vast").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: nothing of it is on the disk
    monkeypatch.setattr(manifest, "_digest", lambda _: pytest.fail("it was hashed"))
    rewrite(folder, name_also("orbax/vast"))
    assert_refused_at_once(checkpoints, f"it has {1 << 40} bytes, 0 were written")
    rewrite(folder, lambda said: (said["files"].pop("orbax/vast"), name_also("orbax/vast", 1 << 40)(said)))
    assert_refused_at_once(checkpoints, "at most 1073741824 are allowed")


@pytest.mark.usefixtures("unread")
def test_many_files_and_deep_folders_are_not_walked_through(checkpoints, monkeypatch):
    save(checkpoints, "a")
    deep = folder_of(checkpoints) / "orbax"
    for _ in range(12):
        deep = deep / "deep"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"")
    assert_refused_at_once(checkpoints, "more than 8 levels")
    save(checkpoints, "a")
    monkeypatch.setattr(manifest, "FILES", 10)
    for number in range(21):
        (folder_of(checkpoints) / f"file-{number}").write_bytes(b"")
    assert_refused_at_once(checkpoints, "more than 10 files|must be a dict of 1 to")


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"\xff",
        b"",
        b"1" * 5000,
        b"{}",
        b" " * (5 << 20),
    ],
    ids=["lists", "dicts", "list", "null", "number", "text", "bytes", "empty", "digits", "dict", "long"],
)
def test_a_manifest_that_is_none_is_damaged(checkpoints, data):
    save(checkpoints, "a")
    (folder_of(checkpoints) / manifest.MANIFEST).write_bytes(data)
    assert_refused_at_once(checkpoints, "manifest.json is damaged")
    (described,) = checkpoints.describe_all("run")
    assert "manifest.json is damaged" in described["damaged"]


WRONG = (None, True, -1, 1.5, 1 << 63, "", "x" * 1000, "\ud800", "a\nb", [], [1], {}, {"a": {}}, float("nan"))
RIGHT = {"format": (), "saved_at": (-1, 1.5), "fingerprint": ("",), "version": ("",)}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "entry", ["format", "name", "saved_at", "index", "epoch", "fingerprint", "bytes", "version", "files"]
)
def test_entries_of_the_wrong_kind_are_said_to_be_damaged(checkpoints, entry):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    for value in WRONG:
        if any(type(value) is type(right) and value == right for right in RIGHT.get(entry, ())):
            continue
        rewrite(folder, lambda said, value=value: said.update({entry: value}))
        assert_refused_at_once(checkpoints, rf"its entry {entry} must be|has the format|it may list only files")
        (described,) = checkpoints.describe_all("run")
        encode_value(described)  # which can be sent
        assert set(described) == {"name", "damaged"}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("said", [None, [], {}, {"bytes": "1", "sha256": ""}, {"bytes": 0}, {"bytes": 0, "sha256": 7}])
def test_files_are_said_with_size_and_hash(checkpoints, said):
    save(checkpoints, "a")
    rewrite(folder_of(checkpoints), lambda written: written["files"].update({"orbax/x": said}))
    assert_refused_at_once(checkpoints, "may list only files|lacks the bytes or the sha256")


def test_arrays_that_are_vast_but_take_no_room_are_not_restored(checkpoints):
    save(checkpoints, "a")
    folder = folder_of(checkpoints)
    store = {"driver": "ocdbt", "base": f"file://{folder}/orbax/arrays/", "path": "0/"}
    shape = {"shape": [1 << 40], "chunks": [1 << 20], "dtype": "<f4"}
    vast = {"driver": "zarr", "kvstore": store, "metadata": shape}
    tensorstore.open(vast, create=True, delete_existing=True).result()
    (folder / manifest.MANIFEST).rename(folder.parent / "aside")
    files = manifest.hash_files(folder)
    (folder.parent / "aside").rename(folder / manifest.MANIFEST)
    total = sum(file["bytes"] for file in files.values())
    rewrite(folder, lambda said: said.update(files=files, bytes=total))
    assert_refused_at_once(checkpoints, r"its arrays have 43980465111\d\d bytes")


def test_folders_with_strange_names_harm_nothing(tmp_path):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        session = client.session("run")
        session.save_checkpoint("a")
        place = tmp_path / "checkpoints" / "train" / "run"
        for name in (
            b"\xff.0000000002",
            b"a b.0000000003",
            b".0000000004",
            b"a." + b"9" * 200,
            f"a.{chr(0x660) * 10}".encode(),
        ):
            (place / os.fsdecode(name)).mkdir()
        assert [saved.name for saved in session.list_checkpoints()] == ["a"]
        assert client.sessions()[0].checkpoints == ("a",)
        session.save_checkpoint("b")
        session.restore_checkpoint("a")


# Inspecting does not wait for another client's checkpoint


def test_who_looks_does_not_wait_for_a_checkpoint_that_is_written(checkpoints, monkeypatch):
    save(checkpoints, "before")
    save(checkpoints, "a", session="other")
    reached, opened, write = threading.Event(), threading.Event(), orbax_files._save

    def slow(path, items):
        reached.set()
        assert opened.wait(DEADLINE_S)
        write(path, items)

    monkeypatch.setattr(orbax_files, "_save", slow)
    with ThreadPoolExecutor(2) as threads:
        saving = threads.submit(save, checkpoints, "slow")
        try:
            assert reached.wait(DEADLINE_S)
            done = threads.submit(
                lambda: (
                    [said["name"] for said in checkpoints.describe_all("run")],
                    checkpoints.describe("other", "a")["name"],
                    list(checkpoints.names_by_session()),
                    checkpoints.delete("run", "before")["name"],
                )
            )
            assert done.result(SOON_S) == (["before"], "a", ["other", "run"], "before")
            assert not saving.done()
        finally:
            opened.set()
        saving.result(DEADLINE_S)
    assert checkpoints.names("run") == ("slow",)


def test_checkpoints_of_many_sessions_and_mixtures_are_saved_at_once(checkpoints):
    every = [checkpoints, Checkpoints(checkpoints._folder, "eval")]

    def work(number):
        kept = state(mean=np.full(4, number))
        for _ in range(3):
            save(every[number % 2], "a", kept, session=f"run-{number}")
            assert encode_value(every[number % 2].load(f"run-{number}", "a")[0]) == encode_value(kept)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(4)]:
            done.result(DEADLINE_S)


def test_what_is_replaced_while_it_is_read_is_read_again(checkpoints):
    small = state(mean=np.arange(4.0))
    save(checkpoints, "a", small)
    stop, began = threading.Event(), time.monotonic()

    def replace():
        while not stop.is_set():
            save(checkpoints, "a", small)

    with ThreadPoolExecutor(1) as threads:
        replacing = threads.submit(replace)
        try:
            while time.monotonic() < began + 1.0:
                assert encode_value(checkpoints.load("run", "a")[0]) == encode_value(small)
                assert [said.get("damaged") for said in checkpoints.describe_all("run")] in ([None], [])
                assert "damaged" not in checkpoints.describe("run", "a")
        finally:
            stop.set()
        replacing.result(DEADLINE_S)
    checkpoints.delete("run", "a")
    with pytest.raises(UnknownCheckpoint):
        checkpoints.load("run", "a")


# Journals


def journal_of(tmp_path):
    return tmp_path / "sessions" / "train" / "run"


def vast(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "is a link"),
        (lambda path: path.symlink_to("/etc/hostname"), "is a link"),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (vast, "bytes, at most 1073741824 are allowed"),
    ],
    ids=["zeros", "link", "pipe", "folder", "vast"],
)
def test_a_journal_is_a_file_of_the_size_of_one(tmp_path, make, said):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        client.session("run").close()
        client.session("other").close()
    journal_of(tmp_path).unlink()
    make(journal_of(tmp_path))
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        began = time.monotonic()
        other, run = client.sessions()
        assert (other.damaged, said in run.damaged) == ("", True)
        with pytest.raises(CorruptCheckpoint, match=said):
            client.session("run")
        assert time.monotonic() - began < SOON_S
        if not journal_of(tmp_path).is_dir() or journal_of(tmp_path).is_symlink():
            session = client.session("run", fresh=True)
            assert ids(session.next_batch(4)) == stream(1)[0]
            assert not journal_of(tmp_path).is_symlink()


@pytest.mark.parametrize(
    "entry",
    ["session", "fingerprint", "lease", "holder", "resumed", "sequence", "last", "state/index", "state/epoch"],
)
def test_a_record_of_the_wrong_kind_is_damaged(tmp_path, entry):
    with local_client({"train": make_node()}, state_dir=tmp_path / "made") as client:
        client.session("run").close()
    folder = StateFolder(tmp_path / "other")
    journal = Journal(journal_of(tmp_path / "made"), folder)
    (written,) = [part for part in [read_parts(journal)] if part]
    for number, value in enumerate(
        (None, -1, 1.5, "x" * 300, b"".hex() + "\n", [], {"asked": 1}, {"place": 1}, {"refusal": 1})
    ):
        if entry == "last" and value == []:
            continue
        crafted = Journal(folder.path / "sessions" / "train" / f"run-{number}", folder)
        crafted.begin(encode_value(written | {entry: value}, more_levels=4))
        with pytest.raises(CorruptCheckpoint, match=f"its entry {entry} cannot be") as refused:
            read_record(crafted)
        assert len(str(refused.value)) < 1000
    for value in ([["format", 1]], None, 7):
        crafted.begin(encode_value(value))
        with pytest.raises(CorruptCheckpoint, match="an entry cannot be decoded: it must be a dict"):
            read_record(crafted)
    crafted.begin(encode_value({name: part for name, part in written.items() if name != entry}, more_levels=4))
    with pytest.raises(CorruptCheckpoint, match=f"its entry {entry} cannot be nothing"):
        read_record(crafted)
    folder.close()


def read_parts(journal):
    record, kept = read_record(journal)
    return record | {f"state/{name}": part for name, part in kept.items()}


def test_a_journal_whose_state_is_none_can_be_begun_anew(tmp_path):
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        client.session("run").close()
    folder = StateFolder(tmp_path)
    journal = Journal(journal_of(tmp_path), folder)
    journal.begin(encode_value(read_parts(journal) | {"state/index": 5000}, more_levels=4))
    folder.close()
    with local_client({"train": make_node()}, state_dir=tmp_path) as client:
        with pytest.raises(CorruptCheckpoint, match=r"is damaged: .*index must be in 0\.\.200, got 5000.*fresh=True"):
            client.session("run")
        assert ids(client.session("run", fresh=True).next_batch(4)) == stream(1)[0]


def test_the_fingerprint_of_the_fixture_is_one():
    assert len(FINGERPRINT) == 64
    assert STATE["index"] == 3
