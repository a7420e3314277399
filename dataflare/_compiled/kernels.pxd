from dataflare._compiled.types cimport df_view


cdef extern from "kernels/kernels.h" nogil:
    ctypedef struct dfk_needle:
        const char *data
        Py_ssize_t size

    int dfk_needle_init(dfk_needle *needle, const char *data, Py_ssize_t size)
    const char *dfk_find(const dfk_needle *needle, const char *data, Py_ssize_t size)
    void dfk_upper(char *dst, const char *src, Py_ssize_t size)
    void dfk_lower(char *dst, const char *src, Py_ssize_t size)
    Py_ssize_t dfk_count(const char *data, Py_ssize_t size, char byte)
    Py_ssize_t dfk_split(const char *data, Py_ssize_t size, bint crlf, df_view *out,
                         Py_ssize_t capacity)
    void dfk_join(char *dst, const df_view *values, Py_ssize_t count, const char *sep,
                  Py_ssize_t sep_size)
    Py_ssize_t dfk_total(const df_view *values, Py_ssize_t count)
    const char *dfk_simd()
    int dfk_select(const char *name)
    const char *dfk_level(int index)


cdef inline int select_from_environment() except -1:
    """Use the instruction set that DATAFLARE_SIMD names, if it names one."""
    import os
    cdef bytes level = os.environ.get("DATAFLARE_SIMD", "").encode()
    if level and dfk_select(level) != 0:
        raise ImportError(f"DATAFLARE_SIMD: this CPU has no instruction set {level.decode()!r}")
    return 0
