"""One cluster for all tests: three nodes take ten seconds to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.ray_fleet.cluster import RayCluster, actors, make_mixture

# The nodes are forked from the process of the tests, which has used JAX; they start programs at once.
_FORKS = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(_FORKS)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    made = RayCluster(3)
    try:
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return make_mixture(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_left(cluster: RayCluster) -> Iterator[None]:
    yield
    assert not actors()
