import json
import time
from collections import Counter
from contextlib import nullcontext
from math import comb

import jax
import numpy as np
import pytest

from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.checkpoint import restore, save
from mixserve.demo.child import Child
from mixserve.demo.corpus import SEQUENCE_LENGTH, SHARES, entropy_bits, mixture_file, write_corpora
from mixserve.demo.history import History
from mixserve.demo.journal import JournalReader, JournalWriter
from mixserve.demo.model import new_learner, train_step
from mixserve.demo.reference import digest_in_process
from mixserve.demo.run import run
from mixserve.demo.shares import binomial_band
from mixserve.demo.stream import extend_digest, open_stream
from mixserve.demo.trainer import row_sources
from mixserve.local import local_client


@pytest.fixture(scope="module")
def corpora_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    write_corpora(folder, limit_bytes=300_000)
    return folder


@pytest.fixture(scope="module")
def client(corpora_folder):
    file = mixture_file(corpora_folder)
    with local_client(build_nodes(load_config(file), file)) as client:
        yield client


def test_the_corpora_are_two_real_texts_and_the_same_ones_each_time(tmp_path, corpora_folder):
    corpora = write_corpora(tmp_path, limit_bytes=300_000)
    assert [corpus.name for corpus in corpora] == ["code", "prose"]
    assert sum(corpus.share for corpus in corpora) == 1
    for corpus in corpora:
        text = (tmp_path / f"{corpus.name}.bin").read_bytes()
        assert text == (corpora_folder / f"{corpus.name}.bin").read_bytes()
        assert corpus.size_bytes == len(text) > 50_000
        assert 4 < corpus.entropy_bits < 5.5
    assert b"\nimport " in (tmp_path / "code.bin").read_bytes()
    assert b" statement" in (tmp_path / "prose.bin").read_bytes()


def test_entropy_of_known_distributions():
    assert entropy_bits(b"aaaa") == 0
    assert entropy_bits(b"abab") == 1
    assert entropy_bits(bytes(range(256))) == 8
    assert entropy_bits(b"aaab") == pytest.approx(0.25 * 2 + 0.75 * np.log2(4 / 3))


def test_the_band_holds_the_realised_share_as_often_as_it_says():
    share, rows = 0.3, 400
    low, high = binomial_band(share, np.array([rows]), level=0.95)
    inside = sum(
        comb(rows, count) * share**count * (1 - share) ** (rows - count)
        for count in range(rows + 1)
        if low[0] <= count / rows <= high[0]
    )
    assert inside == pytest.approx(0.95, abs=0.01)


def test_the_band_narrows_and_stays_within_0_and_1():
    low, high = binomial_band(0.9, np.array([1, 100, 10_000]))
    assert ((low >= 0) & (high <= 1)).all()
    assert (np.diff(high - low) < 0).all()


def test_the_sources_of_rows_are_known_without_asking_the_server(corpora_folder, client):
    windows = {}
    for source, name in enumerate(SHARES):
        text = np.fromfile(corpora_folder / f"{name}.bin", np.uint8)
        rows = text[: len(text) // SEQUENCE_LENGTH * SEQUENCE_LENGTH].reshape(-1, SEQUENCE_LENGTH)
        windows[source] = {row.tobytes() for row in rows}
    sources = row_sources(client.mixture(), 8)
    for planned, batch in zip(sources, open_stream(client, 8, prefetch=1), strict=True):
        assert all(row.tobytes() in windows[source] for source, row in zip(planned, batch["tokens"], strict=True))
    assert set(Counter(sources.ravel().tolist())) == {0, 1}


def test_the_digest_is_of_every_batch_in_its_order(corpora_folder, client):
    first, second = open_stream(client, 2, prefetch=0)
    both = extend_digest(extend_digest("", first), second)
    assert both == digest_in_process(mixture_file(corpora_folder), 2)
    assert both != extend_digest(extend_digest("", second), first)
    assert both != extend_digest("", first)


def test_a_restored_learner_goes_on_as_if_nothing_had_happened(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, (4, SEQUENCE_LENGTH), np.uint8)
    learner, again = new_learner(), new_learner()
    with jax.numpy_dtype_promotion("standard"):  # optax's adam promotes
        train_step(*learner, tokens)
        save(tmp_path / "state.npz", learner, {"step": 1})
        expected = [np.asarray(train_step(*learner, tokens)) for _ in range(3)]
        assert restore(tmp_path / "state.npz", again) == {"step": 1}
        np.testing.assert_array_equal([np.asarray(train_step(*again, tokens)) for _ in range(3)], expected)


def test_a_journal_survives_a_writer_that_is_killed_within_a_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    reader = JournalReader(path)
    assert reader.read() == []
    with JournalWriter(path) as writer:
        writer.write(step=1)
    with path.open("a") as torn:
        torn.write(json.dumps({"step": 2})[:-2])
    assert reader.read() == [{"step": 1}]
    with JournalWriter(path) as writer:
        writer.write(step=2)
    assert reader.read() == [{"step": 2}]
    assert reader.read() == []


def test_a_repeated_step_counts_once():
    history = History()
    for number, waited_s in [(1, 0.0), (2, 0.0), (2, 0.5)]:
        history.add(
            {"event": "step", "step": number, "losses": [1.0, None], "counts": [number, 0]}
            | {"waited_s": waited_s, "took_s": 1.0}
        )
    assert history.numbers().tolist() == [1, 2]
    assert history.wait_share() == 0.25
    assert history.recent_loss(0) == 1
    assert np.isnan(history.losses(1)).all()


def test_a_child_that_fails_says_its_last_words(tmp_path):
    log, words = tmp_path / "log", r"(?s)the patient ended with exit status 2.*missing\.yaml"
    with (
        Child("patient", ["mixserve", "serve", "missing.yaml"], log) as child,
        pytest.raises(RuntimeError, match=words),
    ):
        child.wait(60)


@pytest.mark.parametrize("says", [False, True])
def test_a_child_that_is_told_to_stop_may_not_have_begun(tmp_path, monkeypatch, says):
    (tmp_path / "log").write_text("what an earlier one said\n")
    code = "import time; print('begun' if {} else '', end='', flush=True); open('{}', 'w'); time.sleep(60)"
    (tmp_path / "slow_to_begin.py").write_text(code.format(says, tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("server", ["slow_to_begin"], tmp_path / "log") as child:
        deadline = time.monotonic() + 60
        while not (tmp_path / "runs").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RuntimeError, match="exit status -15") if says else nullcontext():
            child.stop()


def test_a_child_does_not_outlive_its_block_even_frozen(tmp_path):
    with Child("web server", ["http.server", "--bind", "127.0.0.1", "0"], tmp_path / "log") as child:
        child.freeze()
        assert not child.has_ended()
    with pytest.raises(RuntimeError, match="exit status -9"):
        child.has_ended()


def test_the_whole_demo_with_its_kills(tmp_path, capfd):
    report = tmp_path / "demo_report.png"
    run(steps=24, folder=tmp_path, report=report)
    out = capfd.readouterr().out.splitlines()
    digest = out[-1].rpartition(" ")[2]
    assert out[-1] == f"24 batches, 3 kills, digest {digest} = in-process {digest}"
    kills = [line.split(": ")[1].split(",")[0] for line in out if "SIGKILL" in line]
    assert kills == ["server killed (SIGKILL)", "trainer killed (SIGKILL)", "server killed (SIGKILL)"]
    assert report.read_bytes().startswith(b"\x89PNG")
    entries = JournalReader(tmp_path / "journal.jsonl").read()
    first, second = (entry["step"] for entry in entries if entry["event"] == "started")
    assert first == 0 < second < 24
    assert all("Warning" not in log.read_text() for log in tmp_path.glob("*.log"))
