"""Tiny real mixtures, a real server, and clients over every transport."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, local_client, serve
from mixserve.mixture.compilation_cache import choose_folder, platform_digest
from mixserve.mixture.programs import forget
from mixserve_client import MixClient
from tests import profiles  # noqa: F401  # it loads one
from tests.processes import ONE_SIZE

# Compiled programs are cached across tests and runs: compiling one takes a second of two cores, and there are hundreds.
# Other processes get mixserve's own cache: JAX does not write its cache atomically, and tests kill them at any time.
_COMPILED = Path(__file__).parents[1] / "build" / "compiled" / platform_digest()
os.environ["MIXSERVE_COMPILATION_CACHE"] = str(_COMPILED / "mixserve")
os.environ["MIXSERVE_PREPARED"] = str(_COMPILED.parent / "prepared")
jax.config.update("jax_compilation_cache_dir", str(_COMPILED / "jax"))
# JAX's default of 1 s would leave most of these programs out of its cache.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

TRANSPORTS = ("in-process", "grpc", "bulk", "shared memory")
# The options with which a client of a server on this host uses each of them.
ROUTES: dict[str, dict[str, Any]] = {
    "grpc": {"shared_memory": False, "bulk": False},
    "bulk": {"shared_memory": False},
    "shared memory": {},
}

# The files that take longest. `make test` begins with them, in this order: near its end no process must be busy with a
# long file when the others have no file left.
FAULTS = ("chaos", "fuzz", "soak")  # folders that `make test-faults` runs
# What `make test-operating` runs: servers and commands as processes of their own, as operators use them.
OPERATING = (
    "crash",
    "fleet",
    "load",
    "logs",
    "rolling",
    "slurm",
    "test_autoscale_live.py",
    "test_bit_flips.py",
    "test_demo.py",
    "test_end_of_process.py",
    "test_forks_over_grpc.py",
    "test_formats_together.py",
    "test_memory.py",
    "test_processes.py",
    "test_remote_replicas.py",
    "test_sessions_live.py",
    "top",
    "tracing",
    "versions",
)
LONGEST = (
    "load/test_health_of_mixtures.py",
    "security/test_connections.py",
    "bulk/test_hostile_clients.py",
    "test_bit_flips.py",
    "client/test_replicas.py",
    "bulk/test_waits.py",
    "client/test_hostile.py",
    "versions/test_versions.py",
    "security/test_turns.py",
    "test_memory.py",
    "test_demo.py",
    "slurm/test_slurm.py",
    "test_children.py",
    "test_node.py",
    "test_nnx.py",
    "sessions/test_sessions.py",
    "client/test_shared_memory.py",
    "client/test_client.py",
    "test_processes.py",
    "test_sessions_live.py",
    "test_cli.py",
    "test_formats_together.py",
    "test_iteration.py",
    "mixture/test_programs.py",
    "client/test_remote_node.py",
    "test_cli_sampling.py",
    "test_server.py",
    "test_config_bounds.py",
    "crash/test_crash.py",
    "client/test_aio.py",
    "client/test_lifetimes.py",
    "test_on_error.py",
    "test_cli_records.py",
    "mixture/test_plan.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    assert all(file.exists() for file in places), "a file in LONGEST has moved"
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).parts[0]
        if place in FAULTS:
            item.add_marker(pytest.mark.faults)
        elif place in OPERATING:
            item.add_marker(pytest.mark.operating)


@pytest.fixture(autouse=True)
def _strict_jax() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def arrays(length: int, seed: int) -> dict[str, np.ndarray]:
    """One array of every kind that matters: 64 bits, sub-byte precision, odd row sizes, scalars."""
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(0, 1 << 16, (length, 5)).astype(np.uint16),
        "image": rng.normal(size=(length, 3, 2)).astype(np.float32),
        "id": rng.integers(-(1 << 62), 1 << 62, length),
        "half": rng.normal(size=(length, 7)).astype(ml_dtypes.bfloat16),
        "eighth": rng.normal(size=(length, 3)).astype(ml_dtypes.float8_e4m3fn),
        "flag": rng.integers(0, 2, length).astype(bool),
    }


def make_node(weights: tuple[float, ...] = (0.5, 0.2, 0.3), seed: int = 0, **options: Any) -> MixDataSourcesNode:
    sources = [ArraySource(arrays(10 * (i + 1), seed + i), name=f"source-{i}") for i in range(len(weights))]
    config = MixDataSourcesConfig(num_sources=len(weights), weights=weights, **options)
    return MixDataSourcesNode(config, sources)


def assert_batches_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Require the same fields, dtypes, shapes and bytes."""
    assert left.keys() == right.keys()
    for name in left:
        a, b = np.asarray(left[name]), np.asarray(right[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


@pytest.fixture
def cold() -> Iterator[None]:
    """Start without programs in memory or in a folder."""
    choose_folder(False)
    forget()
    yield
    choose_folder(True)


@pytest.fixture(scope="session")
def node() -> MixDataSourcesNode:
    return make_node()


@pytest.fixture(scope="session")
def server(node: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": node}) as running:
        yield running


@pytest.fixture(scope="module")
def big_node() -> MixDataSourcesNode:
    """Two sources of 100 rows of 16 KiB."""
    tokens = np.random.default_rng(0).integers(0, 1 << 30, (2, 100, 4096), np.int32)
    config = MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"tokens": array}) for array in tokens])


@pytest.fixture(params=TRANSPORTS)
def client(request: pytest.FixtureRequest, node: MixDataSourcesNode) -> Iterator[MixClient]:
    if request.param == "in-process":
        made = local_client({"train": node})
    else:
        address = request.getfixturevalue("server").address
        made = MixClient.connect(address, patience_s=20, **ROUTES[request.param])
    with made:
        yield made


@pytest.fixture
def call(client: MixClient) -> Callable[[str, bytes], bytes]:
    """Sends raw bytes to a method over the client's transport."""
    return lambda method, data: client._caller.call(method, data)
