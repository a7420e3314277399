"""Where a native plugin's output goes: blocks on loan from the pool, statuses, noted failures.

Design
------
a. `Run` is the C struct that a plugin gets as its emitter or output. `Output` is the Python object
   around it, and owns everything the struct points to.
b. The plugin writes to the current block. When that is full, `grow` takes the GIL, once for many
   records, and takes the next block from the arena. Bytes that were handed over never move.
c. A record that does not go on gives its bytes back: the cursor is set to where it was.
d. A failure is noted in plain C (`df_fail`), or is a Python exception that the loop caught; both
   become errors after the loop.
e. In debug mode the emitter says that its block is full, always: so every value gets a block of its
   own size, and what a plugin writes past that hits the block's guard.
"""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from dataflare._compiled.batch cimport from_columns, new_views
from dataflare._compiled.result cimport as_plugin_error, finish_result
from dataflare._compiled.types cimport (
    DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS, df_emitter
)

from dataflare.errors import PluginProcessingError, drop_frames

cdef extern from "string.h" nogil:
    size_t strnlen(const char *text, size_t longest)

cdef Py_ssize_t FIRST_BLOCK = 4096
cdef Py_ssize_t LARGEST_BLOCK = 4 << 20
cdef Py_ssize_t LONGEST_MESSAGE = 4096
cdef unsigned char UNDECIDED = 0xFF


cdef int grow_emitter(df_emitter *out, Py_ssize_t size) noexcept nogil:
    """`df_emitter.grow`: room for `size` bytes in a new block."""
    out.reserved = 0  # what was reserved before is given up, also if there is no more
    if size < 0:
        note_failure(<Run *>out, 0, b"the plugin reserved a negative size")
        return -1
    with gil:
        return 0 if try_to_grow(<Output>(<Run *>out).owner, size) else -1


cdef bint try_to_grow(Output output, Py_ssize_t size) noexcept:
    # If there is no memory for the message either, what is raised ends here: it did not work.
    try:
        output.grow(size)
        return True
    except Exception as error:
        message = str(error).encode()
        note_failure(&output.run, 0, message)
        return False


cdef str no_reason(int code):
    return f"the plugin failed with code {code} and gave no reason" if code else (
        "the plugin gave no reason")


cdef void fail_emitter(df_emitter *out, int code, const char *message) noexcept nogil:
    """`df_emitter.fail`: note why the current record fails."""
    note_failure(<Run *>out, code, message)


cdef void note_failure(Run *run, int code, const char *message) noexcept nogil:
    # Without memory for the note the record fails all the same, with a general reason.
    with gil:
        (<Output>run.owner).note(run.out.position, code, run.member, message)


cdef void leave_undecided(Run *run) noexcept nogil:
    """The plugin said that it had decided every record; those that are left fail."""
    cdef df_output *out = &run.out
    while out.position < out.total:
        note_failure(run, 0, b"the plugin left the record undecided")
        out.status[out.position] = DF_ERROR
        out.position += 1


cdef void reject(Run *run, int status) noexcept nogil:
    """The record at `position` fails; note why, if that is not noted yet."""
    cdef char[64] message
    if status == DF_SUCCESS:
        note_failure(run, 0, b"the plugin returned SUCCESS without committing a value")
    elif status != DF_ERROR:
        snprintf(message, sizeof(message), "the plugin returned the unknown status %d", status)
        note_failure(run, 0, message)


@cython.final
@cython.freelist(8)
cdef class Output:
    """What one call of a native plugin produced; see the head of the module."""

    def __cinit__(self):
        self.run.owner = <void *>self
        self.run.out.emitter.grow = grow_emitter
        self.run.out.emitter.fail = fail_emitter

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyMem_RawFree(self.failures[i].message)
        PyMem_RawFree(self.failures)

    cdef int begin(self, RecordBatch batch, MemoryPool pool, object plugin) except -1:
        """Get ready for a batch."""
        cdef Py_ssize_t length = batch.columns.length
        cdef df_output *out = &self.run.out
        self.pool = pool
        self.arena = Arena(pool)
        out.total = length
        out.status = <uint8_t *>self.arena.allocate(length)
        out.values = new_views(self.arena, length)
        memset(out.status, UNDECIDED, <size_t>length)
        # An empty block: the first bytes written take a real one.
        self.run.block = out.emitter.cursor = out.emitter.limit = self.scratch
        self.batch = batch
        self.plugin = plugin
        return 0

    cdef void begin_single(self) noexcept:
        """Get ready for one record."""
        cdef df_output *out = &self.run.out
        out.total = 1
        out.status = &self.single_status
        out.values = &self.single_value
        self.run.block = out.emitter.cursor = self.scratch
        out.emitter.limit = self.scratch + sizeof(self.scratch)

    cdef void guard_single(self, MemoryPool pool, object plugin) noexcept:
        """After `begin_single`: let the output go to loans of this pool, which is in debug mode."""
        self.pool = pool
        self.plugin = plugin
        self.run.out.emitter.limit = self.scratch

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef df_emitter *emitter = &self.run.out.emitter
        cdef Py_ssize_t capacity, wish = FIRST_BLOCK
        if self.batch is not None:  # as much as came in, at the first guess
            wish = max(self.batch.size_in_bytes(), self.batch.columns.block.size)
            wish = min(max(wish, FIRST_BLOCK), LARGEST_BLOCK)
        if self.arena is None:
            self.arena = Arena(self.pool)
        if emitter.cursor == self.run.block and self.run.block != self.scratch:
            self.arena.drop_last()  # nothing in it is in use
            self.run.block = emitter.cursor = emitter.limit = self.scratch
        if self.arena.guarded():
            name = member_name(self.plugin, self.run.member)
            self.arena.purpose = f"output of the plugin {name!r}"
        self.blocks += 1  # also if it fails: what was written so far is not one block any more
        self.run.block = self.arena.block(size, wish, &capacity)
        emitter.cursor = self.run.block
        emitter.limit = self.run.block + (0 if self.arena.guarded() else capacity)
        return 0

    cdef void note(self, Py_ssize_t index, int code, int member, const char *message) noexcept:
        cdef size_t size = strnlen(message, <size_t>LONGEST_MESSAGE) if message is not NULL else 0
        cdef Py_ssize_t room
        cdef Failure *grown
        cdef Failure *failure
        if self.count == self.room:
            room = max(self.room * 2, 8)
            grown = <Failure *>PyMem_RawRealloc(self.failures, room * sizeof(Failure))
            if grown is NULL:
                return
            self.failures = grown
            self.room = room
        failure = &self.failures[self.count]
        failure.message = <char *>PyMem_RawMalloc(size + 1)
        if failure.message is NULL:
            return
        if size:  # else `message` may be NULL, which memcpy is never given
            memcpy(failure.message, message, size)
        failure.message[size] = 0
        failure.index = index
        failure.code = code
        failure.member = member
        self.count += 1

    cdef int catch(self, object error) except -1:
        """The plugin raised at the current record."""
        cdef df_output *out = &self.run.out
        if self.raised is None:
            self.raised = {}
        drop_frames(error)
        self.raised[out.position] = (error, self.run.member)
        out.status[out.position] = DF_ERROR
        out.position += 1
        return 0

    cdef int settle_rest(self) except -1:
        leave_undecided(&self.run)
        return 0

    cdef int expire(self, object error) except -1:
        """The records that are left were not reached in time."""
        cdef df_output *out = &self.run.out
        if self.raised is None:
            self.raised = {}
        while out.position < out.total:
            self.raised[out.position] = (error, self.run.member)
            out.status[out.position] = DF_ERROR
            out.position += 1
        return 0

    cdef object error_at(self, Py_ssize_t index, object plugin):
        """The error of a record whose status is ERROR."""
        cdef Failure *failure
        cdef Py_ssize_t low = 0, high = self.count, middle
        if self.raised is not None and index in self.raised:
            error, member = self.raised[index]
            return as_plugin_error(error, member_name(plugin, member))
        while low < high:  # the last note of this record or of one before it
            middle = (low + high) // 2
            if self.failures[middle].index <= index:
                low = middle + 1
            else:
                high = middle
        if low > 0 and self.failures[low - 1].index == index:
            failure = &self.failures[low - 1]
            message = failure.message.decode("utf-8", "replace")
            return PluginProcessingError(
                message or no_reason(failure.code),
                plugin=member_name(plugin, failure.member),
                code=failure.code or None,
            )
        return PluginProcessingError(no_reason(0), plugin=member_name(plugin, 0))

    cdef BatchResult finish(self, RecordBatch batch, object plugin):
        """The result of the whole batch."""
        cdef df_output *out = &self.run.out
        cdef Py_ssize_t i
        cdef tuple owners = (self.arena,)
        cdef RecordBatch output
        cdef list errors = []
        self.settle_rest()
        cdef BatchResult result
        if out.emitter.borrowed:
            owners += batch.owners
        output = from_columns(out.values, out.length, owners)
        # Empty values may have been committed before there was a block: then they lie elsewhere.
        if (self.run.ordered and self.blocks == 1 and not out.emitter.borrowed and out.length
                and self.run.block <= out.values[0].data <= out.emitter.cursor):
            output.columns.block.data = self.run.block
            output.columns.block.size = out.emitter.cursor - self.run.block
        result = finish_result(
            batch, out.status, self.arena, output, errors, None, self.pool
        )
        if result.counts[DF_ERROR]:
            for i in range(out.total):
                if out.status[i] == DF_ERROR:
                    errors.append((i, self.error_at(i, plugin)))
        return result

    cdef PluginResult finish_single(self, int status, object plugin):
        """The result of one record; raises if it failed."""
        cdef df_view *value = &self.run.out.emitter.value
        if status == DF_FILTERED:
            return PluginResult.filtered()
        if status == DF_SKIP:
            return PluginResult.skip()
        if status == DF_SUCCESS and value.data is not NULL:
            return PluginResult.success(PyBytes_FromStringAndSize(value.data, value.size))
        settle(&self.run, status, value, self.run.block)
        raise self.error_at(0, plugin)


cdef object member_name(object plugin, int member):
    """The name of the plugin that failed: this one, or a member of this fused chain."""
    members = getattr(plugin, "members", None)
    return plugin_name(plugin if members is None else members[member])


cpdef plugin_name(plugin):
    """The name a plugin gives itself, or that of its class if it fails to."""
    try:
        return str(plugin.info().name)
    except Exception:  # an error report must not fail because the plugin's info does
        return type(plugin).__name__
