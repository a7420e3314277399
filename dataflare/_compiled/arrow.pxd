from libc.stdint cimport int32_t, int64_t, uint8_t

from dataflare._compiled.types cimport df_view


cdef extern from "arrow.h" nogil:
    enum: ARROW_FLAG_NULLABLE

    cdef struct ArrowSchema:
        const char *format
        const char *name
        const char *metadata
        int64_t flags
        int64_t n_children
        ArrowSchema **children
        ArrowSchema *dictionary
        void (*release)(ArrowSchema *) noexcept nogil
        void *private_data

    cdef struct ArrowArray:
        int64_t length
        int64_t null_count
        int64_t offset
        int64_t n_buffers
        int64_t n_children
        const void **buffers
        ArrowArray **children
        ArrowArray *dictionary
        void (*release)(ArrowArray *) noexcept nogil
        void *private_data

    cdef struct ArrowArrayStream:
        int (*get_schema)(ArrowArrayStream *, ArrowSchema *out) noexcept nogil
        int (*get_next)(ArrowArrayStream *, ArrowArray *out) noexcept nogil
        const char *(*get_last_error)(ArrowArrayStream *) noexcept nogil
        void (*release)(ArrowArrayStream *) noexcept nogil
        void *private_data

    ctypedef struct dfa_segment:
        const char *data
        Py_ssize_t size
        Py_ssize_t used
        int32_t index

    int32_t dfa_load32(const char *data, Py_ssize_t index)
    int64_t dfa_load64(const char *data, Py_ssize_t index)
    int dfa_bit(const uint8_t *bits, int64_t index)
    Py_ssize_t dfa_split(df_view *out, const char *offsets, int width, const char *data,
                         Py_ssize_t count)
    void dfa_slice(df_view *out, const char *data, Py_ssize_t size, Py_ssize_t count)
    Py_ssize_t dfa_follow(df_view *out, const char *views, Py_ssize_t count,
                          const uint8_t *validity, int64_t bit, const void **buffers,
                          const char *sizes, int64_t n_buffers)
    Py_ssize_t dfa_look_up(df_view *out, const char *indices, int width, int is_signed,
                           Py_ssize_t count, const uint8_t *validity, int64_t bit,
                           const df_view *dictionary, int64_t length)
    Py_ssize_t dfa_mark_nulls(df_view *out, Py_ssize_t count, const uint8_t *validity,
                              int64_t bit, const char *mark)
    Py_ssize_t dfa_numbers(int64_t *out, const char *data, int width, int is_signed,
                           Py_ssize_t count, const uint8_t *validity, int64_t bit, int64_t factor)
    Py_ssize_t dfa_narrow(int32_t *out, const int64_t *numbers, Py_ssize_t count)
    Py_ssize_t dfa_count_nulls(const df_view *values, Py_ssize_t count, const char *mark)
    void dfa_write_bitmap(uint8_t *bits, const df_view *values, Py_ssize_t count,
                          const char *mark)
    Py_ssize_t dfa_write_views(char *views, const df_view *values, Py_ssize_t count,
                               dfa_segment *segments, Py_ssize_t n_segments, int32_t *n_used,
                               int64_t *rest)
    int64_t dfa_fill_size(const char *views, Py_ssize_t start, Py_ssize_t count, int64_t limit)
    Py_ssize_t dfa_fill(char *views, const df_view *values, Py_ssize_t start, Py_ssize_t count,
                        char *buffer, int64_t size, int32_t index)
    Py_ssize_t dfa_adjacent(const df_view *values, Py_ssize_t count, const char **begin)
    int64_t dfa_write_offsets(char *offsets, int width, const df_view *values, Py_ssize_t count)
    void dfa_join(char *target, const df_view *values, Py_ssize_t count)
    Py_ssize_t dfa_fitting(const df_view *values, Py_ssize_t start, Py_ssize_t count,
                           int64_t limit)
    Py_ssize_t dfa_check_text(const df_view *values, Py_ssize_t count)
