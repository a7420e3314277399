from libc.stdint cimport int64_t


cdef enum:
    LINEAR_BITS = 5                                        # 32 buckets per power of two
    BUCKETS = (64 - LINEAR_BITS) << LINEAR_BITS


cdef class Histogram:
    # Invariant: `count` is the sum of `buckets`; `sum`, `min` and `max` are of the same values.
    cdef readonly int64_t count
    cdef readonly int64_t sum
    cdef readonly int64_t min
    cdef readonly int64_t max
    cdef int64_t[BUCKETS] buckets

    cdef void c_record(self, int64_t value, int64_t count) noexcept nogil


cdef class PluginCounters:
    cdef readonly int64_t records, success, filtered, skipped, failed
    cdef readonly int64_t bytes_in, bytes_out, batches, busy_ns
    cdef readonly Histogram latency
    cdef readonly Histogram batch_latency

    cdef void c_observe(
        self, int64_t records, int64_t success, int64_t filtered, int64_t skipped, int64_t failed,
        int64_t bytes_in, int64_t bytes_out, int64_t elapsed_ns
    ) noexcept nogil
