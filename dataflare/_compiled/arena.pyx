"""Memory that lives as long as a batch: blocks on loan from a pool, given back all at once."""
cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc

from dataflare._compiled.pool cimport DEBUG


@cython.final
@cython.no_gc  # it refers to a pool alone, and a pool refers to nothing that could refer back
cdef class Arena:
    """The owner of the columns and of the output bytes of a batch.

    Parameters
    ----------
    pool : MemoryPool, optional
        Where blocks come from; the system's allocator if not given.
    """

    def __cinit__(self, MemoryPool pool=None):
        self.pool = pool

    def __dealloc__(self):
        while self.count:
            self.drop_last()
        PyMem_RawFree(self.loans)

    cdef char *allocate(self, Py_ssize_t size) except NULL:
        """Exactly `size` bytes, aligned for any column. Needs the GIL, as all of this class."""
        self.push(size)
        return self.loans[self.count - 1].data

    cdef char *block(self, Py_ssize_t size, Py_ssize_t wish, Py_ssize_t *capacity) except NULL:
        """At least `size` bytes, if possible `wish`, and rather a smaller slab than a new page.

        Exactly `size` in debug mode, because what is behind them is watched.
        """
        cdef Py_ssize_t best = max(size, wish)
        if self.guarded():
            self.push(size)
            capacity[0] = size
            return self.loans[self.count - 1].data
        if self.pool is not None:
            while best > size and not self.pool.c_has(best):
                best = max(best // 16, size)
            if not self.pool.c_has(best):
                best = max(size, wish)
        self.push(best)
        capacity[0] = self.loans[self.count - 1].capacity
        return self.loans[self.count - 1].data

    cdef inline bint guarded(self) noexcept:
        """Whether the blocks come from a pool in debug mode."""
        return self.pool is not None and self.pool.flags >= DEBUG

    cdef void drop_last(self) noexcept:
        """Give the newest block back; nobody points into it any more."""
        self.count -= 1
        if self.pool is not None:
            self.pool.c_give(&self.loans[self.count])
        else:
            PyMem_RawFree(self.loans[self.count].data)

    cdef int push(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t room
        cdef void *grown
        cdef Slab *loan
        if self.count == self.room:
            room = max(self.room * 2, 4)
            grown = PyMem_RawRealloc(self.loans, room * sizeof(Slab))
            if grown is NULL:
                raise MemoryError("no memory for the blocks of a batch")
            self.loans = <Slab *>grown
            self.room = room
        loan = &self.loans[self.count]
        if self.pool is not None:
            self.pool.c_take(size, loan)
        else:
            loan.data = <char *>PyMem_RawMalloc(size)
            if loan.data is NULL:
                raise MemoryError(f"no memory for a block of {size} bytes")
            loan.capacity = size
        self.count += 1
        if self.guarded():
            self.pool.mark_batch(loan, self.purpose)
        return 0
