# cython: language_level=3
# Native plugins that are wrong, each in one way, and one that is right.
from libc.string cimport memcpy

from dataflare cimport (
    FILTERED, SKIP, Batch, Emitter, NativePlugin, Output, Record, commit, emit, pass_on, reserve
)

__all__ = [
    "CrashesAtNul", "Hangs", "KeepsOutput", "KeepsPointer", "LeavesRecordsOut", "Mutates",
    "ReadsBehind", "ReadsBehindKey", "ReadsBehindOutput", "ReadsInFront", "ReadsInFrontOfOutput",
    "Right", "TakesPlacesForValues", "UnknownStatus", "WritesBack", "WritesBehind", "WritesInFront",
    "WritesPastReserve"
]


cdef class Right(NativePlugin):
    """Puts every value in brackets."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size + 2)
        target[0] = c'['
        memcpy(target + 1, record.value.data, record.value.size)
        target[record.value.size + 1] = c']'
        return commit(out, record.value.size + 2)


cdef class ReadsBehind(NativePlugin):
    """Reads one byte past the end of the value."""
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        self.seen = record.value.data[record.value.size]
        return SKIP


cdef class ReadsBehindKey(NativePlugin):
    """Reads one byte past the end of the key."""
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if record.key.data != NULL:
            self.seen = record.key.data[record.key.size]
        return SKIP


cdef class ReadsInFront(NativePlugin):
    """Reads the byte before the value, of values that begin with an a."""
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if record.value.size and record.value.data[0] == c'a':
            self.seen = record.value.data[-1]
        return SKIP


cdef class WritesBehind(NativePlugin):
    """Ends the value as strings in C end."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        (<char *>record.value.data)[record.value.size] = 0
        return SKIP


cdef class WritesInFront(NativePlugin):
    """Writes before what it reserved, for values of more than two bytes."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size)
        if record.value.size > 2:
            target[-1] = c'!'
        memcpy(target, record.value.data, record.value.size)
        return commit(out, record.value.size)


cdef class WritesPastReserve(NativePlugin):
    """Writes one byte more than it reserved, of values of more than two bytes."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size)
        memcpy(target, record.value.data, record.value.size)
        if record.value.size > 2:
            target[record.value.size] = 0
        return commit(out, record.value.size)


cdef class ReadsBehindOutput(NativePlugin):
    """Reads one byte past what it reserved, of values of more than two bytes."""
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size)
        memcpy(target, record.value.data, record.value.size)
        if record.value.size > 2:
            self.seen = target[record.value.size]
        return commit(out, record.value.size)


cdef class ReadsInFrontOfOutput(NativePlugin):
    """Looks for the value before in front of what it reserved."""
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size)
        if record.value.size > 2:
            self.seen = target[-1]
        memcpy(target, record.value.data, record.value.size)
        return commit(out, record.value.size)


cdef class KeepsOutput(NativePlugin):
    """Looks at what it wrote in the call before."""
    cdef const char *before
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char *target = reserve(out, record.value.size)
        memcpy(target, record.value.data, record.value.size)
        if self.before != NULL:
            self.seen = self.before[0]
        if record.value.size > 2:
            self.before = target
        return commit(out, record.value.size)

    def cleanup(self):
        self.before = NULL


cdef class KeepsPointer(NativePlugin):
    """Looks at the record before."""
    cdef const char *before
    cdef char seen

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if self.before != NULL:
            self.seen = self.before[0]
        if record.value.size:
            self.before = record.value.data
        return SKIP

    def cleanup(self):
        self.before = NULL


cdef class TakesPlacesForValues(NativePlugin):
    """Drops what begins with a b; what lies where the last one lay, it takes for the same value.

    It never follows the pointer. The records of a batch lie in different places; but in a chain,
    what the member before makes of a record lies where it wrote the record that was dropped.
    """
    cdef const char *dropped
    cdef Py_ssize_t size

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if record.value.data == self.dropped and record.value.size == self.size:
            return FILTERED
        self.dropped = NULL
        if record.value.size and record.value.data[0] == c'b':
            self.dropped, self.size = record.value.data, record.value.size
            return FILTERED
        return SKIP

    def initialize(self, config):
        self.dropped = NULL


cdef class Mutates(NativePlugin):
    """Replaces each a where it is, through a cast."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef Py_ssize_t i
        cdef char *data = <char *>record.value.data
        for i in range(record.value.size):
            if data[i] == c'a':
                data[i] = c'b'
        return SKIP


cdef class WritesBack(NativePlugin):
    """Puts a mark in the place of each a for a while, and then the a again."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef Py_ssize_t i
        cdef volatile char *data = <volatile char *>record.value.data
        for i in range(record.value.size):
            if data[i] == c'a':
                data[i] = 0
                data[i] = c'a'
        return SKIP


cdef class CrashesAtNul(NativePlugin):
    """Follows no pointer at a NUL."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef Py_ssize_t i
        cdef char *nothing = NULL
        for i in range(record.value.size):
            if record.value.data[i] == 0:
                (<char *>(<size_t>nothing + <size_t>i))[0] = 1
        return SKIP


cdef class Hangs(NativePlugin):
    """Goes on for ever at an empty value."""

    cdef volatile int on

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        self.on = record.value.size == 0
        while self.on:
            pass
        return SKIP


cdef class UnknownStatus(NativePlugin):
    """Returns the size of the value, and means that it should go on."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return emit(out, record.value.data, record.value.size) if record.value.size < 9 else 42


cdef class LeavesRecordsOut(NativePlugin):
    """Does not decide the last record of a batch."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return SKIP

    cdef int c_process_batch(self, const Batch *batch, Output *out) except? -1 nogil:
        while out.position < batch.length - 1:
            pass_on(out, batch)
        return 0
