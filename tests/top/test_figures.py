"""Figures of readings, and the pictures of them."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from mixserve.cli.top.figures import Client, Count, Figures, Mixture, Server, Source, figures_of, is_off, server_of
from mixserve.cli.top.picture import picture_of
from mixserve.cli.top.tables import Cell, tables_of
from mixserve.readings.growth import Growth, Reading
from mixserve_client.schema.stats import Metric, MetricKind, Sample, Stats, counter, gauge
from tests.profiles import examples


def stats(records: dict[str, int], requested: dict[str, float], **more: Metric) -> Stats:
    def by_source(name: str, values) -> Metric:
        labels = {("train", source): float(value) for source, value in values.items()}
        return counter(name, "", labels, ("mixture", "source"))

    return {
        "mixserve_records_total": by_source("mixserve_records_total", records),
        "mixserve_requested_records_total": by_source("mixserve_requested_records_total", requested),
        "mixserve_source_bytes_total": by_source("mixserve_source_bytes_total", {k: v * 8 for k, v in records.items()}),
        "mixserve_replies_total": counter("mixserve_replies_total", "", {("train",): 4}, ("mixture",)),
        **more,
    }


def read_twice(first: Stats, second: Stats, seconds: float = 2.0) -> Reading:
    growth = Growth()
    growth.read(first, 0.0)
    return growth.read(second, seconds)


def test_shares_and_rates_of_two_servers_together():
    one = read_twice(
        stats({"a": 100, "b": 100}, {"a": 100, "b": 100}), stats({"a": 130, "b": 110}, {"a": 120, "b": 120})
    )
    other = read_twice(stats({"a": 0, "b": 0}, {"a": 0, "b": 0}), stats({"a": 0, "b": 40}, {"a": 20, "b": 20}), 4.0)
    servers = [server_of("one", one), server_of("other", other)]
    figures = figures_of(servers, [one, other])
    a, b = figures.sources
    assert (a.records, b.records) == (130, 150)
    assert (a.requested, a.realised) == (0.5, 130 / 280)
    assert (a.realised_now, b.realised_now) == (30 / 80, 50 / 80)
    assert (a.records_s, b.records_s) == (15, 5 + 10)
    assert (a.bytes_s, b.bytes_s) == (120, 120)
    assert [one.records_s for one in servers] == [20, 10]
    (train,) = figures.mixtures
    assert (train.records_s, train.errors_s, train.readers) == (30, 0, 0)


def test_without_a_second_reading_rates_are_unknown():
    reading = Growth().read(stats({"a": 1}, {"a": 1}), 0.0)
    figures = figures_of([server_of("one", reading)], [reading])
    assert figures.servers[0].records_s is None
    assert figures.mixtures[0].records_s is None
    assert figures.sources[0].records_s is None
    assert figures.sources[0].realised == 1
    assert figures.sources[0].realised_now is None


def test_readers_that_several_workers_know_count_once_and_the_hungriest_client_comes_first():
    def by_client(name: str, values) -> Metric:
        return gauge(name, "", values, ("mixture", "client", "worker"))

    reading = Growth().read(
        stats(
            {"a": 1},
            {"a": 1},
            mixserve_readers=by_client(
                "mixserve_readers",
                {("train", "x", "0"): 2, ("train", "x", "1"): 2, ("train", "y", "0"): 1, ("train", "gone", "0"): 0},
            ),
            mixserve_client_wait_share=by_client(
                "mixserve_client_wait_share",
                {("train", "x", "0"): 0.1, ("train", "x", "1"): 0.3, ("train", "y", "0"): 0.9},
            ),
        ),
        0.0,
    )
    figures = figures_of([], [reading])
    assert [(one.client, one.readers, one.wait_share) for one in figures.clients] == [("y", 1, 0.9), ("x", 2, 0.2)]
    assert figures.mixtures[0].readers == 3


def test_quantiles_are_of_the_last_interval():
    def made(counts: tuple[int, ...]) -> Metric:
        samples = (Sample(("train",), 1.0, counts),)
        return Metric("mixserve_batch_seconds", "", MetricKind.HISTOGRAM, ("mixture",), samples, (1.0, 2.0))

    parts = [stats({"a": 1}, {"a": 1}, mixserve_batch_seconds=made(counts)) for counts in ((90, 0, 0), (90, 10, 0))]
    (train,) = figures_of([], [read_twice(*parts)]).mixtures
    assert (train.p50_s, train.p99_s) == (1.5, 1.99)


def test_chance_is_not_taken_for_a_fault():
    assert not is_off(got=0, wanted=0, of=0)
    assert not is_off(got=530, wanted=500, of=1000)  # two standard deviations
    assert is_off(got=600, wanted=500, of=1000)  # six
    assert not is_off(got=600, wanted=500, of=1000, readers=4)  # the same draws, counted four times
    assert is_off(got=1000, wanted=0, of=2000)
    assert not is_off(got=500_000 + 20_000, wanted=500_000, of=1_000_000)  # not chance, but less than 5 %
    assert is_off(got=500_000 + 30_000, wanted=500_000, of=1_000_000)


def test_limited_tokens_see_no_server_figures():
    reading = Growth().read(stats({"a": 1}, {"a": 1}), 0.0)
    server = server_of("one", reading)
    assert (server.serving, server.memory, server.version, server.processes) == (None, None, "", 1)
    text = picture_of(Cell("title"), tables_of(figures_of([server], [reading]))).plain
    assert "answers" in text
    assert "train/a" in text


names = st.text(max_size=30)
parts = st.one_of(st.none(), st.floats(0, 1))
numbers = st.one_of(st.none(), st.floats(0, 1e12), st.just(math.inf))
counts = st.integers(0, 10**9)
all_figures = st.builds(
    Figures,
    st.lists(
        st.builds(Server, names, answers=st.booleans(), error=names, memory=numbers, records_s=numbers), min_size=1
    ),
    st.lists(
        st.builds(Mixture, names, st.none(), numbers, numbers, numbers, numbers, numbers, counts, counts, counts,
                  parts, counts, numbers)
    ),
    st.lists(
        st.builds(Source, names, names, parts, parts, parts, st.booleans(), counts, numbers, numbers, numbers)
    ),
    st.lists(st.builds(Client, names, names, counts, counts, numbers, parts)),
    st.lists(st.builds(Count, names, names, counts, numbers)),
    st.lists(st.builds(Count, names, st.just(""), counts, numbers)),
)  # fmt: skip


@settings(max_examples=examples(300))
@given(all_figures, st.integers(1, 200), st.integers(1, 60))
def test_pictures_fit_into_the_terminal(figures, width, height):
    text = picture_of(Cell("mixserve top"), tables_of(figures), width, height).plain
    lines = text.split("\n")
    assert len(lines) <= height
    assert all(cell_len(line) <= width for line in lines)
    assert all(char.isprintable() or char == "\n" for char in text)


@settings(max_examples=examples(100))
@given(all_figures)
def test_without_a_size_everything_is_there(figures):
    text = picture_of(Cell("mixserve top"), tables_of(figures)).plain
    rows = sum(len(table.rows) for table in tables_of(figures))
    assert len(text.split("\n")) == 1 + rows + 2 * len(tables_of(figures))


known_names = [
    "mixserve_batch_seconds",
    "mixserve_build_info",
    "mixserve_client_records_total",
    "mixserve_client_wait_share",
    "mixserve_errors_total",
    "mixserve_limit_hits_total",
    "mixserve_mixture_serving",
    "mixserve_readers",
    "mixserve_records_total",
    "mixserve_replies_total",
    "mixserve_requested_records_total",
    "mixserve_serving",
    "mixserve_start_time_seconds",
    "mixserve_wait_share",
]
label_names = st.lists(
    st.sampled_from(["mixture", "source", "client", "worker", "error", "limit", "version", "x"]), max_size=4
)


@st.composite
def any_metrics(draw: st.DrawFn) -> Metric:
    labels, bounds = tuple(draw(label_names)), tuple(draw(st.lists(st.floats(0, 9), max_size=3)))
    kind = draw(st.sampled_from(MetricKind))
    counts = st.just(())
    if kind == MetricKind.HISTOGRAM:
        counts = st.tuples(*[st.integers(0, 2**60)] * (len(bounds) + 1))
    values = st.floats(-1e18, 1e18)  # others are left out before
    texts = st.tuples(*[st.sampled_from(["a", "b", "\x1b[2J", "\n"])] * len(labels))
    samples = draw(st.lists(st.builds(Sample, texts, values, counts), max_size=4))
    return Metric(draw(st.sampled_from(known_names)), "", kind, labels, tuple(samples), bounds)


@settings(max_examples=examples(400))
@given(st.lists(st.lists(any_metrics(), max_size=8), min_size=1, max_size=3), st.integers(1, 120), st.integers(1, 40))
def test_whatever_a_server_tells_is_shown(told, width, height):
    growth, readings = Growth(), []
    for at, metrics in enumerate(told):
        readings.append(growth.read({metric.name: metric for metric in metrics}, float(at)))
    figures = figures_of([server_of("one", reading) for reading in readings], readings)
    text = picture_of(Cell("mixserve top"), tables_of(figures), width, height).plain
    assert len(text.split("\n")) <= height
    assert all(char.isprintable() or char == "\n" for char in text)
