from libc.stdint cimport int32_t

from dataflare._compiled.guard cimport Guard


cdef enum:
    CLASSES = 5        # TINY, SMALL, MEDIUM, LARGE, HUGE
    OVERSIZE = 5       # where requests larger than HUGE are counted
    METRICS = 1        # bits of `MemoryPool.flags`; DEBUG is the highest, and so compared
    DEBUG = 2


cdef enum Fence:
    # Where the forbidden page touches a loan.
    NO_FENCE
    FENCE_BEHIND
    FENCE_IN_FRONT


cdef struct Slab:
    # Memory on loan from a pool.  Owner: the pool, until `c_give` gets this very struct back.
    char *data
    Py_ssize_t capacity
    int32_t index      # which slab of its class, -1: malloc'ed for this loan alone
    int32_t kind       # size class, OVERSIZE: larger than HUGE


cdef struct Tally:
    Py_ssize_t hits
    Py_ssize_t misses
    Py_ssize_t returns
    Py_ssize_t requested
    Py_ssize_t handed_out
    Py_ssize_t peak


cdef struct SlabStack:
    # The free slabs of one class.  Invariants: free[0:top] are the indices of the free slabs, last
    # returned last; low <= top is the least `top` since the last clean-up, so the slabs in
    # free[0:low] have not been touched since then.
    char *base         # owner: SlabClass.memory
    int32_t *free      # owner: SlabClass.free_list
    unsigned char *poisoned  # by slab, in debug mode; owner: SlabClass.poisoned
    Py_ssize_t size
    Py_ssize_t stride  # from slab to slab: `size`, and in debug mode the guard behind it
    Py_ssize_t count
    Py_ssize_t top
    Py_ssize_t low


cdef class SlabClass:
    cdef unsigned char[::1] memory
    cdef int32_t[::1] free_list
    cdef double[::1] idle_since          # by position in the stack
    cdef unsigned char[::1] released     # by slab: its pages are with the operating system
    cdef unsigned char[::1] poisoned     # by slab: it is free and full of POISON
    cdef SlabStack stack

    cdef void restart_clocks(self, double now) noexcept
    cdef Py_ssize_t release_idle(self, double now, double max_idle_time) except -1
    cdef int populate(self) except -1
    cdef bint group_is_idle(self, int32_t[::1] idle, unsigned char[::1] held,
                            Py_ssize_t i, Py_ssize_t group) noexcept
    cdef Py_ssize_t give_back(self, Py_ssize_t first, Py_ssize_t end) except -1
    cdef int inspect(self, Guard guard) except -1


cdef class MemoryPool:
    cdef readonly object config
    cdef readonly bint closed
    cdef int flags
    cdef Py_ssize_t margin               # bytes behind an unpooled loan: 0, or debug mode's guard
    cdef Fence fence                     # set once, before the first loan
    cdef Guard guard                     # None without debug mode
    cdef tuple classes                   # of SlabClass
    cdef SlabStack *stacks[CLASSES]      # owner: classes
    cdef Tally tallies[CLASSES + 1]
    cdef Py_ssize_t in_use
    cdef Py_ssize_t peak
    cdef Py_ssize_t bytes_in_use
    cdef Py_ssize_t peak_bytes
    cdef object __weakref__

    cdef int c_take(self, Py_ssize_t size, Slab *slab) except -1
    cdef char *allocate(self, Py_ssize_t size) noexcept
    cdef void c_give(self, Slab *slab) noexcept
    cdef bint c_has(self, Py_ssize_t size) noexcept
    cdef void count_loan(self, Py_ssize_t size, const Slab *slab) noexcept
    cdef void give_plainly(self, Slab *slab) noexcept
    cdef int lend_guarded(self, Py_ssize_t size, Slab *slab) except -1
    cdef Py_ssize_t room_of(self, const Slab *slab) noexcept
    cdef str give_guarded(self, Slab *slab)
    cdef void give_reporting(self, Slab *slab) noexcept
    cdef int mark_batch(self, const Slab *slab, object purpose) except -1


cdef class Buffer:
    cdef MemoryPool pool
    cdef Slab slab
    cdef Py_ssize_t length
    cdef Py_ssize_t views                # exports of the buffer protocol that are alive
    cdef bint home                       # returned: `slab` is not ours any more

    cdef int give_back(self) except -1
    cdef int check_usable(self) except -1
