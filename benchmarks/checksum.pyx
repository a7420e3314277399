# cython: boundscheck=False, wraparound=False
"""A plugin that computes: the work that is worth sharing out among threads."""
from libc.stdint cimport uint64_t

from dataflare cimport FILTERED, SKIP, Emitter, NativePlugin, Record


cdef class Checksum(NativePlugin):
    """Keeps the records whose checksum is even: FNV-1a over the value, eight times."""
    thread_safe = True

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef uint64_t sum = 14695981039346656037u
        cdef Py_ssize_t i
        for _ in range(8):
            for i in range(record.value.size):
                sum = (sum ^ <unsigned char>record.value.data[i]) * 1099511628211u
        return FILTERED if sum & 1 else SKIP
