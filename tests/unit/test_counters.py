"""Counters and the histogram: exact counts, percentiles within their bound."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

INT64 = (1 << 63) - 1
# Every magnitude alike, and the borders of the buckets; a hundred of them fit into a sum.
VALUES = st.one_of(
    st.integers(0, 100),
    st.integers(0, 56).flatmap(lambda bits: st.integers(0, 1 << bits)),
    st.builds(
        lambda bits, step: max((1 << bits) + step, 0), st.integers(0, 55), st.integers(-2, 2)
    ),
)
LISTS = st.lists(VALUES, min_size=1, max_size=60)
PERCENTS = st.one_of(st.integers(0, 100), st.floats(0, 100))


def recorded(backend, values):
    """A histogram of these values."""
    histogram = backend.Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def state_of(histogram):
    """Everything that can be read from a histogram."""
    return (
        histogram.count, histogram.sum, histogram.min, histogram.max,
        [histogram.percentile(percent) for percent in (0, 10, 50, 90, 99, 100)],
    )  # fmt: skip


@given(values=LISTS, percent=PERCENTS)
def test_a_percentile_is_at_most_a_thirty_second_too_high(backend, values, percent) -> None:
    """Never too low, never above the maximum; exact below 32."""
    rank = max(math.ceil(len(values) * (percent / 100)), 1)
    true = sorted(values)[rank - 1]
    found = recorded(backend, values).percentile(percent)
    assert type(found) is float
    assert float(true) <= found <= float(max(values))
    assert found <= float(true + true // 32)
    if true < 32:
        assert found == true


@given(values=LISTS)
def test_count_sum_and_extremes_are_exact(backend, values) -> None:
    """Whatever the buckets are."""
    histogram = recorded(backend, values)
    assert (histogram.count, histogram.min, histogram.max) == (
        len(values),
        min(values),
        max(values),
    )
    assert histogram.sum == sum(values)
    assert histogram.percentile(100) == float(max(values))


@given(parts=st.lists(st.lists(VALUES, max_size=20), max_size=5))
def test_merging_is_recording_all(backend, parts) -> None:
    """In any number of parts, empty ones too; the parts stay as they are."""
    merged = backend.Histogram()
    for part in parts:
        other = recorded(backend, part)
        before = state_of(other)
        merged.merge(other)
        assert state_of(other) == before
    assert state_of(merged) == state_of(recorded(backend, itertools.chain(*parts)))


@given(value=VALUES, count=st.integers(0, 50))
def test_recording_with_a_count_is_recording_that_often(backend, value, count) -> None:
    """Zero times is nothing at all."""
    histogram = backend.Histogram()
    histogram.record(value, count)
    assert state_of(histogram) == state_of(recorded(backend, [value] * count))


@given(values=LISTS)
def test_backends_count_the_same(backends, values) -> None:
    """Every figure of both histograms."""
    compiled, pure = (state_of(recorded(backend, values)) for backend in backends)
    assert compiled == pure


def test_an_empty_histogram_is_zero(backend) -> None:
    """Also after a reset."""
    histogram = recorded(backend, [5, 1 << 40])
    histogram.reset()
    for empty in (backend.Histogram(), histogram):
        assert (empty.count, empty.sum, empty.min, empty.max) == (0, 0, 0, 0)
        assert [empty.percentile(percent) for percent in (0, 50, 100)] == [0.0] * 3


def test_negative_values_count_as_zero(backend) -> None:
    """A clock that was set back spoils nothing."""
    histogram = recorded(backend, [-5, 10])
    assert (histogram.count, histogram.sum, histogram.min, histogram.max) == (2, 10, 0, 10)


def test_the_largest_value_has_a_bucket(backend) -> None:
    """All 63 bits."""
    histogram = recorded(backend, [INT64])
    assert (histogram.count, histogram.max) == (1, INT64)
    assert histogram.percentile(50) == float(INT64)


@pytest.mark.parametrize(
    ("before", "value", "count"),
    [([], INT64, 2), ([], 0, INT64 + 1), ([], INT64 + 1, 1), ([0], 0, INT64), ([2], INT64 - 1, 1)],
)
def test_what_does_not_fit_is_refused(backend, before, value, count) -> None:
    """Neither count nor sum wraps around, and nothing is recorded."""
    histogram = recorded(backend, before)
    state = state_of(histogram)
    with pytest.raises(OverflowError):
        histogram.record(value, count)
    assert state_of(histogram) == state


@pytest.mark.parametrize(("value", "count"), [(INT64, 1), (0, INT64)])
def test_merging_what_does_not_fit_is_refused(backend, value, count) -> None:
    """Neither histogram changes."""
    full, other = backend.Histogram(), recorded(backend, [1])
    full.record(value, count)
    states = state_of(full), state_of(other)
    for one, two in ((full, other), (other, full)):
        with pytest.raises(OverflowError, match="must fit into 64 bits"):
            one.merge(two)
    assert (state_of(full), state_of(other)) == states


def test_bad_arguments_are_refused(backend) -> None:
    """And nothing is recorded."""
    histogram = backend.Histogram()
    for percent in (-0.1, 100.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="between 0 and 100"):
            histogram.percentile(percent)
    with pytest.raises(ValueError, match="count cannot be negative"):
        histogram.record(1, -1)
    for wrong in ("1", None):
        with pytest.raises(TypeError):
            histogram.record(wrong)
    with pytest.raises((TypeError, AttributeError)):
        histogram.merge(None)
    assert histogram.count == 0


BATCHES = st.lists(
    st.tuples(
        st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
        st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**9),
    ),
    max_size=20,
)  # fmt: skip


@given(batches=BATCHES)
def test_counters_add_up(backend, batches) -> None:
    """Every sum is exact; a batch's time is shared out evenly among its records."""
    counters = backend.PluginCounters()
    shares = backend.Histogram()
    for success, filtered, skipped, failed, bytes_in, bytes_out, elapsed in batches:
        records = success + filtered + skipped + failed
        counters.observe(records, success, filtered, skipped, failed, bytes_in, bytes_out, elapsed)
        if records:
            shares.record(elapsed // records, records)
    sums = [sum(column) for column in zip(*batches, strict=True)] or [0] * 7
    assert [
        counters.success, counters.filtered, counters.skipped, counters.failed,
        counters.bytes_in, counters.bytes_out, counters.busy_ns,
    ] == sums  # fmt: skip
    assert counters.records == sum(sums[:4])
    assert counters.batches == len(batches)
    times = recorded(backend, [batch[-1] for batch in batches])
    assert state_of(counters.batch_latency) == state_of(times)
    assert state_of(counters.latency) == state_of(shares)


def test_dead_letters_are_counted_beside_failures(backend) -> None:
    """Neither count falls; in the window of outcomes both have failed."""
    counters = backend.PluginCounters()
    counters.observe(10, 5, 0, 0, 2, 0, 0, 0)
    counters.count_recovery(dead_lettered=3)
    assert (counters.records, counters.failed, counters.dead_lettered) == (10, 2, 3)
    assert (counters.window_records, counters.window_failed) == (10, 5)
