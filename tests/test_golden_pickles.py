"""A node that an earlier version pickled loads: its classes are still found under their old names."""

import pickle
from pathlib import Path

import jax
import numpy as np

# Written at commit e18f968, after four records, by a node of a nested mixture of 7 records and a RandomAccessSource of
# 5, with cached batches and statistics.
GOLDEN = Path(__file__).parent / "golden_node.pickle"


def test_a_node_that_an_earlier_version_pickled_goes_on_where_it_was():
    node = pickle.loads(GOLDEN.read_bytes())
    assert [int(next(node)["x"]) for _ in range(4)] == [3, 4, 5, 101]
    batch = node.get_batch_at(995, 10, jax.random.key(2))["x"]
    assert np.asarray(batch).tolist() == [2, 103, 0, 2, 0, 100, 101, 4, 5, 3]
    assert node.get_statistics() == {"mean": 1.5}
    assert node.get_operation_stats() == {"applied_count": 1, "skipped_count": 0}
    again = pickle.loads(pickle.dumps(node)).get_state()
    assert again == node.get_state()
