"""The memory pool: five classes of preallocated slabs, handed out last in, first out.

Design
------
a. **One mapping per class.** The slabs of a class are one private anonymous mapping, seen through a
   typed memoryview. Its pages can be given back to the operating system one slab at a time.
b. **The GIL is the lock.** Taking and giving are a few instructions on plain counters. Code that
   runs without the GIL takes it once for a block of many records, never for a record.
c. **Wrappers are recycled, never shared.** A `Buffer` is a small object from Cython's free list. It
   is not handed out again while somebody still holds it, so a stale reference cannot reach
   memory that belongs to someone else: it finds a buffer that says it was returned.
d. **No clock on the hot path.** Each class notes the least number of free slabs since the last
   clean-up; the slabs below that mark were not touched, because the stack works at its top.
e. **Debug mode costs the others one branch.** In it a slab is followed by a guard, and `guard`
   looks at every loan that is taken or comes back. All counts are of slabs without their guards.
f. **A fence is for those who test plugins.** Every loan has pages of its own then, between two that
   the processor refuses to touch: a read outside of the loan does not go unseen either.
"""
cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.number cimport PyNumber_Index
from libc.string cimport memset

from dataflare._compiled.guard cimport MARGIN, POISON, Guard

import mmap
import time
from array import array

from dataflare import _idle
from dataflare._ledger import open_ledger
from dataflare.config import MemoryPoolConfig, seconds
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize, ClassStats, PoolStats
from dataflare.units import counted

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE      /* Linux 5.14; older headers do not name it */
    #define MADV_POPULATE_WRITE 23
    #endif
    static int df_give_pages_back(char *start, size_t size) {
        return madvise(start, size, MADV_DONTNEED);
    }
    static int df_populate(char *start, size_t size) {
    #ifdef __linux__
        return madvise(start, size, MADV_POPULATE_WRITE);
    #else
        (void)start; (void)size;
        return -1;
    #endif
    }
    /* `size` bytes at the end or at the beginning of pages with a forbidden one on either side. */
    static size_t df_fenced_pages(size_t size, size_t page) {
        return (size / page + 1) * page;
    }
    static char *df_fenced_new(size_t size, size_t page, int at_end) {
        size_t room = df_fenced_pages(size, page);
        char *start = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED) {
            return NULL;
        }
        if (mprotect(start + page, room, PROT_READ | PROT_WRITE) != 0) {
            munmap(start, room + 2 * page);
            return NULL;
        }
        return start + page + (at_end ? room - size : 0);
    }
    /* The pages go back to the system, but their addresses stay forbidden for good: a loan at the
       same place would hide who still looks at this one. */
    static void df_fenced_free(char *data, size_t size, size_t page, int at_end) {
        size_t room = df_fenced_pages(size, page);
        mmap(data - (at_end ? room - size : 0), room, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    """
    int df_give_pages_back(char *start, size_t size) nogil
    int df_populate(char *start, size_t size) nogil
    char *df_fenced_new(size_t size, size_t page, bint at_end) nogil
    void df_fenced_free(char *data, size_t size, size_t page, bint at_end) nogil

cdef Py_ssize_t[CLASSES] SIZES = [256, 4096, 65536, 1 << 20, 4 << 20]
cdef Py_ssize_t PAGE = mmap.PAGESIZE
cdef Py_ssize_t BYTE_STRIDE = 1
cdef char *BYTE_FORMAT = b"B"


cdef inline int kind_of(Py_ssize_t size) noexcept nogil:
    """The smallest class that holds `size` bytes, or OVERSIZE."""
    if size <= 256:
        return 0
    if size <= 4096:
        return 1
    if size <= 65536:
        return 2
    if size <= 1 << 20:
        return 3
    if size <= 4 << 20:
        return 4
    return OVERSIZE


@cython.final
cdef class SlabClass:
    """The slabs of one size, their free list and what is needed to see which ones are idle."""

    def __cinit__(self, Py_ssize_t size, Py_ssize_t count, bint guarded):
        cdef Py_ssize_t i, slots = max(count, 1)  # a typed memoryview cannot be empty
        # With its guard too a slab begins at a page, or so many of them fill one.
        cdef Py_ssize_t stride = size + min(size, PAGE) if guarded else size
        self.memory = mmap.mmap(
            -1, max(stride * count, PAGE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        self.free_list = array("i", bytes(4 * slots))
        self.idle_since = array("d", bytes(8 * slots))
        self.released = bytearray(b"\1" * slots)
        self.poisoned = bytearray(slots)
        for i in range(count):
            self.free_list[i] = <int32_t>(count - 1 - i)
        self.stack.base = <char *>&self.memory[0]
        self.stack.free = &self.free_list[0]
        self.stack.poisoned = &self.poisoned[0]
        self.stack.size = size
        self.stack.stride = stride
        self.stack.count = count
        self.stack.top = self.stack.low = count

    cdef void restart_clocks(self, double now) noexcept:
        """Note what was touched since the last call: it is idle from now on, at the earliest."""
        cdef Py_ssize_t i
        for i in range(self.stack.low, self.stack.top):
            self.idle_since[i] = now
            self.released[self.stack.free[i]] = 0
        self.stack.low = self.stack.top

    cdef Py_ssize_t release_idle(self, double now, double max_idle_time) except -1:
        """Give back the pages on which every slab is free and idle for `max_idle_time`."""
        cdef SlabStack *stack = &self.stack
        # Slabs smaller than a page go in groups that share one.
        cdef Py_ssize_t group = max(PAGE // stack.size, 1)
        cdef Py_ssize_t groups = (stack.count + group - 1) // group
        cdef Py_ssize_t i, start, freed = 0
        if stack.count == 0:
            return 0
        cdef int32_t[::1] idle = array("i", bytes(4 * groups))
        cdef unsigned char[::1] held = bytearray(groups)
        self.restart_clocks(now)
        for i in range(stack.top):
            if now - self.idle_since[i] >= max_idle_time:
                idle[stack.free[i] // group] += 1
                if not self.released[stack.free[i]]:
                    held[stack.free[i] // group] = 1
        i = 0
        while i < groups:
            if not self.group_is_idle(idle, held, i, group):
                i += 1
                continue
            start = i
            while i < groups and self.group_is_idle(idle, held, i, group):
                i += 1
            freed += self.give_back(start * group, min(i * group, stack.count))
        return freed

    cdef bint group_is_idle(self, int32_t[::1] idle, unsigned char[::1] held,
                            Py_ssize_t i, Py_ssize_t group) noexcept:
        return held[i] and idle[i] == min(group, self.stack.count - i * group)

    cdef Py_ssize_t give_back(self, Py_ssize_t first, Py_ssize_t end) except -1:
        cdef char *start = self.stack.base + first * self.stack.stride
        if df_give_pages_back(start, <size_t>((end - first) * self.stack.stride)) != 0:
            return 0
        self.released[first:end] = 1
        self.poisoned[first:end] = 0
        return (end - first) * self.stack.size

    cdef int populate(self) except -1:
        """Make every slab resident, without changing a byte of those in use."""
        cdef char *start = self.stack.base
        cdef size_t size = <size_t>(self.stack.count * self.stack.stride)
        cdef Py_ssize_t i, at, index
        cdef int failed
        if size == 0:
            return 0
        with nogil:
            failed = df_populate(start, size)
        if failed:  # an older kernel: write to the free slabs, whose bytes nobody needs
            for i in range(self.stack.top):
                index = self.stack.free[i]
                for at in range(0, self.stack.stride, min(PAGE, self.stack.stride)):
                    start[index * self.stack.stride + at] = POISON if self.poisoned[index] else 0
        self.stack.low = 0
        self.restart_clocks(time.monotonic())
        return 0

    cdef int inspect(self, Guard guard) except -1:
        """Look at the free slabs that are poisoned."""
        cdef Py_ssize_t i, index
        for i in range(self.stack.top):
            index = self.stack.free[i]
            if self.poisoned[index]:
                guard.inspect(self.stack.base + index * self.stack.stride, self.stack.stride)
        return 0


@cython.final
cdef class MemoryPool:
    """Warm buffers in five size classes.

    A request takes a slab of the smallest class that holds it. A request larger than 4 MiB, or made
    while every slab of its class is out, is served by an exact allocation of its own and counted as
    a miss. The bytes of a buffer are what its last user left there, in debug mode 0xCD.

    Parameters
    ----------
    config : MemoryPoolConfig, optional
        How many slabs each class has, and when idle ones give their memory back.
    debug : bool, default False
        Find what is written past the end of a buffer or after its return, and buffers that are
        not returned. Each is named with the place where the buffer was taken. Slow.

    Notes
    -----
    Safe to use from several threads. Creating a pool reserves address space only; memory becomes
    resident when a slab is first used, or at once by `warmup`.
    """

    def __cinit__(self, config=None, *, debug=False):
        if config is None:
            config = MemoryPoolConfig()
        elif not isinstance(config, MemoryPoolConfig):
            raise TypeError(
                f"config must be a MemoryPoolConfig, not {type(config).__name__}"
            )
        cdef int kind
        cdef SlabClass slabs
        counts = (
            config.max_tiny_buffers, config.max_small_buffers, config.max_medium_buffers,
            config.max_large_buffers, config.max_huge_buffers,
        )
        self.config = config
        self.flags = METRICS if config.enable_metrics else 0
        ledger = open_ledger(debug)
        if ledger is not None:
            self.flags |= DEBUG
            self.guard = Guard(ledger)
            self.margin = MARGIN
        self.classes = tuple([SlabClass(SIZES[i], counts[i], debug) for i in range(CLASSES)])
        for kind in range(CLASSES):
            slabs = self.classes[kind]
            self.stacks[kind] = &slabs.stack
        memset(self.tallies, 0, sizeof(self.tallies))

    def __init__(self, config=None, *, debug=False):
        _idle.watch(self, self.config.cleanup_interval)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else f"{self.in_use} in use"
        reserved = sum([stack.size * stack.count for stack in self.stacks[:CLASSES]])
        return f"MemoryPool({state}, {reserved} bytes reserved)"

    cdef int c_take(self, Py_ssize_t size, Slab *slab) except -1:
        """Lend `size` bytes; the caller owes `c_give` the same struct. Needs the GIL.

        From a closed pool too, but no slab: a plugin may close its manager, and its call goes on.
        """
        cdef int kind = kind_of(size)
        cdef SlabStack *stack
        slab.kind = kind
        if kind < OVERSIZE and self.stacks[kind].top > 0 and not self.closed:
            stack = self.stacks[kind]
            stack.top -= 1
            if stack.top < stack.low:
                stack.low = stack.top
            slab.index = stack.free[stack.top]
            slab.capacity = stack.size
            slab.data = stack.base + slab.index * stack.stride
        else:
            slab.data = self.allocate(size)
            if slab.data is NULL:
                raise MemoryError(f"no memory for a buffer of {size} bytes")
            slab.index = -1
            slab.capacity = size
        self.in_use += 1
        if self.flags == METRICS:
            self.count_loan(size, slab)
        elif self.flags:
            self.lend_guarded(size, slab)
        return 0

    cdef char *allocate(self, Py_ssize_t size) noexcept:
        """Memory for one loan alone, or NULL."""
        if self.fence != NO_FENCE:
            return df_fenced_new(<size_t>size, PAGE, self.fence == FENCE_BEHIND)
        return <char *>PyMem_RawMalloc(<size_t>size + self.margin)

    cdef inline void count_loan(self, Py_ssize_t size, const Slab *slab) noexcept:
        cdef Tally *tally = &self.tallies[slab.kind]
        if slab.index >= 0:
            tally.hits += 1
        else:
            tally.misses += 1
        tally.requested += size
        tally.handed_out += slab.capacity
        if tally.hits + tally.misses - tally.returns > tally.peak:
            tally.peak = tally.hits + tally.misses - tally.returns
        if self.in_use > self.peak:
            self.peak = self.in_use
        self.bytes_in_use += slab.capacity
        if self.bytes_in_use > self.peak_bytes:
            self.peak_bytes = self.bytes_in_use

    cdef void c_give(self, Slab *slab) noexcept:
        """Take a loan back. Needs the GIL."""
        if self.flags >= DEBUG:
            self.give_reporting(slab)
        else:
            self.give_plainly(slab)

    cdef inline void give_plainly(self, Slab *slab) noexcept:
        cdef SlabStack *stack
        if slab.index >= 0:
            stack = self.stacks[slab.kind]
            stack.free[stack.top] = slab.index
            stack.top += 1
        elif self.fence != NO_FENCE:
            df_fenced_free(slab.data, slab.capacity, PAGE, self.fence == FENCE_BEHIND)
        else:
            PyMem_RawFree(slab.data)
        slab.data = NULL
        self.in_use -= 1
        if self.flags & METRICS:
            self.tallies[slab.kind].returns += 1
            self.bytes_in_use -= slab.capacity

    cdef int lend_guarded(self, Py_ssize_t size, Slab *slab) except -1:
        """The rest of `c_take` in debug mode."""
        cdef SlabStack *stack
        cdef bint poisoned = False
        if self.flags & METRICS:
            self.count_loan(size, slab)
        if slab.index >= 0:
            stack = self.stacks[slab.kind]
            poisoned = stack.poisoned[slab.index]
            stack.poisoned[slab.index] = 0
        try:
            self.guard.lend(slab.data, size, self.room_of(slab), poisoned)
        except BaseException:  # nobody is going to have the loan
            self.give_reporting(slab)
            raise
        return 0

    cdef inline Py_ssize_t room_of(self, const Slab *slab) noexcept:
        """Bytes of a loan together with its guard, in debug mode."""
        if slab.index >= 0:
            return self.stacks[slab.kind].stride
        return slab.capacity + self.margin

    cdef str give_guarded(self, Slab *slab):
        """`c_give` in debug mode; returns what is wrong with the loan, which is home by then."""
        cdef Py_ssize_t overrun
        cdef bint pooled = slab.index >= 0
        entry = self.guard.take_back(slab.data, self.room_of(slab), pooled, &overrun)
        if pooled:
            self.stacks[slab.kind].poisoned[slab.index] = 1
        self.give_plainly(slab)
        return self.guard.settle(entry, overrun)

    cdef void give_reporting(self, Slab *slab) noexcept:
        """`give_guarded` where nobody can be told by an exception."""
        sentence = self.give_guarded(slab)
        if sentence is not None:
            self.guard.ledger.complain(sentence)
        self.guard.ledger.flush()

    cdef int mark_batch(self, const Slab *slab, object purpose) except -1:
        """In debug mode: the loan is memory of a batch, and no user's buffer."""
        return self.guard.mark_batch(slab.data, purpose)

    cdef bint c_has(self, Py_ssize_t size) noexcept:
        """Whether a slab is free in the class of `size`."""
        cdef int kind = kind_of(size)
        return kind < OVERSIZE and self.stacks[kind].top > 0 and not self.closed

    def get_buffer(self, size, /):
        """Borrow a writable buffer.

        Parameters
        ----------
        size : int
            Bytes wanted; ``len()`` of the buffer is exactly this.

        Returns
        -------
        Buffer

        Raises
        ------
        TypeError
            `size` is not an integer.
        ValueError
            `size` is negative.
        PluginMemoryError
            The pool is closed.
        MemoryError
            The system has no memory for a request that no slab could serve.
        """
        cdef Py_ssize_t length
        try:
            length = size if type(size) is int else PyNumber_Index(size)
        except OverflowError:
            if size > 0:
                raise MemoryError(f"no memory for a buffer of {size} bytes") from None
            length = -1
        if length < 0:
            raise ValueError(f"the size of a buffer cannot be negative, it was {size}")
        if self.closed:
            raise PluginMemoryError("the memory pool is closed")
        cdef Buffer buffer = Buffer.__new__(Buffer)
        self.c_take(length, &buffer.slab)
        buffer.pool = self
        buffer.length = length
        buffer.home = False
        return buffer

    def return_buffer(self, Buffer buffer not None, /):
        """Give a buffer back.

        Parameters
        ----------
        buffer : Buffer
            One that `get_buffer` of this pool handed out.

        Raises
        ------
        PluginMemoryError
            It was returned before, comes from another pool, or a view of it is still alive. The
            buffer and both pools stay as they were. Or, in debug mode, somebody wrote past its
            end; it is returned then.
        """
        if buffer.pool is not self and buffer.pool is not None:
            raise PluginMemoryError("the buffer belongs to another memory pool")
        buffer.give_back()

    def _fence_loans(self, behind):
        """Let a forbidden page begin right behind every loan, or end right in front of it.

        For `dataflare.testing`. The pool is new, in debug mode, and has no slabs. A fence takes the
        place of the guard, which would lie on it.
        """
        assert self.flags >= DEBUG and not self.in_use and not any(
            [stack.count for stack in self.stacks[:CLASSES]]
        )
        self.fence = FENCE_BEHIND if behind else FENCE_IN_FRONT
        self.margin = 0

    def warmup(self):
        """Make every slab resident, so that its first use faults no page.

        Raises
        ------
        PluginMemoryError
            The pool is closed.
        """
        cdef SlabClass slabs
        if self.closed:
            raise PluginMemoryError("the memory pool is closed")
        for slabs in self.classes:
            slabs.populate()
        if self.flags >= DEBUG:
            self.guard.ledger.step("warmed all slabs up")
            self.guard.ledger.flush()

    def trim(self, max_idle_time=None):
        """Give the pages of idle slabs back to the operating system.

        This runs by itself every ``config.cleanup_interval`` seconds. A slab's idle time is counted
        from the first call after its last use.

        Parameters
        ----------
        max_idle_time : float or timedelta, optional
            Seconds a slab must have been idle; ``config.max_idle_time`` if not given, 0 for all
            that are free.

        Returns
        -------
        int
            Bytes given back.

        Raises
        ------
        TypeError, ValueError
            `max_idle_time` is no duration.
        """
        cdef double limit = (
            self.config.max_idle_time if max_idle_time is None
            else seconds("max_idle_time", max_idle_time)
        )
        cdef double now = time.monotonic()
        cdef SlabClass slabs
        cdef Py_ssize_t freed = 0
        for slabs in self.classes:
            if self.flags >= DEBUG:  # before the traces are gone
                slabs.inspect(self.guard)
            freed += slabs.release_idle(now, limit)
        if self.flags >= DEBUG:
            self.guard.ledger.step("gave %d bytes of idle slabs back to the system", freed)
            self.guard.ledger.flush()
        return freed

    def get_stats(self):
        """Exact counts since the pool was made.

        Returns
        -------
        PoolStats or None
            None when ``config.enable_metrics`` is False.
        """
        cdef Tally *tally
        cdef Py_ssize_t hits = 0, misses = 0, returns = 0, requested = 0, handed_out = 0
        cdef Py_ssize_t cached = 0, reserved = 0
        cdef int kind
        if not self.flags & METRICS:
            return None
        classes = {}
        for kind in range(CLASSES + 1):
            tally = &self.tallies[kind]
            hits += tally.hits
            misses += tally.misses
            returns += tally.returns
            requested += tally.requested
            handed_out += tally.handed_out
            if kind == OVERSIZE:
                continue
            cached += self.stacks[kind].top
            reserved += self.stacks[kind].size * self.stacks[kind].count
            classes[BufferSize(SIZES[kind])] = ClassStats(
                capacity=self.stacks[kind].count,
                allocations=tally.hits + tally.misses,
                returns=tally.returns,
                hits=tally.hits,
                misses=tally.misses,
                in_use=tally.hits + tally.misses - tally.returns,
                cached=self.stacks[kind].top,
                peak_in_use=tally.peak,
                bytes_requested=tally.requested,
            )
        return PoolStats(
            allocations=hits + misses,
            returns=returns,
            hits=hits,
            misses=misses,
            in_use=self.in_use,
            cached=cached,
            peak_in_use=self.peak,
            bytes_requested=requested,
            bytes_allocated=handed_out,
            bytes_in_use=self.bytes_in_use,
            peak_bytes_in_use=self.peak_bytes,
            bytes_reserved=reserved,
            cache_hit_rate=<double>hits / (hits + misses) if hits + misses else 0.0,
            memory_efficiency=<double>requested / handed_out if handed_out else 0.0,
            classes=classes,
        )

    def close(self):
        """Refuse new requests and give all idle memory back.

        Buffers that are out stay valid until they are returned or dropped; in debug mode the log
        names each. Closing twice is fine.
        """
        cdef bint first = not self.closed
        self.closed = True
        self.trim(0)
        if first and self.flags >= DEBUG:
            self.guard.ledger.closed()
            self.guard.ledger.flush()

    @property
    def debug(self):
        """bool: Whether the pool is in debug mode."""
        return self.flags >= DEBUG

    @property
    def violations(self):
        """tuple of str: What debug mode found wrong, the latest thousand; empty without it."""
        return self.guard.ledger.violations if self.flags >= DEBUG else ()

    def outstanding(self):
        """What is out, in debug mode.

        Returns
        -------
        list of Loan, or None
            The oldest first; None without debug mode.
        """
        return self.guard.ledger.loans() if self.flags >= DEBUG else None


@cython.final
@cython.freelist(64)
@cython.no_gc  # it refers to its pool alone, and a pool refers to no buffer
cdef class Buffer:
    """Memory on loan from a `MemoryPool`.

    Speaks the writable buffer protocol: ``memoryview(buffer)``, ``numpy.frombuffer(buffer)`` and
    ``file.readinto(buffer)`` work on it. Use it as a context manager, give it to
    `MemoryPool.return_buffer`, or drop it: each returns it.
    """

    def __cinit__(self):
        self.home = True

    def __init__(self):
        raise TypeError("buffers come from MemoryPool.get_buffer")

    def __dealloc__(self):
        if not self.home:
            self.pool.c_give(&self.slab)

    def __len__(self):
        return self.length

    def __enter__(self):
        self.check_usable()
        return self

    def __exit__(self, *exc_info):
        if not self.home:
            self.give_back()

    def __repr__(self):
        if self.home:
            return f"Buffer({counted(self.length, 'byte')}, returned)"
        kind = "unpooled" if self.slab.index < 0 else BufferSize(self.slab.capacity).name
        return f"Buffer({counted(self.length, 'byte')}, {kind})"

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.check_usable()
        view.buf = self.slab.data
        view.obj = self
        view.len = self.length
        view.readonly = 0
        view.itemsize = 1
        view.format = BYTE_FORMAT if flags & PyBUF_FORMAT else NULL
        view.ndim = 1
        view.shape = &self.length if flags & PyBUF_ND else NULL
        view.strides = &BYTE_STRIDE if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL
        self.views += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.views -= 1

    cdef int give_back(self) except -1:
        self.check_usable()
        if self.views:
            raise PluginMemoryError(
                f"the buffer cannot be returned while {self.views} view(s) of it are alive"
            )
        self.home = True
        if self.pool.flags < DEBUG:
            self.pool.give_plainly(&self.slab)
            return 0
        sentence = self.pool.give_guarded(&self.slab)
        self.pool.guard.ledger.flush()
        if sentence is not None:
            raise PluginMemoryError(sentence)
        return 0

    cdef int check_usable(self) except -1:
        if self.home:
            raise PluginMemoryError("the buffer was returned to its memory pool")
        return 0

    @property
    def size(self):
        """int: Bytes asked for."""
        return self.length

    @property
    def capacity(self):
        """int: Bytes of the memory behind it, at least `size`."""
        return self.slab.capacity

    @property
    def size_class(self):
        """BufferSize or None: The class of its slab; None if it was allocated for itself alone."""
        return BufferSize(self.slab.capacity) if self.slab.index >= 0 else None

    @property
    def returned(self):
        """bool: Whether it went back to its pool, and so must not be used any more."""
        return self.home
