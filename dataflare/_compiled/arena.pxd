from dataflare._compiled.pool cimport MemoryPool, Slab


cdef class Arena:
    # Owns every block it lends; they live exactly as long as it does.
    cdef MemoryPool pool                 # None: plain allocations
    cdef Slab *loans                     # [count], allocated for `room`
    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef str purpose                     # what debug mode says the blocks are for, or None

    cdef char *allocate(self, Py_ssize_t size) except NULL
    cdef char *block(self, Py_ssize_t size, Py_ssize_t wish, Py_ssize_t *capacity) except NULL
    cdef bint guarded(self) noexcept
    cdef void drop_last(self) noexcept
    cdef int push(self, Py_ssize_t size) except -1
