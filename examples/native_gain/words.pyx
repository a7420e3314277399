# cython: language_level=3
from libc.string cimport memchr

from dataflare cimport Emitter, NativePlugin, Record, SKIP, forward


cdef class FirstWord(NativePlugin):
    """Keeps what stands before the first space."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef const char *data = record.value.data
        cdef const char *space = <const char *>memchr(data, c' ', record.value.size)
        return SKIP if space == NULL else forward(out, record, 0, space - data)
