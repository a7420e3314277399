from dataflare._compiled.plugin cimport DataFlarePlugin


cdef class MapPlugin(DataFlarePlugin):
    cdef readonly object function
    cdef readonly object name
    cdef readonly bint thread_safe
    cdef dict __dict__


cdef class FilterPlugin(DataFlarePlugin):
    cdef readonly object function
    cdef readonly object name
    cdef readonly bint thread_safe
    cdef dict __dict__


cdef bytes as_bytes(object data)
cdef bint as_truth(object answer) except -1
