"""Failing user code: never the end of an epoch, never an undeclared record."""

import asyncio
import threading

import grain
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve.error_boundary import StrayEnd, WrongRecord
from mixserve.sources import ReferenceSource
from mixserve_client import MixClient, ServerFault
from tests.sessions.test_faults import DEADLINE_S, ids, make_node, stream

ENDS = (StopIteration, StopAsyncIteration, GeneratorExit)


class Records:
    """Numbers; reading the one at `at` runs `then`."""

    def __init__(self, then, at=5, length=100):
        self._then, self._at, self._length = then, at, length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if index == self._at and (said := self._then()) is not None:
            return said
        return {"id": np.int64(index)}


class Raises:
    """Raises while `armed`."""

    def __init__(self, error):
        self.error = error
        self.armed = True

    def __call__(self):
        if self.armed:
            raise self.error


def node_of(source, **options):
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), **options), [source])


def failing(error, **options):
    raises = Raises(error)
    return raises, node_of(RandomAccessSource(Records(raises), threads=1), **options)


# The end of an epoch


@pytest.mark.parametrize("error", ENDS)
def test_what_a_source_raises_does_not_end_the_epoch_of_a_node(error):
    raises, node = failing(error)
    iter(node)
    with pytest.raises(StrayEnd, match=rf"reading the record 5 of RandomAccessSource.* raised {error.__name__}"):
        node.next_batch(10)
    assert ids(node.next_batch(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(StrayEnd):
        next(node)
    with pytest.raises(StrayEnd, match=rf"reading records of RandomAccessSource.* raised {error.__name__}"):
        node.get_batch_at(0, 200, 7)
    raises.armed = False
    assert len(ids(node.next_batch(1000))) == 95


@pytest.mark.parametrize("route", ["in process", "grpc"])
@pytest.mark.parametrize("folder", [True, False])
def test_what_a_source_raises_does_not_end_the_epoch_of_a_session(tmp_path, route, folder):
    made = [(error, *failing(error)) for error in ENDS]
    nodes = {error.__name__: node for error, _, node in made}
    state_dir = tmp_path if folder else None
    server = serve(nodes, state_dir=state_dir, shared_memory=False) if route == "grpc" else None
    with (
        MixClient.connect(server.address, patience_s=20, shared_memory=False)
        if server
        else local_client(nodes, state_dir=state_dir)
    ) as client:
        for error, raises, _ in made:
            session = client.session("run", mixture=error.__name__)
            with pytest.raises(ServerFault, match=f"record 5 of .* raised {error.__name__}"):
                session.next_batch(10)
            assert ids(session.next_batch(5)) == [0, 1, 2, 3, 4]
            with pytest.raises(ServerFault, match=f"raised {error.__name__}"):
                next(session)
            with pytest.raises(ServerFault, match=f"raised {error.__name__}"):
                session.process(0, 200, 7)
            with pytest.raises(ServerFault, match=f"raised {error.__name__}"):
                client.get_batch_at(0, 200, 7, mixture=error.__name__)
            assert session.get_operation_stats() == {"applied_count": 0, "skipped_count": 1}
            raises.armed = False
            assert len(ids(session.next_batch(1000))) == 95
            with pytest.raises(StopIteration):
                session.next_batch(1)
    if server:
        server.stop()


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, GeneratorExit, StopIteration])
def test_a_call_is_answered_whatever_a_source_raises(error):
    raises, node = failing(error)
    with (
        serve({"train": node}, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=20, shared_memory=False) as client,
    ):
        session = client.session("run", timeout_s=DEADLINE_S)
        with pytest.raises(ServerFault):
            session.next_batch(10)
        with pytest.raises(ServerFault):
            client.get_batch_at(0, 200, 7, timeout_s=DEADLINE_S)
        raises.armed = False
        assert ids(session.next_batch(10)) == list(range(10))


def test_an_exit_in_the_first_thread_is_one():
    """As when a signal's handler exits."""
    raises, node = failing(SystemExit)
    with local_client({"train": node}) as client:
        session = client.session("run")
        with pytest.raises(SystemExit):
            session.next_batch(10)
        found = []

        def call():
            with pytest.raises(ServerFault):
                session.next_batch(10)
            found.append(True)

        calling = threading.Thread(target=call)
        calling.start()
        calling.join(DEADLINE_S)
        assert found == [True]
        raises.armed = False
        assert ids(session.next_batch(10)) == list(range(10))


class Arrays(Records):
    """A source by `take`."""

    def element_spec(self):
        import jax

        return {"id": jax.ShapeDtypeStruct((), np.int64)}

    def take(self, record_ids):
        return {"id": np.stack([Records.__getitem__(self, int(index))["id"] for index in record_ids])}

    __getitem__ = None


class Reference(Records):
    """A source of the reference's protocol that no program can trace."""

    def element_spec(self):
        import jax

        return {"id": jax.ShapeDtypeStruct((), np.int32)}

    def get_batch_at(self, start, size, key=None):
        first = int(start)
        return {"id": np.stack([Records.__getitem__(self, first + place)["id"] for place in range(size)])}

    __getitem__ = None


class Stream(Records):
    """A source that gives Grain its own data set, or fails to."""

    def element_spec(self):
        import jax

        return {"id": jax.ShapeDtypeStruct((), np.int64)}

    def take(self, record_ids):
        return {"id": record_ids}

    def to_grain_iter_dataset(self):
        self._then()
        return grain.MapDataset.source([{"id": np.int64(0)}] * len(self)).to_iter_dataset(grain.ReadOptions(0, 0))


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("kind", [Arrays, Reference, Stream])
def test_every_kind_of_source_is_guarded(error, kind):
    raises = Raises(error)
    node = node_of(kind(raises, length=20))
    iter(node)
    with pytest.raises(StrayEnd, match=f"raised {error.__name__}"):
        node.next_batch(10)
    if kind is not Stream:
        with pytest.raises(StrayEnd, match=f"raised {error.__name__}"):
            node.get_batch_at(0, 64, 7)
    raises.armed = False
    assert len(ids(node.next_batch(10))) == 10


@pytest.mark.parametrize("error", ENDS)
def test_functions_and_resets_are_guarded(error):
    raises = Raises(error)

    class Resets(RandomAccessSource):
        def reset(self):
            raises()

    source = Resets(Records(lambda: None))
    with local_client({"train": node_of(source, batch_stats_fn=lambda _: raises())}) as client:
        session = client.session("run")
        session.next_batch(4)
        with pytest.raises(ServerFault, match=f"batch_stats_fn raised {error.__name__}"):
            session.compute_statistics(0, 4, 7)
        with pytest.raises(ServerFault, match=f"reset of RandomAccessSource.* raised {error.__name__}"):
            session.reset()


def test_a_leaf_that_ends_things_when_it_is_read_ends_no_epoch():
    class Leaf:
        def __array__(self, dtype=None, copy=None):
            raise StopIteration

    node = node_of(RandomAccessSource(Records(lambda: {"id": Leaf()})))
    with pytest.raises(StrayEnd, match="raised StopIteration"):
        node.next_batch(10)


# Records


WRONG = {
    "dtype": {"id": np.float32(7)},
    "narrow": {"id": np.int32(7)},
    "shape": {"id": np.arange(3)},
    "scalar": {"id": np.array([7])},
    "missing": {"other": np.int64(7)},
    "more": {"id": np.int64(7), "more": np.int64(7)},
    "nested": {"id": {"a": np.int64(7)}},
    "text": {"id": "seven"},
}


@pytest.mark.parametrize("wrong", list(WRONG))
@pytest.mark.parametrize("folder", [True, False])
def test_a_session_serves_no_record_that_is_not_what_the_mixture_declares(tmp_path, wrong, folder):
    node = node_of(RandomAccessSource(Records(lambda: WRONG[wrong]), threads=1), plan_sizes=(64,))
    with local_client({"train": node}, state_dir=tmp_path if folder else None) as client:
        session = client.session("run")
        for _ in range(2):
            with pytest.raises(ServerFault, match=r"^at index 5 of the epoch: the record 5 of the source '0' "):
                session.next_batch(10)
        assert ids(session.next_batch(5)) == [0, 1, 2, 3, 4]
        for _ in range(2):
            with pytest.raises(ServerFault, match=r"^at index 5 of the epoch: the record 5 of the source '0' "):
                next(session)
        assert session.get_state()["index"] == 5
        for read in (lambda: session.process(0, 500, 7), lambda: client.get_batch_at(0, 500, 7)):
            with pytest.raises(ServerFault, match=r"all items of RandomAccessSource.* record 5 has"):
                read()


def test_the_message_says_what_came_and_what_was_declared():
    node = node_of(RandomAccessSource(Records(lambda: WRONG["dtype"])))
    said = (
        r"the record 5 of the source '0' must have the leaf 'id' as int64\[\], as the mixture declares, got float32\[\]"
    )
    with pytest.raises(WrongRecord, match=said):
        node.next_batch(10)
    assert node.index.get_value() == 0


def test_records_that_are_no_numbers_are_served_as_they_come():
    texts = [{"text": "a"}, {"text": "b", "more": 1}, {"other": [1, 2]}]
    node = node_of(RandomAccessSource(texts))
    assert [next(node) for _ in range(3)] == texts
    node.reset()
    assert node.next_batch(1)["text"].tolist() == ["a"]


def test_numbers_of_python_and_sources_of_the_reference_are_as_declared():
    node = node_of(RandomAccessSource([{"id": 1, "weight": 0.5, "flag": True}] * 4))
    with local_client({"train": node}) as client:
        session = client.session("run")
        assert next(session) == {"id": 1, "weight": 0.5, "flag": True}
        assert session.next_batch(3)["id"].tolist() == [1, 1, 1]

    class Wide(Reference):
        def __getitem__(self, index):
            return {"id": np.int64(index)}  # JAX narrows it

    node = node_of(Wide(lambda: None, length=8))
    assert isinstance(node.mixture.leaves[0], ReferenceSource)
    assert ids(node.next_batch(4)) == [0, 1, 2, 3]


def test_nothing_changes_for_sources_that_are_right():
    node = make_node()
    assert [ids(node.next_batch(4)) for _ in range(3)] == stream(3)
