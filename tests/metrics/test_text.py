"""The text that Prometheus reads: plain and as OpenMetrics, packed or not."""

import gzip
import http.client

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

from mixserve_client.prometheus import collector, serve_metrics
from mixserve_client.schema.stats import Metric, counter

PLAIN, OPEN = "text/plain", "application/openmetrics-text; version=1.0.0"


class Told:
    """A client's statistics are what a test says."""

    def __init__(self, *metrics: Metric):
        self.metrics = {metric.name: metric for metric in metrics}

    def stats(self) -> dict[str, Metric]:
        return self.metrics


def theirs(told: Told, *, is_open: bool) -> str:
    registry = CollectorRegistry()
    registry.register(collector(told))
    return (generate_open if is_open else generate_latest)(registry).decode()


def families(text: str, *, is_open: bool):
    return [
        (one.name, one.type, one.documentation, [(s.name, sorted(s.labels.items()), s.value) for s in one.samples])
        for one in (read_open if is_open else read_text)(text)
    ]


def get(address: str, path: str, **headers: str) -> tuple[dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    assert reply.status == 200
    return dict(reply.getheaders()), reply.read()


def test_a_scrape_may_ask_for_openmetrics_and_for_gzip():
    told = Told(counter("mixserve_a_total", "a", {(): 3}))
    with serve_metrics(told, 0) as port:
        for accept, is_open in ((PLAIN, False), (OPEN, True)):
            headers, plain = get(port.address, "/metrics", Accept=accept)
            found = families(plain.decode(), is_open=is_open)
            assert headers["Content-Type"].startswith(accept.partition(";")[0])
            assert found[0] == families(theirs(told, is_open=is_open), is_open=is_open)[0]
            assert {"process_cpu_seconds", "process_open_fds", "python_info"} <= {name for name, *_ in found}
            headers, packed = get(port.address, "/metrics", Accept=accept, Accept_Encoding="gzip")
            assert headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(packed).splitlines()[:3] == plain.splitlines()[:3]
        rare = families(get(port.address, "/metrics?shard=1")[1].decode(), is_open=False)
        assert [one[0] for one in rare] == [one[0] for one in families(plain.decode(), is_open=True)]
