"""Four formats in one mixture: served, trained on by the demo's trainer, killed, and resumed on another server."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest

from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.trainer import JOURNAL, train
from mixserve.serving import serve
from mixserve_client import MixClient
from tests.arrow_files import save_to_disk
from tests.forked import Forked
from tests.records import example, write_array_record
from tests.test_megatron import write as write_megatron

LENGTH, STEPS, DEADLINE_S = 65, 100, 120
MIXTURE = f"""
mixtures:
  train:
    sources:
      flat: {{kind: tokens, path: "flat/*.bin", dtype: uint8, sequence_length: {LENGTH}, as: int32, weight: 4}}
      shards: {{kind: megatron, path: shards, sequence_length: {LENGTH}, as: int32, weight: 3}}
      rows: {{kind: hf, path: rows, fields: {{tokens: {{from: input_ids, length: {LENGTH}, long: cut}}}}, weight: 2}}
      examples:
        kind: array_record
        path: examples.array_record
        record: example
        fields: {{tokens: {{from: ids, as: int32, length: {LENGTH}, pad: 32}}}}
        weight: 1
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("formats"), np.random.default_rng(0)

    def text(size: int) -> np.ndarray:
        return random.integers(97, 123, size).astype(np.uint8)

    (folder / "flat").mkdir()
    for part in range(3):
        text(5000).tofile(folder / "flat" / f"{part}.bin")
    write_megatron(folder / "shards", [text(int(size)) for size in random.integers(1, 400, 60)])
    rows = pa.array([text(int(size)).astype(np.int32) for size in random.integers(1, 120, 200)])
    save_to_disk(folder / "rows", [[pa.record_batch({"input_ids": rows})]])
    records = [example({"ids": text(int(size)).tolist()}) for size in random.integers(1, LENGTH + 1, 150)]
    write_array_record(folder / "examples.array_record", records)
    file = folder / "mixture.yaml"
    file.write_text(MIXTURE)
    return file


def entries(folder: Path) -> list[dict[str, Any]]:
    file = folder / JOURNAL
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.strip() and line.endswith("\n")]


def start(address: str, folder: Path) -> Forked:
    """The demo's trainer, which goes on from the state in the folder."""
    folder.mkdir(exist_ok=True)
    compiled = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return Forked(train_in_process, address, folder, compiled, log=folder / "log")


def train_in_process(address: str, folder: Path, compiled: str) -> None:
    jax.config.update("jax_compilation_cache_dir", compiled)  # what `run` has compiled
    train(address, folder, STEPS)


def run(address: str, folder: Path) -> None:
    """The same in this process."""
    folder.mkdir(exist_ok=True)
    with jax.numpy_dtype_promotion("standard"):  # as in the trainer's process
        train(address, folder, STEPS)


def test_a_mixture_of_four_formats_is_trained_on_and_resumed(config, tmp_path):
    quiet, stopped = tmp_path / "quiet", tmp_path / "stopped"
    with serve(build_nodes(load_config(config), config)) as server:
        address = server.address
        with MixClient.connect(address) as client:
            (field,) = client.mixture().fields
            assert (field.name, field.dtype, field.shape) == ("tokens", np.int32, (LENGTH,))
            assert not any(source.content_sampled or source.content_unknown for source in client.mixture().sources)
        run(address, quiet)
        trainer = start(address, stopped)
        deadline = time.monotonic() + DEADLINE_S
        while not any(entry["event"] == "saved" and entry["step"] >= 30 for entry in entries(stopped)):
            assert trainer.poll() is None, trainer.log()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        trainer.kill()
    with serve(build_nodes(load_config(config), config), address):
        run(address, stopped)
    assert entries(stopped)[-1]["digest"] == entries(quiet)[-1]["digest"]
    started = [entry["step"] for entry in entries(stopped) if entry["event"] == "started"]
    assert started[0] == 0
    assert 30 <= started[1] < STEPS
    last = [entry for entry in entries(stopped) if entry["event"] == "step"][-1]
    assert last["losses"] == [entry for entry in entries(quiet) if entry["event"] == "step"][-1]["losses"]
    assert all(count > 100 for count in last["counts"])
    assert len(last["counts"]) == 4
