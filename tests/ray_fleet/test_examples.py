"""The code of docs/ray.md, run by Ray Train and Ray Data."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

import mixserve.ray
from tests.ray_fleet.cluster import KEY, fleet_of, node_of

# Ray's libraries warn of what they themselves do.
pytestmark = pytest.mark.filterwarnings("default")

_PAGE = Path(__file__).parents[2] / "docs" / "ray.md"
_BATCH = 256


def _block(having: str, **replaced: str) -> dict[str, Any]:
    """Run the block of the page that has this text, and return its names."""
    (code,) = (found for found in re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL) if having in found)
    for old, new in replaced.items():
        code = code.replace(old, new)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(_PAGE), "exec"), names)
    return names


def test_ray_train_goes_on_with_another_number_of_workers(cluster, config, tmp_path):
    train_loop = _block("def train_loop")["train_loop"]
    fingerprint = node_of(config).mixture.fingerprint
    with fleet_of(config, replicas=2):
        for workers, position in ((2, 3 * _BATCH), (1, 6 * _BATCH)):
            # A run of the same name begins with the last checkpoint of the one before.
            trainer = DataParallelTrainer(
                train_loop,
                train_loop_config={"steps": 3},
                scaling_config=ScalingConfig(num_workers=workers),
                run_config=RunConfig(name="run", storage_path=str(tmp_path)),
            )
            done = trainer.fit()
            assert done.metrics["rows"] == _BATCH // workers
            state = json.loads(Path(done.checkpoint.path, "data.json").read_text())
            assert (state["position"], state["fingerprint"]) == (position, fingerprint)


def test_ray_data_has_the_rows_at_its_positions(cluster, config):
    with fleet_of(config, replicas=2):
        rows = _block("class Rows", **{"1_000_000": "1000"})["rows"]
        found = list(rows.iter_batches(batch_size=100))
    right = node_of(config).get_batch_at(0, 1000, jax.random.key(KEY))["tokens"]
    for batch in found:
        assert np.array_equal(batch["tokens"], np.asarray(right)[batch["position"]])
    assert sorted(np.concatenate([batch["position"] for batch in found])) == list(range(1000))


def test_the_python_call_of_the_page(cluster, config, monkeypatch):
    monkeypatch.chdir(config.parent)
    _block("mixserve.ray.up(", **{"replicas=4": "replicas=1", "scale(2,": "scale(1,"})
    assert mixserve.ray.__all__
