"""A record that cannot be read: clients get every batch before it, then an error that names it, and can skip it."""

import asyncio
import re
from collections.abc import Callable, Iterator
from itertools import count, cycle

import jax
import numpy as np
import pytest

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    MixServer,
    RandomAccessSource,
    local_client,
    serve,
)
from mixserve.servicer.hosted import HostedMixture
from mixserve_client import AsyncMixClient, MixClient, ServerFault, Unavailable
from mixserve_client.grain import RemoteIterDataset
from mixserve_client.jax import device_batches
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_batch_request
from tests.conftest import ROUTES, TRANSPORTS, assert_batches_equal
from tests.processes import ONE_SIZE

SIZE, ROW = 4, 64
LENGTH = 400
keys = count(100)  # replies are cached for a second under what they answer


class Files:
    """Items as a user reads them: the one of each number in `raises` fails, until it is removed there."""

    content_id = "files"

    def __init__(self):
        self.raises: dict[int, BaseException] = {}

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        if index in self.raises:
            raise self.raises[index]
        return {"x": np.full(ROW, index, np.int32)}


class Taken(Files):
    """The same in batches."""

    content_id = "taken"

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((ROW,), np.int32)}

    def take(self, record_ids):
        for record_id in record_ids.tolist():
            Files.__getitem__(self, record_id)
        return {"x": np.repeat(record_ids.astype(np.int32)[:, None], ROW, 1)}


def node_of(*sources, names=("books", "web", "disk")) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(
        num_sources=len(sources),
        weights=(1.0,) * len(sources),
        source_names=names[: len(sources)],
        plan_sizes=ONE_SIZE,
    )
    return MixDataSourcesNode(config, list(sources))


@pytest.fixture(scope="module")
def files() -> Files:
    return Files()


@pytest.fixture(scope="module")
def taken() -> Taken:
    return Taken()


@pytest.fixture(scope="module")
def nodes(files, taken) -> dict[str, MixDataSourcesNode]:
    books = ArraySource({"x": np.full((LENGTH, ROW), -1, np.int32)})
    return {"train": node_of(books, RandomAccessSource(files), taken)}


@pytest.fixture(scope="module")
def server(nodes) -> Iterator[MixServer]:
    with serve(nodes) as running:
        yield running


@pytest.fixture(scope="module", params=TRANSPORTS)
def client(request, nodes, server) -> Iterator[MixClient]:
    if request.param == "in-process":
        made = local_client(nodes)
    else:
        made = MixClient.connect(server.address, **ROUTES[request.param])
    with made:
        yield made


@pytest.fixture(autouse=True)
def _mended(files, taken) -> Iterator[None]:
    yield
    files.raises, taken.raises = {}, {}


def expected(nodes, batches: int, key: int) -> list[dict]:
    node = nodes["train"]
    return [node.get_batch_at(at * SIZE, SIZE, jax.random.key(key)) for at in range(batches)]


def failing_place(client: MixClient, source: int, key: int) -> tuple[int, int]:
    """A position within a batch whose record, of the source, does not come before; and the record."""
    plan = client.get_plan_at(0, 4096, key)
    for position in range(98, 4096):
        is_there = (plan["source_id"] == source) & (plan["record_id"] == plan["record_id"][position])
        if plan["source_id"][position] == source and position % SIZE and not is_there[:position].any():
            return position, int(plan["record_id"][position])
    raise AssertionError("no such position")


def until_error(step: Callable[[], dict]) -> tuple[list[dict], Exception]:
    found = []
    while True:
        try:
            found.append(step())
        except StopIteration:
            raise
        except Exception as error:
            return found, error


@pytest.mark.parametrize("source", [1, 2])
def test_batches_before_a_failing_record_arrive_and_then_an_error_that_names_it(nodes, client, files, taken, source):
    key = next(keys)
    position, bad = failing_place(client, source, key)
    good = expected(nodes, position // SIZE, key)
    after = client.get_batch_at(position + 1, SIZE, key)
    (files, taken)[source - 1].raises = {bad: OSError(5, "the disk is gone")}
    with client.batches(SIZE, key) as batches:
        found, error = until_error(lambda: next(batches))
        assert len(found) == position // SIZE > 20
        for one, other in zip(found, good, strict=True):
            assert_batches_equal(one, other)
        name = ("web", "disk")[source - 1]
        said = f"at position {position}: reading the record {bad} of the source '{name}' failed: OSError; "
        assert str(error).startswith(said)
        assert "the disk is gone" not in str(error)
        assert type(error) is ServerFault
        assert batches.get_state()["position"] == position // SIZE * SIZE
        with pytest.raises(ServerFault, match=f"position {position}"):
            next(batches)
        batches.skip(position, position + 1)
        rest = next(batches)["x"][position % SIZE :]
        assert_batches_equal({"x": rest}, {"x": after["x"][: len(rest)]})
        next(batches)


def test_the_adapters_deliver_every_batch_before_the_error(nodes, server, files):
    with MixClient.connect(server.address) as client:
        key = next(keys)
        position, bad = failing_place(client, 1, key)
        good = expected(nodes, position // SIZE, key)
        files.raises = {bad: OSError(5, "the disk is gone")}
        said = f"at position {position}: reading the record {bad} of the source 'web'"

        async def from_asyncio() -> tuple[list[dict], Exception]:
            async with AsyncMixClient.connect(server.address) as other:
                found = []
                batches = other.batches(SIZE, key)
                try:
                    while True:
                        found.append(await anext(batches))
                except ServerFault as error:
                    return found, error
                finally:
                    await batches.close()

        on_devices = device_batches(client.batches(SIZE, key))
        of_grain = iter(RemoteIterDataset(client, batch_size=SIZE, key=key))
        for found, error in (
            asyncio.run(from_asyncio()),
            until_error(lambda: next(on_devices)),
            until_error(lambda: next(of_grain)),
        ):
            assert len(found) == len(good)
            for one, other in zip(found, good, strict=True):
                assert_batches_equal(one, other)
            assert type(error) is ServerFault
            assert str(error).startswith(said)
        on_devices.close()
        of_grain.close()


def test_of_several_failing_records_the_first_one_is_named(client, files, taken):
    """Sources are read one after another: that of the later record comes first here."""
    key = next(keys)
    later, web = failing_place(client, 1, key)
    plan = client.get_plan_at(0, later, key)
    first = int(np.flatnonzero(plan["source_id"] == 2)[-1])
    disk = int(plan["record_id"][first])
    first = int(np.flatnonzero((plan["source_id"] == 2) & (plan["record_id"] == disk))[0])
    files.raises, taken.raises = {web: OSError("later")}, {disk: OSError("sooner")}
    with client.batches(SIZE, key) as batches:
        found, error = until_error(lambda: next(batches))
    assert len(found) == first // SIZE
    assert str(error).startswith(f"at position {first}: reading the record {disk} of the source 'disk' failed")


def test_single_batches_and_positions_name_the_record_too(nodes, client, files):
    key = next(keys)
    position, bad = failing_place(client, 1, key)
    files.raises = {bad: KeyError("no such file")}
    said = f"at position {position}: reading the record {bad} of the source 'web' failed: KeyError"
    for read in (
        lambda: client.get_batch_at(position - 50, 60, key),
        lambda: client.get_batch_by_positions([1, position, 2, position], key),
    ):
        with pytest.raises(ServerFault) as caught:
            read()
        assert str(caught.value).startswith(f"{said}; ")
        assert re.search(r"the server's log has the cause under the id [0-9a-f]{8}$", str(caught.value))
    # In process the source's own error stays what it is.
    with pytest.raises(KeyError) as caught:
        nodes["train"].get_batch_at(position - 50, 60, jax.random.key(key))
    assert caught.value is files.raises[bad]
    assert caught.value.__notes__ == [f"{said}: no such file"]
    with pytest.raises(KeyError):
        nodes["train"].get_batch_at(position, 1, jax.random.key(key))
    assert len(caught.value.__notes__) == 1


def test_a_session_names_the_record_and_the_index(client, files):
    files.raises = {0: OSError("gone")}
    with client.session(f"run-{next(keys)}") as session:
        for _ in range(2):
            with pytest.raises(
                ServerFault, match=r"^at index \d of the epoch: reading the record 0 of the source 'web' failed: "
            ):
                session.next_batch(9)
        with pytest.raises(ServerFault, match="the source 'web' failed: OSError; "):
            session.process(0, 4096, next(keys))


class Together(Taken):
    """Refuses batches."""

    def __init__(self):
        super().__init__()
        self.reads, self.most = list[int](), LENGTH

    def take(self, record_ids):
        self.reads.append(len(record_ids))
        if len(record_ids) > self.most:
            raise MemoryError("too many at once")
        return super().take(record_ids)


def test_if_no_record_fails_alone_all_are_named():
    source = Together()
    with local_client({"train": node_of(source)}) as client:
        client.mixture()
        source.most, source.reads = 5, []
        with pytest.raises(ServerFault) as caught:
            client.get_batch_at(0, 6, 1)
    said = "at position 0: reading 6 records of the source 'books' together failed: MemoryError"
    assert str(caught.value).startswith(f"{said}; ")
    assert source.reads == [6, 1, 1, 1, 1, 1, 1]


def test_the_search_ends_at_the_first_record_that_fails():
    source = Together()
    with local_client({"train": node_of(source)}) as client:
        plan = client.get_plan_at(0, 100, 1)
        source.raises = {int(plan["record_id"][3]): OSError("gone"), int(plan["record_id"][50]): OSError("gone")}
        source.reads = []
        with pytest.raises(ServerFault, match="at position 3: "):
            client.get_batch_at(0, 100, 1)
        assert source.reads == [100, 1, 1, 1, 1]


def test_a_source_that_asks_a_server_itself_keeps_the_classes_of_its_errors():
    source = Together()
    with local_client({"train": node_of(source)}) as client:
        source.raises |= dict.fromkeys(range(LENGTH), ServerFault("of another server"))
        with pytest.raises(ServerFault, match=r"^at position 0: reading the record \d+ of the source 'books' failed: "):
            client.get_batch_at(0, 6, 1)
        source.raises |= dict.fromkeys(range(LENGTH), Unavailable("is starting"))
        source.reads = []
        with pytest.raises(Unavailable, match="is starting"):
            client._caller.transport.call(methods.GET_BATCH_AT, encoded(0, 6), None)
        assert source.reads == [6]  # transient: no search, and the client asks again


def encoded(start: int, size: int) -> bytes:
    return encode_batch_request(BatchRequest("train", start, size, key_words(1)))


def test_no_reply_is_lost_when_rows_begin_to_come_from_memory(monkeypatch):
    """While rows come from a disk, a reply begins before the one before it is finished."""
    source = ArraySource({"x": np.repeat(np.arange(LENGTH, dtype=np.int32)[:, None], 64 * ROW, 1)})
    node = node_of(source)
    answers = cycle([True, True, False, False, False, True, False])
    monkeypatch.setattr(HostedMixture, "is_cold", lambda _: next(answers))
    with local_client({"train": node}) as client, client.batches(SIZE, 3) as batches:
        for at in range(120):
            assert_batches_equal(next(batches), node.get_batch_at(at * SIZE, SIZE, jax.random.key(3)))
