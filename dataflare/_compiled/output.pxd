from dataflare._compiled.arena cimport Arena
from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport BatchResult
from dataflare._compiled.types cimport (
    DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS, df_output, df_view
)


cdef struct Failure:
    # Why a record failed, noted without the GIL. Only those of records whose status is ERROR count.
    Py_ssize_t index
    int code
    int member
    char *message                        # owner: the Output


cdef struct Run:
    # The engine's side of a df_output, which a plugin's df_emitter pointer leads to.
    df_output out                        # stays first
    char *block                          # where the emitter's current block starts
    int member                           # which plugin of a fused chain is at work
    bint ordered                         # whoever fills `values` does so in order of commits
    void *owner                          # the Output, borrowed: it outlives the run


cdef class Output:
    cdef Run run
    cdef Arena arena
    cdef Py_ssize_t blocks               # taken from the arena so far
    cdef MemoryPool pool
    cdef object plugin                   # whose output it is; None: a single record
    cdef RecordBatch batch               # what comes in; None: a single record
    cdef Failure *failures               # [count], allocated for `room`
    cdef Py_ssize_t count, room
    cdef dict raised                     # index -> (exception, member)
    cdef char[512] scratch               # the first block of a single record
    cdef df_view single_value
    cdef unsigned char single_status

    cdef int begin(self, RecordBatch batch, MemoryPool pool, object plugin) except -1
    cdef void begin_single(self) noexcept
    cdef void guard_single(self, MemoryPool pool, object plugin) noexcept
    cdef int grow(self, Py_ssize_t size) except -1
    cdef void note(self, Py_ssize_t index, int code, int member, const char *message) noexcept
    cdef int catch(self, object error) except -1
    cdef int settle_rest(self) except -1
    cdef int expire(self, object error) except -1
    cdef object error_at(self, Py_ssize_t index, object plugin)
    cdef BatchResult finish(self, RecordBatch batch, object plugin)
    cdef PluginResult finish_single(self, int status, object plugin)


cdef inline char *rewind_mark(const Run *run) noexcept nogil:
    """Where the current record's bytes begin."""
    return run.out.emitter.cursor


cdef inline void rewind(Run *run, char *mark) noexcept nogil:
    """Give back all that was written since `mark`."""
    if run.block <= mark <= run.out.emitter.limit:
        run.out.emitter.cursor = mark
    else:  # a new block was begun since, for this record alone
        run.out.emitter.cursor = run.block


cdef inline void settle(Run *run, int status, const df_view *value, char *mark) noexcept nogil:
    """The record at `position` has this outcome; `value` is what came in."""
    cdef df_output *out = &run.out
    if status == DF_SUCCESS and out.emitter.value.data is not NULL:
        out.values[out.length] = out.emitter.value
        out.length += 1
    else:
        if out.emitter.cursor != mark:
            rewind(run, mark)
        if status == DF_SKIP:
            out.values[out.length] = value[0]
            out.length += 1
            out.emitter.borrowed = 1
        elif status != DF_FILTERED:
            reject(run, status)
            status = DF_ERROR
    out.status[out.position] = <unsigned char>status
    out.position += 1


cdef void leave_undecided(Run *run) noexcept nogil
cdef void reject(Run *run, int status) noexcept nogil
cdef void note_failure(Run *run, int code, const char *message) noexcept nogil
cpdef plugin_name(plugin)
cdef object member_name(object plugin, int member)
