"""The reference's own Pipeline over a served mixture: the batches, losses and models of one over its own node."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datarax.pipeline import Pipeline
from datarax.sources import MemorySource, MemorySourceConfig
from datarax.sources.mixed_source import MixDataSourcesConfig as TheirConfig
from datarax.sources.mixed_source import MixDataSourcesNode as TheirNode
from flax import nnx

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client import MixClient
from mixserve_client.jax import RemoteMixDataSourcesNode
from tests.conftest import assert_batches_equal

SIZE, STEPS, WEIGHTS = 6, 100, (0.7, 0.3)


def sources() -> list[MemorySource]:
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(n, 5)).astype(np.float32), "y": np.arange(n, dtype=np.int32)} for n in (40, 25)]
    return [MemorySource(MemorySourceConfig(shuffle=False), fields, rngs=nnx.Rngs(0)) for fields in data]


@pytest.fixture(scope="module", params=["grpc", "shared memory"])
def remote(request: pytest.FixtureRequest) -> Iterator[RemoteMixDataSourcesNode]:
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=WEIGHTS), sources())
    with (
        serve({"train": node}) as server,
        MixClient.connect(server.address, patience_s=20, shared_memory=request.param == "shared memory") as client,
    ):
        yield RemoteMixDataSourcesNode(client)


class Scale(nnx.Module):
    """A stage with a parameter."""

    def __init__(self):
        self.factor = nnx.Param(jnp.float32(2))

    def __call__(self, batch: dict) -> dict:
        return batch | {"x": batch["x"] * self.factor[...]}


def pipeline(source: nnx.Module) -> Pipeline:
    return Pipeline(source=source, stages=[Scale()], batch_size=SIZE, rngs=nnx.Rngs(3))


def theirs() -> Pipeline:
    return pipeline(TheirNode(TheirConfig(num_sources=2, weights=WEIGHTS), sources()))


def scan_training(made: Pipeline) -> tuple[dict, nnx.State]:
    """The results of a scan of STEPS steps, batches included, and the model that it trained."""
    model = nnx.Linear(5, 1, rngs=nnx.Rngs(1))

    def step(model: nnx.Linear, batch: dict) -> dict:
        def loss(model: nnx.Linear) -> jax.Array:
            return jnp.mean((model(batch["x"])[:, 0] - batch["y"].astype(jnp.float32)) ** 2)

        value, gradients = nnx.value_and_grad(loss)(model)
        nnx.update(model, jax.tree.map(lambda p, g: p - 1e-4 * g, nnx.state(model), gradients))
        return {"loss": value, **batch}

    out = made.scan(step, length=STEPS, modules=(model,))
    return out, nnx.state(model)


def test_a_scan_trains_the_same_model_on_the_same_batches(remote):
    ours, expected = (scan_training(made) for made in (pipeline(remote), theirs()))
    assert_batches_equal(ours[0], expected[0])
    assert ours[0]["y"].shape == (STEPS, SIZE)
    for left, right in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def test_a_second_scan_goes_on_and_steps_and_iteration_agree(remote):
    ours, expected = pipeline(remote), theirs()
    for made in (ours, expected):
        made.scan(lambda batch: batch["y"], length=3)
    assert_batches_equal(ours.step(), expected.step())
    batches, others = list(ours), list(expected)
    assert len(batches) == len(others) > 3
    for batch, other in zip(batches, others, strict=True):
        assert_batches_equal(batch, other)
