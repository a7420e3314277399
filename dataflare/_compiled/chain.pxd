from libc.stdint cimport int64_t

from dataflare._compiled.plugin cimport DataFlarePlugin, NativePluginABI1
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.types cimport df_batch, df_emitter, df_record


cdef class Filter(NativePluginABI1):
    # A native plugin that only keeps or drops, and can look for the next record it keeps.
    cdef Py_ssize_t c_seek(self, const df_batch *batch, Py_ssize_t start) except -1 nogil


cdef class Fused(NativePluginABI1):
    # Invariant: stages[i] is members[i], borrowed; `members` owns them.
    cdef readonly tuple members
    cdef void **stages
    cdef Py_ssize_t length
    cdef bint seeks                      # the first member is a Filter
    cdef int64_t *sampled_ns             # per member, of the sampled records; written atomically
    cdef list member_ns                  # per member, what was said of it; its sum is shared_ns
    cdef int64_t shared_ns

    cdef int run_from(self, Py_ssize_t first, const df_record *record,
                      df_emitter *out) except? -1 nogil
    cdef int run_timed(self, Py_ssize_t first, const df_record *record,
                       df_emitter *out) except? -1 nogil
    cdef list shares(self)
    cdef list times(self, int64_t total_ns)


cdef class Chain(DataFlarePlugin):
    cdef readonly tuple plugins          # as given, nested chains flattened
    cdef readonly tuple stages           # the same, with runs of native plugins fused
    cdef int64_t *stage_ns               # exclusive time per stage; written with the GIL

    cdef PluginResult run_single(self, PluginRecord record, MemoryPool guarded)
