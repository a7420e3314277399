from libc.stdint cimport int64_t

from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport BatchResult


cdef PluginResult run_one(object plugin, PluginRecord record, MemoryPool guarded)
cdef BatchResult run(object plugin, RecordBatch batch, MemoryPool pool, int64_t deadline)
