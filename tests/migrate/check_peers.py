"""The code of docs/migrate.md that needs TensorFlow or MosaicML Streaming, each in its own environment.

`make test-migrate` sets these up and runs this file; the name keeps it out of `make test`. Tests without an
environment are reported as skipped.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.migrate.page import BATCH, CODE, KEPT, WEB, blocks, check_endless, check_train, read, run, served, web_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as where:
        yield where


def python_of(environment: str) -> Path:
    python = ROOT / environment / "bin" / "python"
    if not (ROOT / environment / ".ready").exists():
        pytest.skip(f"{environment} is not set up, so that this part of docs/migrate.md was NOT run")
    return python


@pytest.fixture
def tensorflow():
    """How to run code with TensorFlow, and the path of the client, which is not installed there."""
    return {
        "python": python_of(".venv-peers/tensorflow"),
        "environ": {"PYTHONPATH": str(ROOT / "client"), "TF_CPP_MIN_LOG_LEVEL": "2"},
    }


@pytest.fixture
def streaming():
    return {"python": python_of(".venv-streaming")}


def test_tf_data_before_and_after(address, tmp_path, tensorflow):
    before, _, after, _ = blocks("tf.data")
    check_endless(read(before, tmp_path, **tensorflow))
    check_train(read(after, tmp_path, address, **tensorflow))


def test_files_of_tf_data_become_arrays(tmp_path, tensorflow):
    _, _, _, convert = blocks("tf.data")
    write = """
with tf.io.TFRecordWriter("web.tfrecord") as writer:
    for row in web:
        writer.write(row.tobytes())
"""
    run(f"import tensorflow as tf\n{write}\n{convert}", tmp_path, **tensorflow)
    expected = web_rows(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "web" / "tokens.npy"), expected, strict=True)


def test_streaming_before_and_after(address, tmp_path, streaming):
    before, after, keep = blocks("MosaicML Streaming")
    epoch = read(before, tmp_path, **streaming)
    assert (sum(epoch.web), sum(epoch.code)) == (0.7 * (WEB + CODE), 0.3 * (WEB + CODE))
    assert epoch.in_passes
    assert epoch.shapes[:-1] == [BATCH] * 31
    check_train(read(after, tmp_path, address, **streaming))
    run(keep + KEPT, tmp_path, **streaming)  # from what was written before
