"""Use of a parent's objects in a forked process: it works, or says why not, and never hangs."""

import os
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    RandomAccessSource,
    local_client,
)
from mixserve.servicer import Services
from mixserve.sources import ReferenceSource
from mixserve_client import MixClient
from mixserve_client.transport.in_process import InProcessTransport
from tests.forked import SOON_S, in_a_fork
from tests.processes import ONE_SIZE

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning"),
]

NO_JAX = "InvalidRequest: this process ({pid}) was forked off one that had used JAX"


class Numbers:
    """Records that are their numbers."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.int64(index)}


def make_node(**options: Any) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000)}) for _ in range(2)])


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    return make_node()


@pytest.fixture(scope="module")
def epoch_node() -> MixDataSourcesNode:
    """Its batches need no JAX program."""
    return make_node(sampling="epoch", cacheable=True)


def x(batch: Any) -> list[int]:
    return np.asarray(batch["x"]).tolist()


# The server's side


def test_a_source_that_reads_in_threads_has_threads_of_its_own():
    both = threading.Barrier(2)

    class Slow(Numbers):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index in (1, 2) and not both.broken:
                both.wait(SOON_S)  # so that both threads exist
            return super().__getitem__(index)

    source = RandomAccessSource(Slow(), threads=2)
    ids = np.arange(20)
    assert x(source.take(ids)) == ids.tolist()
    both.abort()
    assert in_a_fork(lambda: x(source.take(ids))) == str(ids.tolist())
    assert x(source.take(ids)) == ids.tolist()


def test_batches_that_need_jax_are_refused(node):
    assert len(node.get_batch_at(0, 5, 7)["x"]) == 5
    assert in_a_fork(lambda: node.get_batch_at(0, 5, 7)).startswith(NO_JAX)
    with local_client({"train": node}) as client:
        batches = client.batches(5, 7, start=10**6, prefetch=0)
        next(batches)
        # Not for blocks that are already planned: those no longer need JAX.
        assert in_a_fork(lambda: client.get_batch_at(10**6, 5, 7)).startswith(NO_JAX)
        assert in_a_fork(lambda: [next(batches) for _ in range(3000)]).startswith(NO_JAX)
        assert in_a_fork(lambda: local_client({"train": node}).get_batch_at(10**6, 5, 7)).startswith(NO_JAX)


def test_records_of_modules_that_are_compiled_are_refused():
    class Module:
        def __len__(self) -> int:
            return 100

        def element_spec(self) -> Any:
            return {"x": jax.ShapeDtypeStruct((), np.int32)}

        def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any:
            return {"x": start + jnp.arange(size)}

    source = ReferenceSource(Module())
    take = partial(source.take_keyed, np.array([1, 2]), np.zeros((2, 2), np.uint32))
    assert x(take()) == [1, 2]
    with source._compiling:  # as while another thread compiles
        assert in_a_fork(take).startswith(NO_JAX)


def test_a_plan_that_the_parent_began_is_not_waited_for(node):
    finish = node.mixture.planner.begin_each(np.zeros(2, np.uint32), np.arange(5000))
    assert in_a_fork(finish).startswith(NO_JAX)
    assert len(finish().source_ids) == 5000


def test_what_needs_no_jax_works_whatever_locks_other_threads_hold(epoch_node):
    services = Services({"train": epoch_node})
    with MixClient([InProcessTransport(services)]) as client:
        expected, records = x(client.get_batch_at(0, 5, 7)), next(iter(epoch_node))
        held = client.session("held")
        held.next_batch(2)
        locks = [
            epoch_node._cache.value._lock,
            epoch_node.mixture._identifying,
            epoch_node.mixture.blocks._cache.lock,
            services.mix._replies._cache._lock,
            services.mix._schedules._lock,
            services.state._sessions._loaded._lock,
            *(entry.lock for entry in services.state._sessions._loaded._entries.values()),
        ]
        for lock in locks:
            lock.acquire()
        turns = services.mix._turns
        taken = turns._free
        for _ in range(taken):
            turns.__enter__()
        found = [
            in_a_fork(task)
            for task in (
                lambda: x(epoch_node.get_batch_at(0, 5, 7)),
                lambda: x(client.get_batch_at(0, 5, 7)),
                lambda: x(next(client.batches(5, 7))),
                lambda: x(next(client.batches(5, 7, schedule=[(0, (0.5, 0.5))]))),
                lambda: [described.name for described in client.sessions()],
                lambda: x(client.session("another").next_batch(3))[:1],
                lambda: next(iter(epoch_node)),
            )
        ]
        for lock in locks:
            lock.release()
        for _ in range(taken):
            turns.__exit__()
    assert found[:6] == [*[str(expected)] * 4, "['held']", "[0]"]
    assert found[6] == repr(records)
