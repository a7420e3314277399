"""Counters that a loop writes without the GIL, and a histogram of latencies.

The histogram is log-linear: values below 64 have a bucket each, and from there on every power of
two is cut into 32 equal buckets, so a percentile is at most 1/32 above the true value. Recording is
a shift and an addition; two histograms are merged by adding their buckets. The layout is that of
HdrHistogram (G. Tene, https://hdrhistogram.org) with five bits of sub-bucket.
"""
cimport cython
from libc.math cimport ceil
from libc.stdint cimport INT64_MAX
from libc.string cimport memset

import time

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    static int df_bit_length(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }
    #else
    static int df_bit_length(uint64_t value) {
        int bits = 0;
        for (; value; value >>= 1) bits++;
        return bits;
    }
    #endif
    """
    int df_bit_length(unsigned long long value) noexcept nogil

cdef str TOO_MUCH = "the count and the sum of a histogram must fit into 64 bits"


cdef inline Py_ssize_t bucket_of(int64_t value) noexcept nogil:
    cdef int shift = df_bit_length(<unsigned long long>value) - LINEAR_BITS - 1
    if shift <= 0:
        return <Py_ssize_t>value
    return (shift << LINEAR_BITS) + <Py_ssize_t>(value >> shift)


cdef inline int64_t highest_of(Py_ssize_t bucket) noexcept nogil:
    """The largest value that falls into a bucket."""
    cdef int shift = <int>(bucket >> LINEAR_BITS) - 1
    if shift <= 0:
        return bucket
    cdef int64_t lowest = <int64_t>(bucket - (shift << LINEAR_BITS)) << shift
    return lowest + ((<int64_t>1 << shift) - 1)


@cython.final
cdef class Histogram:
    """Distribution of non-negative integers, as a rule nanoseconds.

    Notes
    -----
    A percentile is exact up to 63 and at most 1/32 too high above that.
    """

    def __cinit__(self):
        self.reset()

    def record(self, int64_t value, int64_t count=1):
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
        if value > 0 and count > INT64_MAX // value:
            raise OverflowError(TOO_MUCH)
        self.check_room(count, max(value, 0) * count)
        self.c_record(value, count)

    cdef int check_room(self, int64_t count, int64_t sum) except -1:
        if count > INT64_MAX - self.count or sum > INT64_MAX - self.sum:
            raise OverflowError(TOO_MUCH)
        return 0

    cdef void c_record(self, int64_t value, int64_t count) noexcept nogil:
        if count == 0:
            return
        if value < 0:
            value = 0
        self.buckets[bucket_of(value)] += count
        if self.count == 0 or value < self.min:
            self.min = value
        if value > self.max:
            self.max = value
        self.count += count
        self.sum += value * count

    def merge(self, Histogram other not None):
        """Add all that another histogram recorded.

        Parameters
        ----------
        other : Histogram

        Raises
        ------
        OverflowError
            The count or the sum of all values would not fit into 64 bits.
        """
        cdef Py_ssize_t i
        if other.count == 0:
            return
        self.check_room(other.count, other.sum)
        if self.count == 0 or other.min < self.min:
            self.min = other.min
        if other.max > self.max:
            self.max = other.max
        self.count += other.count
        self.sum += other.sum
        for i in range(BUCKETS):
            self.buckets[i] += other.buckets[i]

    def copy(self):
        """The same distribution, that does not change any more.

        Returns
        -------
        Histogram
        """
        cdef Histogram other = Histogram.__new__(Histogram)
        other.merge(self)
        return other

    def since(self, Histogram earlier not None):
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
        cdef Histogram rest = Histogram.__new__(Histogram)
        cdef Py_ssize_t i
        cdef bint first = True
        rest.count = self.count - earlier.count
        rest.sum = self.sum - earlier.sum
        for i in range(BUCKETS):
            rest.buckets[i] = self.buckets[i] - earlier.buckets[i]
            if rest.buckets[i]:
                rest.max = max(min(highest_of(i), self.max), self.min)
                if first:
                    rest.min = rest.max
                    first = False
        return rest

    def cumulative(self, bounds):
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
        cdef int64_t bound, seen = 0
        cdef Py_ssize_t i = 0
        counts = []
        for bound in bounds:
            while i < BUCKETS and i <= bucket_of(max(bound, 0)):
                seen += self.buckets[i]
                i += 1
            counts.append(seen)
        return counts

    def percentile(self, double percent):
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
            raise ValueError(f"a percentile lies between 0 and 100, not at {percent}")
        cdef int64_t wanted = max(<int64_t>ceil(self.count * (percent / 100)), 1)
        cdef int64_t seen = 0
        cdef Py_ssize_t i
        if self.count == 0:
            return 0.0
        for i in range(BUCKETS):
            seen += self.buckets[i]
            if seen >= wanted:
                return <double>max(min(highest_of(i), self.max), self.min)
        return <double>self.max

    def reset(self):
        """Forget everything."""
        self.count = self.sum = self.min = self.max = 0
        memset(self.buckets, 0, sizeof(self.buckets))


@cython.final
cdef class PluginCounters:
    """What one plugin did: records by outcome, bytes, time.

    Parameters
    ----------
    window : int
        Records in the sliding window of outcomes, `window_records` and `window_failed`. It slides
        in sixteenths of itself, and whole batches stay together, so it holds at least as many once
        they have come in.
    """

    def __cinit__(self, int64_t window=1024):
        if window < 1:
            raise ValueError(f"the window must have at least 1 record, not {window}")
        self.latency = Histogram()
        self.batch_latency = Histogram()
        self.chunk_size = (window + CHUNKS - 2) // (CHUNKS - 1)
        self.reset_window()

    def observe(self, int64_t records, int64_t success, int64_t filtered, int64_t skipped,
                int64_t failed, int64_t bytes_in, int64_t bytes_out, int64_t elapsed_ns):
        """Count one batch; its time is shared out evenly among its records."""
        self.c_observe(records, success, filtered, skipped, failed,
                       bytes_in, bytes_out, elapsed_ns, time.monotonic_ns())

    def count_recovery(self, int64_t retries=0, int64_t fallbacks=0, int64_t dead_lettered=0):
        """Count further attempts, records that a fallback processed, and dead letters.

        Dead letters are not among the records that were counted as failed: a count never falls.
        In the window, they count as failed, and so does what a fallback had to process.
        """
        self.retries += retries
        self.fallbacks += fallbacks
        self.window_failed += fallbacks + dead_lettered
        self.chunk_failed[self.chunk] += fallbacks + dead_lettered
        self.dead_lettered += dead_lettered

    def reset_window(self):
        """Begin a new window of outcomes."""
        self.chunk = 0
        self.window_records = self.window_failed = 0
        memset(self.chunk_records, 0, sizeof(self.chunk_records))
        memset(self.chunk_failed, 0, sizeof(self.chunk_failed))

    def recent_throughput(self, int seconds=10, now_ns=None):
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
        if not 1 <= seconds < SECONDS:
            raise ValueError(f"seconds must be between 1 and {SECONDS - 1}, not {seconds}")
        cdef int64_t now = (time.monotonic_ns() if now_ns is None else now_ns) // 1_000_000_000
        cdef int64_t total = 0, i
        for i in range(SECONDS):
            if now - seconds <= self.rate_seconds[i] < now:
                total += self.rates[i]
        return <double>total / seconds

    cdef void c_observe(
        self, int64_t records, int64_t success, int64_t filtered, int64_t skipped, int64_t failed,
        int64_t bytes_in, int64_t bytes_out, int64_t elapsed_ns, int64_t now_ns
    ) noexcept nogil:
        cdef int64_t second = now_ns // 1_000_000_000
        cdef Py_ssize_t slot = <Py_ssize_t>(second & (SECONDS - 1))
        cdef int chunk = self.chunk
        self.records += records
        self.success += success
        self.filtered += filtered
        self.skipped += skipped
        self.failed += failed
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.batches += 1
        self.busy_ns += elapsed_ns
        self.batch_latency.c_record(elapsed_ns, 1)
        if records:
            self.latency.c_record(elapsed_ns // records, records)
        if self.rate_seconds[slot] != second:
            self.rate_seconds[slot] = second
            self.rates[slot] = 0
        self.rates[slot] += records
        if self.chunk_records[chunk] >= self.chunk_size:  # full: the oldest one makes room
            chunk = self.chunk = (chunk + 1) % CHUNKS
            self.window_records -= self.chunk_records[chunk]
            self.window_failed -= self.chunk_failed[chunk]
            self.chunk_records[chunk] = self.chunk_failed[chunk] = 0
        self.chunk_records[chunk] += records
        self.chunk_failed[chunk] += failed
        self.window_records += records
        self.window_failed += failed
