"""What objects show of themselves, and the version."""

import subprocess
import sys

import numpy as np
import pytest

import mixserve
import mixserve_client
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import MixClient
from mixserve_client.jax import device_batches
from tests.processes import ONE_SIZE


def node_of(count, **options):
    sources = [ArraySource({"x": np.arange(12).reshape(4, 3)}, name=f"s{i}") for i in range(count)]
    config = MixDataSourcesConfig(num_sources=count, weights=(1,) * count, plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, sources)


def test_a_server_shows_where_it_is_and_what_it_does():
    server = serve({"train": node_of(2)})
    with server, MixClient.connect(server.address) as client:
        assert repr(server) == f"MixServer({server.address!r}, mixtures=['train'], is serving)"
        assert server.address in repr(client)
    assert repr(server).endswith("mixtures=['train'], is stopping; ask another replica, or wait for its successor)")


def test_a_description_shows_what_people_look_for():
    with local_client({"train": node_of(2)}) as client:
        mixture = client.mixture()
        assert repr(mixture) == (
            "MixtureDescription('train', sources=[s0 50.00% of 4, s1 50.00% of 4], fields=[x: int64[3]], "
            f"sampling='categorical', fingerprint='{mixture.fingerprint[:12]}…')"
        )
    with local_client({"train": node_of(3000, sampling="epoch", block_size=4096, stop="first_exhausted")}) as client:
        assert "and 2,990 more], fields" in repr(client.mixture())
        assert len(repr(client.mixture())) < 600
        assert f"end={client.end()}, " in repr(client.mixture())


def test_iterators_on_devices_show_the_iterator_below():
    with local_client({"train": node_of(1)}) as client, device_batches(client.batches(4, 7)) as batches:
        assert repr(batches).startswith(
            "DeviceBatches(BatchIterator(mixture=None, batch_size=4, key=[0, 7], position=0"
        )


@pytest.mark.parametrize("package", [mixserve, mixserve_client])
def test_packages_have_one_version(package):
    assert package.__version__ == mixserve.__version__


def test_the_command_shows_its_version():
    code = """
import sys
from mixserve.cli.start import main
try:
    main()
finally:
    assert "jax" not in sys.modules
"""
    command = [sys.executable, "-c", code, "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == f"mixserve {mixserve.__version__}\n"
