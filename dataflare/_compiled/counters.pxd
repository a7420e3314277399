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

    # The caller knows that count and sum stay below 2**63, as a few centuries of nanoseconds do.
    cdef void c_record(self, int64_t value, int64_t count) noexcept nogil
    cdef int check_room(self, int64_t count, int64_t sum) except -1


cdef enum:
    CHUNKS = 16                          # of the window of outcomes
    SECONDS = 16                         # of the ring of rates; a power of two


cdef class PluginCounters:
    # Invariants: `records` is the sum of the five outcomes. The window's totals are the sums over
    # its chunks. rates[s % SECONDS] counts the records of second `rate_seconds[s % SECONDS]`.
    cdef readonly int64_t records, success, filtered, skipped, failed, dead_lettered
    cdef readonly int64_t retries, fallbacks
    cdef readonly int64_t bytes_in, bytes_out, batches, busy_ns
    cdef readonly Histogram latency
    cdef readonly Histogram batch_latency
    cdef readonly int64_t window_records, window_failed
    cdef int64_t chunk_size
    cdef int chunk
    cdef int64_t[CHUNKS] chunk_records
    cdef int64_t[CHUNKS] chunk_failed
    cdef int64_t[SECONDS] rates
    cdef int64_t[SECONDS] rate_seconds

    cdef void c_observe(
        self, int64_t records, int64_t success, int64_t filtered, int64_t skipped, int64_t failed,
        int64_t bytes_in, int64_t bytes_out, int64_t elapsed_ns, int64_t now_ns
    ) noexcept nogil
