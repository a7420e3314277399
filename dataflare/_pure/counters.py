"""Counters, and a histogram of latencies.

The histogram is log-linear: values below 64 have a bucket each, and from there on every power of
two is cut into 32 equal buckets, so a percentile is at most 1/32 above the true value. Two
histograms are merged by adding their buckets. The layout is that of HdrHistogram (G. Tene,
https://hdrhistogram.org) with five bits of sub-bucket.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

_CHUNKS = 16
_SECONDS = 16
_LINEAR_BITS = 5
_BUCKETS = (64 - _LINEAR_BITS) << _LINEAR_BITS
_MOST = (1 << 63) - 1  # what the compiled backend can count
_TOO_MUCH = "the count and the sum of a histogram must fit into 64 bits"

_lock = threading.RLock()  # several threads may count for one plugin


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


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

        Raises
        ------
        ValueError
            `count` is negative.
        OverflowError
            The count or the sum of all values would not fit into 64 bits.
        """
        if count < 0:
            raise ValueError(f"count cannot be negative, it was {count}")
        value = max(value, 0)
        if value > _MOST:
            raise OverflowError(_TOO_MUCH)
        self._check_room(count, value * count)
        if count == 0:
            return
        self._buckets[_bucket_of(value)] += count
        self.min = value if self.count == 0 else min(self.min, value)
        self.max = max(self.max, value)
        self.count += count
        self.sum += value * count

    def _check_room(self, count: int, total: int) -> None:
        if count > _MOST - self.count or total > _MOST - self.sum:
            raise OverflowError(_TOO_MUCH)

    def merge(self, other: "Histogram") -> None:
        """Add all that another histogram recorded.

        Parameters
        ----------
        other : Histogram

        Raises
        ------
        OverflowError
            The count or the sum of all values would not fit into 64 bits.
        """
        if other.count == 0:
            return
        self._check_room(other.count, other.sum)
        self.min = other.min if self.count == 0 else min(self.min, other.min)
        self.max = max(self.max, other.max)
        self.count += other.count
        self.sum += other.sum
        self._buckets = [a + b for a, b in zip(self._buckets, other._buckets, strict=True)]

    def copy(self) -> "Histogram":
        """The same distribution, that does not change any more.

        Returns
        -------
        Histogram
        """
        other = Histogram()
        other.merge(self)
        return other

    def since(self, earlier: "Histogram") -> "Histogram":
        """What was recorded after a copy was taken.

        Parameters
        ----------
        earlier : Histogram
            A `copy` of this one.

        Returns
        -------
        Histogram
            Its extremes are those of its buckets, at most 1/32 too high.
        """
        rest = Histogram()
        rest.count = self.count - earlier.count
        rest.sum = self.sum - earlier.sum
        rest._buckets = [a - b for a, b in zip(self._buckets, earlier._buckets, strict=True)]
        used = [i for i, count in enumerate(rest._buckets) if count]
        if used:
            rest.min, rest.max = (
                max(min(_highest_of(bucket), self.max), self.min) for bucket in (used[0], used[-1])
            )
        return rest

    def cumulative(self, bounds: Sequence[int]) -> list[int]:
        """How many values were recorded up to each of some bounds.

        Parameters
        ----------
        bounds : sequence of int
            Ascending.

        Returns
        -------
        list of int
            A value counts under a bound that is less than 1/32 below it, too.
        """
        return [sum(self._buckets[: _bucket_of(max(bound, 0)) + 1]) for bound in bounds]

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

        Raises
        ------
        ValueError
            `percent` is not from 0 to 100.
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
    """What one plugin did: records by outcome, bytes, time.

    Parameters
    ----------
    window : int
        Records in the sliding window of outcomes, `window_records` and `window_failed`. It slides
        in sixteenths of itself, and whole batches stay together, so it holds at least as many once
        they have come in.
    """

    def __init__(self, window: int = 1024) -> None:
        if window < 1:
            raise ValueError(f"the window must have at least 1 record, not {window}")
        self.records = self.success = self.filtered = self.skipped = self.failed = 0
        self.dead_lettered = self.retries = self.fallbacks = 0
        self.bytes_in = self.bytes_out = self.batches = self.busy_ns = 0
        self.latency = Histogram()
        self.batch_latency = Histogram()
        self._chunk_size = (window + _CHUNKS - 2) // (_CHUNKS - 1)
        self._rates: dict[int, int] = {}
        self.reset_window()

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
        with _lock:
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
            self._count_second(time.monotonic_ns() // 1_000_000_000, records)
            if self._chunks[-1][0] >= self._chunk_size:
                self._chunks.append([0, 0])
            self._chunks[-1][0] += records
            self._chunks[-1][1] += failed

    def _count_second(self, second: int, records: int) -> None:
        if second not in self._rates:
            for old in [old for old in self._rates if old <= second - _SECONDS]:
                del self._rates[old]
            self._rates[second] = 0
        self._rates[second] += records

    def count_recovery(self, retries: int = 0, fallbacks: int = 0, dead_lettered: int = 0) -> None:
        """Count further attempts, records that a fallback processed, and dead letters.

        Dead letters are not among the records that were counted as failed: a count never falls.
        In the window, they count as failed, and so does what a fallback had to process.
        """
        with _lock:
            self.retries += retries
            self.fallbacks += fallbacks
            self._chunks[-1][1] += fallbacks + dead_lettered
            self.dead_lettered += dead_lettered

    @property
    def window_records(self) -> int:
        """int: Records in the window of outcomes."""
        with _lock:
            return sum(records for records, _ in self._chunks)

    @property
    def window_failed(self) -> int:
        """int: Those of them that failed."""
        with _lock:
            return sum(failed for _, failed in self._chunks)

    def reset_window(self) -> None:
        """Begin a new window of outcomes."""
        self._chunks = deque([[0, 0]], maxlen=_CHUNKS)

    def recent_throughput(self, seconds: int = 10, now_ns: int | None = None) -> float:
        """Records per second of wall time, over the last whole seconds.

        Parameters
        ----------
        seconds : int
            From 1 to 15.
        now_ns : int, optional
            What `time.monotonic_ns` says.

        Returns
        -------
        float
        """
        if not 1 <= seconds < _SECONDS:
            raise ValueError(f"seconds must be between 1 and {_SECONDS - 1}, not {seconds}")
        now = (time.monotonic_ns() if now_ns is None else now_ns) // 1_000_000_000
        return sum(self._rates.get(now - back, 0) for back in range(1, seconds + 1)) / seconds
