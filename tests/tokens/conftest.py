"""A server of two mixtures, a and b, and its tokens."""

from collections.abc import Iterator

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.access import failures
from tests.processes import ONE_SIZE
from tests.tokens.calling import ALL, ROWS, look
from tests.tokens.files import Tokens


def make_node(seed: int) -> MixDataSourcesNode:
    rows = np.random.default_rng(seed).integers(0, 1 << 30, (ROWS, 1024), np.int32)
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": rows}, name=f"source-of-{seed}")])


@pytest.fixture(scope="module")
def nodes() -> dict[str, MixDataSourcesNode]:
    return {"a": make_node(1), "b": make_node(2)}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Tokens:
    return Tokens(tmp_path_factory.mktemp("tokens") / "tokens.yaml", ALL)


@pytest.fixture(scope="module")
def shared(nodes, tokens, tmp_path_factory) -> Iterator[MixServer]:
    with serve(nodes, state_dir=tmp_path_factory.mktemp("state"), tokens=tokens.path) as server:
        yield server


@pytest.fixture
def server(shared, tokens) -> Iterator[MixServer]:
    yield shared
    shared._guard._failures._hosts.clear()  # each test begins without failures of its host
    shared._guard.refusals._said.clear()
    if tokens.rights.keys() != ALL.keys() or tokens.path.read_text().count("- {") != len(ALL):
        tokens.rights = dict(ALL)
        tokens.write()
        look(shared)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Failures wait less."""
    monkeypatch.setattr(failures, "_LONGEST_DELAY_S", 0.05)
