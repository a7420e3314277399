# Debug mode's look at memory: what a pool fills it with, and whether that is still there.
from libc.string cimport memcmp

cdef enum:
    POISON = 0xDD      # what a returned slab is full of
    CANARY = 0xFD      # what stands behind the bytes that were asked for
    FRESH = 0xCD       # what a loan is full of, until its borrower writes to it
    MARGIN = 64        # bytes behind a loan that has no slab


cdef inline Py_ssize_t first_other(const char *start, Py_ssize_t size, int byte) noexcept nogil:
    """Where the first byte that is not `byte` stands, or -1."""
    cdef const unsigned char *bytes = <const unsigned char *>start
    cdef Py_ssize_t i
    # Each byte equals the one before it: as fast as memory, which matters for slabs of 4 MiB.
    if size == 0 or (bytes[0] == byte and memcmp(start, start + 1, <size_t>(size - 1)) == 0):
        return -1
    for i in range(size):
        if bytes[i] != byte:
            return i
    return -1


cdef class Guard:
    # Invariant: `out` has every loan of the pool whose bytes are guarded, by its address.
    cdef readonly object ledger
    cdef dict out                        # the ledger's: address -> Entry
    cdef dict homes                      # the ledger's: address -> Entry

    cdef int lend(self, char *data, Py_ssize_t size, Py_ssize_t room, bint poisoned) except -1
    cdef int mark_batch(self, const char *data, object purpose) except -1
    cdef object take_back(self, char *data, Py_ssize_t room, bint pooled, Py_ssize_t *overrun)
    cdef str settle(self, object entry, Py_ssize_t overrun)
    cdef int inspect(self, char *data, Py_ssize_t room) except -1
