# cython: language_level=3
from libc.string cimport memchr, memcpy

from dataflare cimport ERROR, Emitter, NativePlugin, Record, commit, fail, forward, reserve


cdef class Word(NativePlugin):
    """Extracts the n-th word of a line, counted from 0. Nothing is copied."""
    cdef Py_ssize_t number

    def __init__(self, Py_ssize_t number):
        if number < 0:
            raise ValueError("words are counted from 0")
        self.number = number

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef const char *start = record.value.data
        cdef const char *end = start + record.value.size
        cdef const char *space
        cdef Py_ssize_t i
        for i in range(self.number + 1):
            space = <const char *>memchr(start, c' ', end - start)
            if space == NULL:
                space = end
            if i == self.number:
                return forward(out, record, start - record.value.data, space - start)
            if space == end:
                return fail(out, 1, "the line has too few words")
            start = space + 1
        return ERROR


cdef class Prefix(NativePlugin):
    """Puts some bytes in front of every record."""
    cdef bytes prefix
    cdef const char *data
    cdef Py_ssize_t size

    def __init__(self, bytes prefix):
        self.prefix = prefix  # keeps `data` valid
        self.data = prefix
        self.size = len(prefix)

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, self.size + record.value.size)
        memcpy(target, self.data, self.size)
        memcpy(target + self.size, record.value.data, record.value.size)
        return commit(out, self.size + record.value.size)
