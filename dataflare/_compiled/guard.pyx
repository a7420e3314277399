"""The debug side of a memory pool: guards behind every loan, poison in every returned slab.

Design
------
a. A loan's room is ``[size bytes | guard]``. In a slab the guard reaches to the end of its stride,
   which in debug mode is longer than the slab, so that a request of exactly 256 bytes has one too.
b. Memory is looked at and filled in plain C, with the GIL held: nothing comes in between. Python
   code runs only when the pool is whole again, because it may do anything, and may raise.
"""
cimport cython
from libc.string cimport memset


@cython.final
cdef class Guard:
    """What a pool asks in debug mode; see the head of the module."""

    def __cinit__(self, ledger):
        self.ledger = ledger
        self.out = ledger.out
        self.homes = ledger.homes

    cdef int lend(self, char *data, Py_ssize_t size, Py_ssize_t room, bint poisoned) except -1:
        """Get a room ready, and write down who takes it. After an error it is as good as lent."""
        cdef Py_ssize_t stale = first_other(data, room, POISON) if poisoned else -1
        memset(data, FRESH, <size_t>size)
        memset(data + size, CANARY, <size_t>(room - size))
        entry = self.ledger.entry(size)
        where = <size_t>data
        self.out[where] = entry
        if stale >= 0:
            self.ledger.stale(where, stale)
        self.ledger.lent(entry)
        self.ledger.flush()
        return 0

    cdef int mark_batch(self, const char *data, object purpose) except -1:
        """The loan there is memory of a batch."""
        self.ledger.mark_batch(<size_t>data, purpose)
        return 0

    cdef object take_back(self, char *data, Py_ssize_t room, bint pooled, Py_ssize_t *overrun):
        """Look at a room whose loan ends, and poison it; returns its entry. Runs no Python code."""
        where = <size_t>data
        entry = self.out.pop(where, None)
        cdef Py_ssize_t size
        overrun[0] = -1
        if entry is not None:
            size = entry.size
            overrun[0] = first_other(data + size, room - size, CANARY)
            if overrun[0] >= 0:
                overrun[0] += size
            if pooled:
                self.homes[where] = entry
        memset(data, POISON, <size_t>room)
        return entry

    cdef str settle(self, object entry, Py_ssize_t overrun):
        """The loan is home; returns the sentence about what was wrong with it, if anything."""
        return self.ledger.returned(entry, overrun)

    cdef int inspect(self, char *data, Py_ssize_t room) except -1:
        """Look at a poisoned room, and make it whole."""
        cdef Py_ssize_t stale = first_other(data, room, POISON)
        if stale >= 0:
            memset(data, POISON, <size_t>room)
            self.ledger.stale(<size_t>data, stale)
        return 0
