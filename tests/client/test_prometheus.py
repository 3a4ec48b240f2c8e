"""A client's metrics as Prometheus reads them."""

import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mixserve import local_client
from mixserve_client import AsyncMixClient, InvalidRequest, MixClient
from mixserve_client.prometheus import collector, serve_metrics
from mixserve_client.schema.stats import MetricKind
from tests.conftest import make_node


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return reply.read().decode()


@pytest.fixture
def client():
    with local_client({"train": make_node()}, name="trainer") as made:
        list(made.batches(8, key=1, stop=84))
        yield made


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_of_its_own_has_what_stats_has(client, host):
    with serve_metrics(client, 0, host) as port:
        assert port.address.rpartition(":")[0].strip("[]") == host
        found = samples(read(port.address))
        for name, metric in client.stats().items():
            for sample in metric.samples:
                labels = tuple(sorted(zip(metric.labels, sample.labels, strict=True)))
                if metric.kind == MetricKind.HISTOGRAM:
                    assert found[f"{name}_count", labels] == sample.count
                    assert found[f"{name}_sum", labels] == pytest.approx(sample.value)
                elif name != "mixserve_client_iterator_wait_share":  # it moves
                    assert found[name, labels] == sample.value, name
        train = (("mixture", "train"),)
        assert found["mixserve_client_batches_total", train] == 11
        assert found["mixserve_client_batch_records_total", train] == 84
        assert found["process_open_fds", ()] > 0
        next(client.batches(8, key=1))
        assert samples(read(port.address))["mixserve_client_batches_total", train] == 12
        address = port.address
    with pytest.raises(OSError, match="refused"):
        read(address)


def test_a_trainers_own_registry_takes_one_client(client):
    registry = CollectorRegistry()
    registry.register(collector(client))
    found = samples(generate_latest(registry).decode())
    assert found["mixserve_client_info", (("client", "trainer"),)] == 1
    assert found["mixserve_client_batches_total", (("mixture", "train"),)] == 11
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(collector(client))
    other = CollectorRegistry()
    other.register(collector(AsyncMixClient(client)))
    assert "mixserve_client_batches_total" in generate_latest(other).decode()


def test_wrong_arguments_are_refused(client):
    wrong: Any = "127.0.0.1:50051"
    for call in (lambda: collector(wrong), lambda: serve_metrics(wrong, 0)):
        with pytest.raises(InvalidRequest, match="client must be a MixClient"):
            call()
    for port in (-1, 65_536, True):
        with pytest.raises(InvalidRequest, match=r"port must be an integer in 0\.\.65535"):
            serve_metrics(client, port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            serve_metrics(client, port)


def test_the_client_works_without_prometheus_client():
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from mixserve_client import MixClient\n"
        "print(len(MixClient.connect('127.0.0.1:1').stats()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with MixClient.connect("127.0.0.1:1") as unconnected:
        assert int(done.stdout) == len(unconnected.stats())
