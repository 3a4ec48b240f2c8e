"""Checkpoints on disk: exact, whole or absent, and refused if a single bit differs from what was written."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixserve.sessions import StateFolder
from mixserve.sessions.checkpoints import Checkpoints
from mixserve_client.errors import CorruptCheckpoint, UnknownCheckpoint
from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.wire.value import encode_value
from tests.profiles import examples

FINGERPRINT = "f" * 64


def state(**entries):
    return {"index": 3, "epoch": 1, "iterator": "{}", **entries}


STATE = state(
    statistics={
        "mean": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(4, ml_dtypes.bfloat16),
        5: [1, None],
    }
)


@pytest.fixture
def checkpoints(tmp_path):
    folder = StateFolder(tmp_path / "state")
    yield Checkpoints(folder, "train")
    folder.close()


def save(checkpoints, name, kept=STATE, keep_last=None, session="run"):
    return checkpoints.save(session, name, kept, FINGERPRINT, keep_last)


def files(checkpoints, name="a"):
    (folder,) = checkpoints._path.glob(f"run/{name}.*")
    return sorted(path for path in folder.rglob("*") if path.is_file())


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: hnp.arrays(np.uint8, st.just((3, DTYPES[name].itemsize))).map(
            lambda raw: (raw & 1 if DTYPES[name].kind == "b" else raw).view(DTYPES[name])
        )
    ),
    st.sampled_from(sorted(DTYPES)).map(lambda name: np.empty((0, 2), DTYPES[name])),
    st.sampled_from(sorted(DTYPES)).map(lambda name: np.ones((), DTYPES[name])),
    st.sampled_from(sorted(DTYPES)).map(lambda name: np.ones((), DTYPES[name])[()]),
)
trees = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=8) | st.integers(-9, 9), children, max_size=3),
    ),
    max_leaves=8,
)


def test_arrays_of_every_dtype_come_back_bit_for_bit(checkpoints):
    rng = np.random.default_rng(0)
    kept = {}
    for name, dtype in DTYPES.items():
        for shape in ((3,), (2, 1), ()):
            raw = rng.integers(0, 2 if name == "bool" else 256, (*shape, dtype.itemsize)).astype(np.uint8)
            kept[f"{name}{shape}"] = raw.view(dtype).reshape(shape)
    save(checkpoints, "a", state(kept=kept))
    assert encode_value(checkpoints.load("run", "a")[0]) == encode_value(state(kept=kept))


@given(trees)
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_state_comes_back_bit_for_bit(checkpoints, tree):
    save(checkpoints, "a", state(tree=tree))
    restored, fingerprint = checkpoints.load("run", "a")
    assert encode_value(restored) == encode_value(state(tree=tree))
    assert fingerprint == FINGERPRINT


def test_every_file_that_is_changed_or_cut_off_or_gone_is_named_and_other_checkpoints_load(checkpoints):
    save(checkpoints, "before")
    save(checkpoints, "a")
    names = {path.name for path in files(checkpoints)}
    assert {"manifest.json", "_METADATA", "manifest.ocdbt"} <= names
    for path in files(checkpoints):
        data = path.read_bytes()
        flips = [(at, 1 << bit) for at in (0, len(data) // 2, len(data) - 1) for bit in (0, 7)] if data else []
        for at, bit in flips:
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with pytest.raises(CorruptCheckpoint, match=str(path)):
                checkpoints.load("run", "a")
        for length in {0, len(data) // 2, len(data) - 1} - {-1, len(data)}:
            path.write_bytes(data[:length])
            with pytest.raises(CorruptCheckpoint, match=str(path)):
                checkpoints.load("run", "a")
        path.unlink()
        with pytest.raises(CorruptCheckpoint, match=str(path)):
            checkpoints.load("run", "a")
        assert encode_value(checkpoints.load("run", "before")[0]) == encode_value(STATE)
        assert [entry["name"] for entry in checkpoints.describe_all("run")] == ["before", "a"]
        path.write_bytes(data)
    assert encode_value(checkpoints.load("run", "a")[0]) == encode_value(STATE)


def test_a_damaged_manifest_shows_in_the_list_and_its_checkpoint_can_be_deleted(checkpoints):
    save(checkpoints, "a")
    saved = save(checkpoints, "b")
    (manifest,) = (path for path in files(checkpoints) if path.name == "manifest.json")
    manifest.write_text(manifest.read_text().replace('"index": 3', '"index": 4'))
    damaged, whole = checkpoints.describe_all("run")
    assert damaged["name"] == "a"
    assert str(manifest) in damaged["damaged"]
    assert whole == saved
    assert "damaged" in checkpoints.delete("run", "a")
    assert checkpoints.names("run") == ("b",)


def test_saving_a_name_again_replaces_it_and_makes_it_the_newest(checkpoints):
    for index, name in enumerate(["a", "b", "a", "a.0000000007"]):
        save(checkpoints, name, state(index=index) | {"index": index})
    assert checkpoints.names("run") == ("b", "a", "a.0000000007")
    assert [entry["index"] for entry in checkpoints.describe_all("run")] == [1, 2, 3]
    assert checkpoints.load("run", "a")[0]["index"] == 2
    assert len(list(checkpoints._path.glob("run/*"))) == 3


def test_keep_last_keeps_the_newest_of_this_session_alone(checkpoints):
    save(checkpoints, "other", session="another")
    for name in "abcde":
        save(checkpoints, name)
    save(checkpoints, "b", keep_last=3)
    assert checkpoints.names("run") == ("d", "e", "b")
    save(checkpoints, "f", keep_last=1)
    assert checkpoints.names("run") == ("f",)
    assert checkpoints.names("another") == ("other",)


def test_an_unknown_checkpoint_says_what_there_is(checkpoints):
    with pytest.raises(UnknownCheckpoint, match="has no checkpoint 'a'; it has none"):
        checkpoints.load("run", "a")
    save(checkpoints, "b")
    save(checkpoints, "c")
    for method in (checkpoints.load, checkpoints.delete):
        with pytest.raises(UnknownCheckpoint, match="has no checkpoint 'a'; it has 'b', 'c'"):
            method("run", "a")


def test_a_copied_folder_loads_elsewhere(checkpoints, tmp_path):
    save(checkpoints, "a")
    shutil.copytree(tmp_path / "state" / "checkpoints", tmp_path / "other" / "checkpoints")
    folder = StateFolder(tmp_path / "other")
    assert encode_value(Checkpoints(folder, "train").load("run", "a")[0]) == encode_value(STATE)
    folder.close()


def test_what_a_killed_server_left_unfinished_is_swept(tmp_path):
    left = tmp_path / "state" / "unfinished" / "abc" / "orbax"
    left.mkdir(parents=True)
    StateFolder(tmp_path / "state").close()
    assert list((tmp_path / "state" / "unfinished").iterdir()) == []


def test_a_mixtures_name_may_be_anything(tmp_path):
    folder = StateFolder(tmp_path)
    for name in ("../up", ".", "..", "a/b", "имя", "with space"):
        made = Checkpoints(folder, name)
        made.save("run", "a", STATE, FINGERPRINT, None)
        assert made._path.parent == tmp_path / "checkpoints"
        assert made.names("run") == ("a",)
    with pytest.raises(OSError, match="too long"):
        Checkpoints(folder, "x" * 300)
    folder.close()
