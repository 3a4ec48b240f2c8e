"""The text that Prometheus reads, against that of its own library for the same metrics."""

import gzip
import http.client
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open
from prometheus_client.parser import text_string_to_metric_families as read_text

from mixserve_client.metrics.text import MetricsText
from mixserve_client.prometheus import collector, serve_metrics
from mixserve_client.schema.stats import Metric, MetricKind, Sample, counter, gauge

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


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
amounts = st.floats(0, allow_nan=False) | st.integers(0, 1 << 60).map(float)


@pytest.mark.parametrize("is_open", [False, True])
@given(
    counts=st.dictionaries(st.tuples(names, names), amounts, max_size=4),
    levels=st.dictionaries(st.tuples(names), st.floats(allow_nan=False), max_size=4),
    # OpenMetrics' reader wants whole numbers in buckets to be small enough to be exact.
    buckets=st.dictionaries(st.tuples(names), st.lists(st.integers(0, 1 << 40), min_size=3, max_size=3), max_size=3),
    about=names,
)
def test_each_sample_is_as_their_library_writes_it(is_open, counts, levels, buckets, about):
    waits = tuple(Sample(labels, 0.25 * sum(many), tuple(many)) for labels, many in buckets.items())
    told = Told(
        counter("mixserve_a_total", about, counts, ("source", "mixture")),
        gauge("mixserve_b", "b", levels, ("z",)),
        gauge("mixserve_c", "c", {(): 1}),
        Metric("mixserve_d_seconds", "d", MetricKind.HISTOGRAM, ("stage",), waits, (0.5, 30.0)),
    )
    text = MetricsText()
    ours = [text.write(told.stats().values(), is_open=is_open) for _ in range(2)]
    assert ours[0] == ours[1]  # also with what is known from the first time
    assert families(ours[0], is_open=is_open) == families(theirs(told, is_open=is_open), is_open=is_open)


def test_values_that_are_not_finite_are_written_as_go_does():
    values = {("a",): math.nan, ("b",): math.inf, ("c",): -math.inf}
    lines = MetricsText().write([gauge("mixserve_b", "b", values, ("x",))], is_open=False).splitlines()
    assert lines[2:] == ['mixserve_b{x="a"} NaN', 'mixserve_b{x="b"} +Inf', 'mixserve_b{x="c"} -Inf']


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
        # Their library answers what Prometheus does not ask by itself.
        rare = families(get(port.address, "/metrics?shard=1")[1].decode(), is_open=False)
        assert [one[0] for one in rare] == [one[0] for one in families(plain.decode(), is_open=True)]
