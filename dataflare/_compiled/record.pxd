from libc.stdint cimport int32_t, int64_t

from dataflare._compiled.types cimport df_view


cdef class PluginRecord:
    cdef readonly object value           # bytes, or a read-only memoryview
    cdef readonly object key             # the same, or None
    cdef readonly object metadata        # a read-only mapping, or None
    cdef readonly int64_t timestamp
    cdef readonly int64_t offset
    cdef readonly int32_t partition


cdef class PluginResult:
    cdef readonly int status             # df_status
    cdef readonly object data
    cdef readonly object metadata
    cdef readonly object message
    cdef readonly object code


cdef int view_of(object owner, df_view *view) except -1
