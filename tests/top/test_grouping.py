"""Values of several servers and processes together, and quantiles from buckets."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.readings.grouping import group, group_counts, mean_by_weight, quantile
from mixserve_client.schema.histogram import SECONDS, Histogram
from mixserve_client.schema.stats import Metric, MetricKind, Sample, counter, gauge
from tests.profiles import examples


def test_servers_with_and_without_workers_add_up():
    alone = {"n": counter("n", "", {("a", "x"): 1, ("b", "x"): 2}, ("source", "mixture"))}
    several = {"n": counter("n", "", {("x", "a", "0"): 10, ("x", "a", "1"): 20}, ("mixture", "source", "worker"))}
    assert group([alone, several, {}], "n", ("mixture", "source")) == {("x", "a"): 31, ("x", "b"): 2}
    assert group([alone, several], "n") == {(): 33}
    assert group([alone, several], "n", ("worker",)) == {("0",): 10, ("1",): 20}
    assert group([alone, several], "n", (), max) == {(): 20}


def test_means_are_weighted_by_readers():
    one = {
        "w": gauge("w", "", {("x", "0"): 0.5, ("x", "1"): 0.1}, ("mixture", "worker")),
        "r": gauge("r", "", {("x", "me", "0"): 3, ("x", "me", "1"): 1}, ("mixture", "client", "worker")),
    }
    other = {"w": gauge("w", "", {("x",): 1.0}, ("mixture",))}
    assert mean_by_weight([one], "w", "r", ("mixture",)) == {("x",): (3 * 0.5 + 0.1) / 4}
    assert mean_by_weight([one, other], "w", "r", ("mixture",)) == {("x",): (3 * 0.5 + 0.1 + 1.0) / 5}


def test_histograms_with_other_bounds_are_left_out():
    def histogram(bounds: tuple[float, ...], counts: tuple[int, ...]):
        return {"h": Metric("h", "", MetricKind.HISTOGRAM, (), (Sample((), 1.0, counts),), bounds)}

    all_stats = [histogram((1.0,), (1, 2)), histogram((1.0,), (10, 20)), histogram((1.0, 2.0), (5, 5, 5))]
    assert group_counts(all_stats, "h", ()) == {(): ((1.0,), (11, 22))}


def test_quantiles_of_no_observations_and_of_the_last_bucket():
    assert quantile((1.0,), (0, 0), 0.5) is None
    assert quantile((), (), 0.5) is None
    assert quantile((1.0,), (0, 3), 0.5) == math.inf
    assert quantile((1.0,), (3, 1), 0.75) == 1.0


def test_quantiles_as_prometheus_documents_them():
    # Linear within a bucket, whose observations are taken to be spread evenly.
    assert quantile((1.0, 2.0), (10, 10, 0), 0.5) == 1.0
    assert quantile((1.0, 2.0), (10, 10, 0), 0.25) == 0.5
    assert quantile((1.0, 2.0), (10, 10, 0), 0.9) == 1.8
    assert quantile((1.0, 2.0), (0, 4, 0), 0.0) == 1.0


durations = st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=60)


@settings(max_examples=examples(200))
@given(durations, st.floats(0.0, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds, part):
    histogram = Histogram()
    histogram.add(seconds)
    found = quantile(SECONDS, histogram.sample(()).counts, part)
    true = float(np.quantile(seconds, part, method="inverted_cdf"))
    bounds = (0.0, *SECONDS, math.inf)
    at = int(np.searchsorted(SECONDS, true))
    if bounds[at + 1] == math.inf:
        assert found == math.inf
    else:
        assert found is not None
        assert bounds[at] <= found <= bounds[at + 1] * (1 + 1e-9)


@settings(max_examples=examples(200))
@given(durations, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quantiles_grow_with_their_part(seconds, one, other):
    histogram = Histogram()
    histogram.add(seconds)
    counts = histogram.sample(()).counts
    low, high = (quantile(SECONDS, counts, part) for part in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high
