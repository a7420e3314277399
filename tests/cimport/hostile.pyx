# cython: language_level=3
# Native plugins that do what a plugin must not do, and some for the lesser-used parts of the API.
from libc.string cimport memcpy, memset

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec

from dataflare cimport (
    ERROR, FILTERED, SKIP, SUCCESS, Batch, Emitter, NativePlugin, Output, Record, View, commit,
    drop, emit, fail, forward, pass_on, put, reserve
)

__all__ = ["BatchHook", "Calls", "Meets", "Nothing", "Odd", "Overrun", "Repeat", "ShowRecord",
           "Sleeps", "ThreadSafeMeets"]


cdef extern from *:
    """
    static int count_up(int *count) { return __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST); }
    static int look_at(int *count) { return __atomic_load_n(count, __ATOMIC_SEQ_CST); }
    """
    int count_up(int *count) noexcept nogil
    int look_at(int *count) noexcept nogil


cdef void take_a_nap() noexcept nogil:
    cdef timespec nap
    nap.tv_sec = 0
    nap.tv_nsec = 20_000_000
    nanosleep(&nap, NULL)


cdef class Sleeps(NativePlugin):
    """Sleeps 20 ms at each value that begins with 's'; `hook`: in a loop of its own."""
    cdef bint hook

    def __init__(self, hook=False):
        self.hook = hook

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if record.value.size and record.value.data[0] == c's':
            take_a_nap()
        if record.value.size and record.value.data[0] == c'f':
            return fail(out, 0, "told to")
        return SKIP

    cdef int c_process_batch(self, const Batch *batch, Output *out) except? -1 nogil:
        cdef Py_ssize_t i
        if not self.hook:
            return NativePlugin.c_process_batch(self, batch, out)
        while out.position < batch.length:
            i = out.position
            if batch.values[i].size and batch.values[i].data[0] == c's':
                take_a_nap()
            pass_on(out, batch)
        return 0


cdef class Meets(NativePlugin):
    """At each value that begins with 'm' waits for so many threads to be there, without the GIL."""
    cdef int wanted
    cdef int there

    def __init__(self, wanted):
        self.wanted = wanted

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef timespec now
        cdef long limit
        if record.value.size == 0 or record.value.data[0] != c'm':
            return SKIP
        clock_gettime(CLOCK_MONOTONIC, &now)
        limit = now.tv_sec + 60
        count_up(&self.there)
        while look_at(&self.there) < self.wanted:
            clock_gettime(CLOCK_MONOTONIC, &now)
            if now.tv_sec > limit:
                return fail(out, 0, "nobody came")
        return SKIP


class ThreadSafeMeets(Meets):
    """Says that several threads may run it."""
    thread_safe = True


cdef class Nothing(NativePlugin):
    """Defines no c_process."""


cdef class Odd(NativePlugin):
    """The first byte of a record says which rule is broken."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef char what = record.value.data[0] if record.value.size else c'.'
        if what == c'u':
            return 42
        if what == c'm':
            return -1
        if what == c's':
            return SUCCESS
        if what == c'c':
            return commit(out, 5)
        if what == c'n':
            reserve(out, 3)
            return commit(out, -1)
        if what == c'r':
            reserve(out, -7)
            return SUCCESS
        if what == c'h':
            reserve(out, <Py_ssize_t>1 << 60)
            return SUCCESS
        if what == c'o':
            reserve(out, 100)
            with gil:
                try:
                    reserve(out, <Py_ssize_t>1 << 60)
                except MemoryError:
                    pass
            return commit(out, 50)
        if what == c'f':
            return forward(out, record, 1, record.value.size)
        if what == c'g':
            return forward(out, record, -1, 1)
        if what == c'e':
            return ERROR
        if what == c'x':
            return fail(out, -3, "a reason")
        if what == c'p':
            with gil:
                raise LookupError("raised")
        if what == c'k':
            with gil:
                raise KeyboardInterrupt
        if what == c'd':
            return FILTERED
        return SKIP


cdef class Calls(NativePlugin):
    """Calls a function, and emits the record's value and key as they are afterwards."""
    cdef object function

    def __init__(self, function):
        self.function = function

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        with gil:
            self.function()
            text = record.value.data[:record.value.size] + record.key.data[:record.key.size]
            return emit(out, text, len(text))


cdef class Overrun(NativePlugin):
    """Emits the value; a value that begins with an exclamation mark with one byte too many."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef Py_ssize_t size = record.value.size
        cdef char *target = reserve(out, size)
        memcpy(target, record.value.data, size)
        if size and record.value.data[0] == c'!':
            target[size] = c'!'
        if size and record.value.data[0] == c'?':  # reserves more than it commits, and is right
            return commit(out, size - 1)
        return commit(out, size)


cdef class Repeat(NativePlugin):
    """Emits the record's last byte as often as its decimal number says."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        cdef Py_ssize_t i, count = 0
        cdef char *target
        for i in range(record.value.size - 1):
            count = count * 10 + record.value.data[i] - c'0'
        target = reserve(out, count)
        memset(target, record.value.data[record.value.size - 1], count)
        return commit(out, count)


cdef class ShowRecord(NativePlugin):
    """Emits key, timestamp, partition and offset as text."""

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        with gil:
            key = None if record.key.data == NULL else record.key.data[:record.key.size]
            text = repr((key, record.timestamp, record.partition, record.offset)).encode()
            return emit(out, text, len(text))


cdef class BatchHook(NativePlugin):
    """Takes whole batches; `mode` says how well."""
    cdef str mode
    cdef int how

    def __init__(self, mode):
        self.mode = mode
        self.how = ["good", "short", "long", "raise"].index(mode)

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return SKIP

    cdef int c_process_batch(self, const Batch *batch, Output *out) except? -1 nogil:
        cdef Py_ssize_t i
        cdef View view
        if self.how == 2:
            for _ in range(batch.length + 1000):
                pass_on(out, batch)
            drop(out, 1000)
            return 0
        while out.position < batch.length - (self.how == 1):
            i = out.position
            if self.how == 3 and i % 2 == 1:
                with gil:
                    raise ValueError(f"at {i}")
            if i % 3 == 0:
                drop(out, 1)
            elif i % 3 == 1:
                pass_on(out, batch)
            else:
                emit(&out.emitter, "new", 3)
                view = out.emitter.value
                put(out, view)
        return 0
