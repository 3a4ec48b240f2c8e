"""A call gets an answer whatever a source raises, and wherever: through every hook, as an error that cannot be shown,
and with a log that ends the process."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, RandomAccessSource, serve
from mixserve_client import MixClient, ServerFault, Unavailable
from tests.processes import ONE_SIZE
from tests.test_error_boundary import ENOUGH_S, Own, in_thread, keys

LENGTH = 50


class Armed:
    """Raises an error of this class while there is one."""

    error: type[BaseException] | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error("of a source")  # a new one each time: one object would collect the frames of all


ARMED = Armed()


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    ARMED.error = None


class Items:
    content_id = "is not read for the fingerprint"

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        ARMED.check()
        return {"x": np.int32(index)}


class OfTorch(Items):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


class OfGrain(Items):
    def _getitems(self, indices):
        return [self[index] for index in indices]


class Reference(Items):
    """By the reference's protocol; no program can trace it."""

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def get_batch_at(self, start, size, key=None) -> dict[str, Any]:
        ARMED.check()
        return {"x": np.arange(int(start), int(start) + size, dtype=np.int32)}


class CallsBack(Reference):
    """The same from a compiled program, which calls back."""

    def get_batch_at(self, start, size, key=None) -> dict[str, Any]:
        def read(start):
            ARMED.check()
            return np.asarray(start, np.int32)

        shape = jax.ShapeDtypeStruct((), np.int32)
        return {"x": jnp.broadcast_to(jax.pure_callback(read, shape, start, vmap_method="sequential"), (size,))}


def node_of(source) -> MixDataSourcesNode:
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])


@pytest.fixture(scope="module")
def server() -> Iterator[MixServer]:
    nodes = {
        "items": node_of(RandomAccessSource(Items())),
        "torch": node_of(RandomAccessSource(OfTorch())),
        "grain": node_of(RandomAccessSource(OfGrain())),
        "reference": node_of(Reference()),
        "calls-back": node_of(CallsBack()),
        "nested": node_of(node_of(RandomAccessSource(Items()))),
    }
    with serve(nodes) as running:
        yield running


@pytest.fixture(scope="module")
def client(server) -> Iterator[MixClient]:
    with MixClient.connect(server.address, patience_s=0.2) as made:
        yield made


def single(client: MixClient, mixture: str):
    return client.get_batch_at(0, 40, next(keys), mixture=mixture, timeout_s=ENOUGH_S)


def stream(client: MixClient, mixture: str):
    with client.batches(40, next(keys), mixture=mixture, prefetch=0, timeout_s=ENOUGH_S) as batches:
        return next(batches)


def session(client: MixClient, mixture: str):
    with client.session(f"run-{next(keys)}", mixture=mixture, timeout_s=ENOUGH_S) as opened:
        return opened.next_batch(4)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, Own])
@pytest.mark.parametrize("mixture", ["torch", "grain", "reference", "calls-back", "nested"])
def test_every_hook_of_a_source_may_raise_anything(client, mixture, error):
    for way in (single, stream, session):
        ARMED.error = error
        began = time.monotonic()
        assert type(in_thread(lambda way=way: way(client, mixture))) is ServerFault
        assert time.monotonic() - began < ENOUGH_S / 2
        ARMED.error = None
        assert len(way(client, mixture)["x"]) >= 4


class UnprintableUnavailable(Unavailable):
    def __str__(self):
        raise Own("the error's text")


class UnprintablePanic(Own):
    def __str__(self):
        raise SystemExit("the error's text")


@dataclass(frozen=True)
class Frozen(Exception):
    text: str


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (UnprintableUnavailable, Unavailable, "UnprintableUnavailable"),
        (UnprintablePanic, ServerFault, "of the source '0' failed: UnprintablePanic; "),
        (Frozen, ServerFault, "of the source '0' failed: Frozen; "),
    ],
)
@pytest.mark.parametrize("way", [single, stream])
def test_errors_that_cannot_be_shown_or_changed_end_their_call(client, way, error, expected, said):
    ARMED.error = error
    raised = in_thread(lambda: way(client, "items"))
    assert type(raised) is expected
    assert said in str(raised)


class Exits(logging.Handler):
    """Ends the process at an error, as some training frameworks set up their logs."""

    def emit(self, record):
        raise SystemExit(record.getMessage())


@pytest.mark.parametrize("way", [single, stream, session])
def test_a_log_that_exits_does_not_keep_a_call_from_its_end(client, way):
    handler = Exits(logging.ERROR)
    logging.getLogger("mixserve").addHandler(handler)
    try:
        ARMED.error = OSError
        raised = in_thread(lambda: way(client, "items"))
    finally:
        logging.getLogger("mixserve").removeHandler(handler)
    assert type(raised) is ServerFault


def test_a_source_that_panics_when_it_is_sampled_does_not_keep_a_server_from_starting(caplog):
    class Panics(Reference):
        content_id = None

        def take(self, record_ids):
            raise Own("panicked")

    with serve({"train": node_of(Panics())}) as server, MixClient.connect(server.address) as client:
        assert client.mixture(timeout_s=ENOUGH_S).sources[0].content_unknown
        assert type(in_thread(lambda: single(client, "train"))) is ServerFault
    assert "reading its records failed: Own: panicked" in caplog.text
