"""Counters, and a histogram of latencies.

The histogram is log-linear: values below 64 have a bucket each, and from there on every power of
two is cut into 32 equal buckets, so a percentile is at most 1/32 above the true value. Two
histograms are merged by adding their buckets. The layout is that of HdrHistogram (G. Tene,
https://hdrhistogram.org) with five bits of sub-bucket.
"""

import math

_LINEAR_BITS = 5
_BUCKETS = (64 - _LINEAR_BITS) << _LINEAR_BITS


def _bucket_of(value: int) -> int:
    shift = value.bit_length() - _LINEAR_BITS - 1
    return value if shift <= 0 else (shift << _LINEAR_BITS) + (value >> shift)


def _highest_of(bucket: int) -> int:
    """The largest value that falls into a bucket."""
    shift = (bucket >> _LINEAR_BITS) - 1
    if shift <= 0:
        return bucket
    lowest = (bucket - (shift << _LINEAR_BITS)) << shift
    return lowest + (1 << shift) - 1


class Histogram:
    """Distribution of non-negative integers, as a rule nanoseconds.

    Notes
    -----
    A percentile is exact up to 63 and at most 1/32 too high above that.
    """

    count: int
    sum: int
    min: int
    max: int
    _buckets: list[int]

    def __init__(self) -> None:
        self.reset()

    def record(self, value: int, count: int = 1) -> None:
        """Add a value.

        Parameters
        ----------
        value : int
            Negative values count as 0 (a clock that was set back).
        count : int
            How often to add it.
        """
        if count < 0:
            raise ValueError(f"count cannot be negative, it was {count}")
        if count == 0:
            return
        value = max(value, 0)
        self._buckets[_bucket_of(value)] += count
        self.min = value if self.count == 0 else min(self.min, value)
        self.max = max(self.max, value)
        self.count += count
        self.sum += value * count

    def merge(self, other: "Histogram") -> None:
        """Add all that another histogram recorded."""
        if other.count == 0:
            return
        self.min = other.min if self.count == 0 else min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.count += other.count
        self.sum += other.sum
        self._buckets = [a + b for a, b in zip(self._buckets, other._buckets, strict=True)]

    def percentile(self, percent: float) -> float:
        """The value that `percent` of all recorded values do not exceed.

        Parameters
        ----------
        percent : float
            From 0 to 100.

        Returns
        -------
        float
            0.0 when nothing was recorded.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile lies between 0 and 100, not at {float(percent)}")
        if self.count == 0:
            return 0.0
        wanted = max(math.ceil(self.count * (percent / 100)), 1)
        seen = 0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted:
                return float(max(min(_highest_of(bucket), self.max), self.min))
        return float(self.max)

    def reset(self) -> None:
        """Forget everything."""
        self.count = self.sum = self.min = self.max = 0
        self._buckets = [0] * _BUCKETS


class PluginCounters:
    """What one plugin did: records by outcome, bytes, time."""

    def __init__(self) -> None:
        self.records = self.success = self.filtered = self.skipped = self.failed = 0
        self.bytes_in = self.bytes_out = self.batches = self.busy_ns = 0
        self.latency = Histogram()
        self.batch_latency = Histogram()

    def observe(
        self,
        records: int,
        success: int,
        filtered: int,
        skipped: int,
        failed: int,
        bytes_in: int,
        bytes_out: int,
        elapsed_ns: int,
    ) -> None:
        """Count one batch; its time is shared out evenly among its records."""
        self.records += records
        self.success += success
        self.filtered += filtered
        self.skipped += skipped
        self.failed += failed
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.batches += 1
        self.busy_ns += elapsed_ns
        self.batch_latency.record(elapsed_ns)
        if records:
            self.latency.record(elapsed_ns // records, records)
