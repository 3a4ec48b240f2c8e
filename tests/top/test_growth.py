"""What grew between two readings: over restarts, workers that do not answer, and labels that are new."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.readings.growth import Growth
from mixserve_client.schema.stats import Metric, MetricKind, Sample, Stats, counter, gauge
from tests.profiles import examples

NAME, START = "mixserve_records_total", "mixserve_start_time_seconds"


def stats(values: dict[str, float], start: float | None = None) -> Stats:
    """A counter by source, and when the server began."""
    found = {NAME: counter(NAME, "", {(name,): value for name, value in values.items()}, ("source",))}
    return found if start is None else found | {START: gauge(START, "", {(): start})}


def of_workers(values: dict[str, float], starts: dict[str, float]) -> Stats:
    return {
        NAME: counter(NAME, "", {("a", worker): value for worker, value in values.items()}, ("source", "worker")),
        START: gauge(START, "", {(worker,): start for worker, start in starts.items()}, ("worker",)),
    }


def histogram(counts: tuple[int, ...], total: float) -> Stats:
    return {"h": Metric("h", "", MetricKind.HISTOGRAM, (), (Sample((), total, counts),), (1.0, 2.0))}


def test_nothing_grew_at_the_first_reading():
    first = Growth().read(stats({"a": 7}), at=100.0)
    assert first.grew[NAME].value() == 0
    assert first.rates == {}


def test_rates_are_per_second():
    growth = Growth()
    growth.read(stats({"a": 7, "b": 1}), at=100.0)
    reading = growth.read(stats({"a": 17, "b": 1}), at=104.0)
    assert reading.seconds == 4
    assert (reading.rates[NAME].value(source="a"), reading.rates[NAME].value(source="b")) == (2.5, 0)


def test_a_new_label_began_at_0():
    growth = Growth()
    growth.read(stats({"a": 7}), at=0.0)
    assert growth.read(stats({"a": 7, "b": 3}), at=1.0).grew[NAME].value(source="b") == 3


def test_a_server_that_started_again_began_at_0():
    growth = Growth()
    growth.read(stats({"a": 7}), at=0.0)
    assert growth.read(stats({"a": 5}), at=1.0).grew[NAME].value() == 5


def test_the_start_time_tells_a_restart_that_counters_hide():
    growth = Growth()
    growth.read(stats({"a": 7}, start=1.0), at=0.0)
    assert growth.read(stats({"a": 9}, start=2.0), at=1.0).grew[NAME].value() == 9


def test_a_worker_that_did_not_answer_once_has_not_begun_at_0():
    growth = Growth()
    growth.read(of_workers({"0": 100, "1": 200}, {"0": 1.0, "1": 1.0}), at=0.0)
    growth.read(of_workers({"0": 101}, {"0": 1.0}), at=1.0)
    back = growth.read(of_workers({"0": 103, "1": 206}, {"0": 1.0, "1": 1.0}), at=2.0)
    assert {one.labels[1]: one.value for one in back.grew[NAME].samples} == {"0": 2, "1": 6}


def test_one_worker_of_two_that_started_again():
    growth = Growth()
    growth.read(of_workers({"0": 100, "1": 200}, {"0": 1.0, "1": 1.0}), at=0.0)
    reading = growth.read(of_workers({"0": 110, "1": 300}, {"0": 1.0, "1": 9.0}), at=1.0)
    assert {one.labels[1]: one.value for one in reading.grew[NAME].samples} == {"0": 10, "1": 300}


def test_histograms_grow_by_bucket():
    growth = Growth()
    growth.read(histogram((1, 2, 0), 4.0), at=0.0)
    (sample,) = growth.read(histogram((1, 5, 1), 14.0), at=1.0).grew["h"].samples
    assert (sample.counts, sample.value) == ((0, 3, 1), 10.0)
    (sample,) = growth.read(histogram((0, 6, 1), 15.0), at=2.0).grew["h"].samples  # a bucket shrank: it began again
    assert (sample.counts, sample.value) == ((0, 6, 1), 15.0)


steps = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000)), st.booleans(), st.booleans()), max_size=12
)


@settings(max_examples=examples(200))
@given(steps)
def test_all_growth_together_is_what_was_counted(steps):
    """Of a server that starts again now and then; what it counted after the last reading before that is lost."""
    growth, counted, start = Growth(), dict[str, int](), 0.0
    growth.read(stats({}, start), at=0.0)
    got = 0.0
    for number, (added, restarts, is_read) in enumerate(steps, 1):
        if restarts:
            counted, start = {}, float(number)
        for name, count in added.items():
            counted[name] = counted.get(name, 0) + count
        if is_read:
            reading = growth.read(stats(dict(counted), start), at=float(number))
            assert all(sample.value >= 0 for sample in reading.grew[NAME].samples)
            got += reading.grew[NAME].value()
    assert got == _known(steps)


def _known(steps) -> int:
    """What readings can know: the last counts before each restart that were read, and the last of all."""
    total, counted, read = 0, 0, 0
    for added, restarts, is_read in steps:
        if restarts:
            total, counted, read = total + read, 0, 0
        counted += sum(added.values())
        read = counted if is_read else read
    return total + read
