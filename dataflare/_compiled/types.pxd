# The C structs that every compiled module shares; they are explained in dataflare.h.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t


cdef extern from "dataflare.h" nogil:
    enum: DF_SUCCESS, DF_FILTERED, DF_SKIP, DF_ERROR
    enum: DF_ABI_VERSION, DF_MESSAGE_SIZE
    const uint32_t DF_THREAD_SAFE
    const char *DF_PLUGIN_CAPSULE

    ctypedef struct df_view:
        const char *data
        Py_ssize_t size

    ctypedef struct df_record:
        df_view value
        df_view key
        int64_t timestamp
        int64_t offset
        int32_t partition

    ctypedef struct df_batch:
        Py_ssize_t length
        const df_view *values
        const df_view *keys
        const int64_t *timestamps
        const int64_t *offsets
        const int32_t *partitions
        df_view block

    ctypedef struct df_emitter:
        char *cursor
        char *limit
        Py_ssize_t reserved
        df_view value
        int borrowed
        int (*grow)(df_emitter *, Py_ssize_t) noexcept nogil
        void (*fail)(df_emitter *, int, const char *) noexcept nogil

    char *df_reserve(df_emitter *out, Py_ssize_t size) noexcept
    int df_commit(df_emitter *out, Py_ssize_t size) noexcept
    int df_emit(df_emitter *out, const char *data, Py_ssize_t size) noexcept
    int df_forward(df_emitter *out, const df_record *record,
                   Py_ssize_t start, Py_ssize_t size) noexcept
    int df_fail(df_emitter *out, int code, const char *message) noexcept

    ctypedef struct df_output:
        df_emitter emitter
        Py_ssize_t position
        Py_ssize_t total
        Py_ssize_t length
        uint8_t *status
        df_view *values

    void df_put(df_output *out, df_view value) noexcept
    void df_pass(df_output *out, const df_batch *batch) noexcept
    void df_drop(df_output *out, Py_ssize_t count) noexcept

    ctypedef int (*df_process)(const df_record *record, df_emitter *out, void *state) noexcept nogil
    ctypedef int (*df_process_batch)(const df_batch *batch, df_output *out,
                                     void *state) noexcept nogil
    # Called with the GIL; what it raises is the reason why it failed.
    ctypedef int (*df_init)(void **state, df_view config, char *message) except *
    ctypedef void (*df_cleanup)(void *state) noexcept

    ctypedef struct df_plugin:
        uint32_t abi_version
        uint32_t struct_size
        uint32_t record_size
        uint32_t batch_size
        uint32_t emitter_size
        uint32_t output_size
        uint32_t flags
        uint32_t reserved
        const char *name
        const char *description
        df_process process
        df_process_batch process_batch
        df_init init
        df_cleanup cleanup
        void *state


cdef inline char *reserve(df_emitter *out, Py_ssize_t size) except NULL nogil:
    """`df_reserve` for Cython authors: raises instead of returning NULL."""
    cdef char *target = df_reserve(out, size)
    if target is NULL:
        with gil:
            raise MemoryError(f"no room for {size} bytes of output")
    return target
