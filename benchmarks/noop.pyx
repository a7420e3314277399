# cython: boundscheck=False, wraparound=False
"""The least that a native plugin can do, as its author would write it."""
from dataflare cimport Emitter, NativePlugin, Record, SKIP


cdef class Noop(NativePlugin):
    """Lets every record go on unchanged."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return SKIP
