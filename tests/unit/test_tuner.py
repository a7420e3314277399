"""The size of the next batch, as a function of the last one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.config import BatchConfig

SLOW, FAST = 0.1, 0.01
THIN, FULL = 1999.0, 2000.0


@pytest.mark.parametrize(
    ("size", "latency", "throughput", "expected"),
    [
        (100, SLOW, FULL, 80),
        (100, SLOW, THIN, 80),
        (100, FAST, THIN, 120),
        (100, FAST, FULL, 100),
        (100, 0.05, FULL, 100),
        (12, SLOW, FULL, 10),
        (11, SLOW, FULL, 10),
        (10, SLOW, FULL, 10),
        (10, SLOW, THIN, 12),
        (5, SLOW, FULL, 5),
        (1, FAST, THIN, 2),
        (4, FAST, THIN, 5),
        (900, FAST, THIN, 1000),
        (1000, FAST, THIN, 1000),
        (5000, FAST, FULL, 1000),
    ],
)
def test_the_rule_of_the_guide(backend, size, latency, throughput, expected) -> None:
    """A fifth less when too slow and more than ten; else a fifth more when too thin."""
    plugin = backend.BatchPlugin()
    assert plugin.optimize_batch_size(size, latency, throughput) == expected


@given(
    size=st.integers(1, 10_000),
    latency=st.floats(0, 1e9),
    throughput=st.floats(0, 1e12),
    most=st.integers(1, 2000),
)
def test_the_next_size_is_always_in_bounds(backend, size, latency, throughput, most) -> None:
    """At least 1, at most the maximum, whatever was measured."""
    config = BatchConfig(default_batch_size=1, max_batch_size=most)
    found = backend.BatchPlugin(config).optimize_batch_size(size, latency, throughput)
    assert type(found) is int
    assert 1 <= found <= most
