"""Statistics of a session keep their types, dtypes and shapes when the session is read from the disk again."""

import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.sessions.record import hashes_of
from tests.client.test_value import kinds, trees
from tests.processes import ONE_SIZE
from tests.profiles import examples


def spread(batch):
    """Statistics of the kinds that a user's function returns: JAX's and NumPy's scalars, tuples, Python's own."""
    return {
        "mean": batch["x"].mean(),
        "half": jnp.zeros((), jnp.bfloat16),
        "most": np.float32(batch["x"].max()),
        "rows": len(batch["x"]),
        "flag": np.bool_(True),
        "long": np.int64(1 << 40),
        "pairs": [("x", (1.5, None)), np.ones((), ml_dtypes.float8_e5m2)],
        "empty": (),
        "matrix": np.zeros((2, 3), np.uint8),
    }


def make_node():
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), batch_stats_fn=spread, plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(9, dtype=np.float32)})])


@pytest.fixture(scope="module")
def node():
    return make_node()


def test_computed_statistics_are_the_same_after_a_restart_and_from_a_checkpoint_and_a_state(node, tmp_path):
    with local_client({"train": node}, state_dir=tmp_path) as client, client.session("run") as session:
        first = kinds(session.compute_statistics(0, 4, 7))
        assert kinds(session.get_statistics()) == first
        assert {type(value) for value in session.get_statistics().values()} >= {tuple, np.ndarray, int, list}
        session.save_checkpoint("computed")
        state = session.get_state()
        assert kinds(state["statistics"]["values"]) == first
    with local_client({"train": node}, state_dir=tmp_path) as client, client.session("run") as session:
        assert kinds(session.get_statistics()) == first
        session.reset_statistics()
        session.restore_checkpoint("computed")
        assert kinds(session.get_statistics()) == first
        session.reset_statistics()
        session.set_state(state)
        assert kinds(session.get_statistics()) == first


@given(trees)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_statistics_that_are_set_come_back_after_a_restart(node, tmp_path, tree):
    folder = tmp_path / "state"
    try:
        with local_client({"train": node}, state_dir=folder) as client, client.session("run") as session:
            session.set_statistics({"tree": tree})
            before = kinds(session.get_statistics())
        assert before == kinds({"tree": tree})
        with local_client({"train": node}, state_dir=folder) as client, client.session("run") as session:
            assert kinds(session.get_statistics()) == before
    finally:
        shutil.rmtree(folder)


def test_what_a_node_computed_before_it_was_served_is_the_same_too(tmp_path):
    node = make_node()
    node.compute_statistics(node.get_batch_at(0, 4, 7))
    with local_client({"train": node}, state_dir=tmp_path) as client, client.session("run") as session:
        before = kinds(session.get_statistics())
    with local_client({"train": node}, state_dir=tmp_path) as client, client.session("run") as session:
        assert kinds(session.get_statistics()) == before


def test_a_node_goes_on_from_a_state_with_statistics_of_the_same_kinds():
    node, other = make_node(), make_node()
    node.compute_statistics(node.get_batch_at(0, 4, 7))
    other.set_state(node.get_state())
    for given_back, computed in zip(other.get_statistics().values(), node.get_statistics().values(), strict=True):
        assert np.shape(given_back) == np.shape(computed) if hasattr(computed, "dtype") else given_back == computed
        assert getattr(given_back, "dtype", type(given_back)) == getattr(computed, "dtype", type(computed))


def test_a_tuple_in_the_place_of_an_equal_list_is_another_part_of_the_journal():
    assert hashes_of({"values": (1, 2)}) != hashes_of({"values": [1, 2]})
