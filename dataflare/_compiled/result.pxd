from libc.stdint cimport uint8_t

from dataflare._compiled.arena cimport Arena
from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginResult


cdef class BatchResult:
    # Invariants: of the first `total` statuses exactly len(output) are SUCCESS or SKIP;
    # `errors` has an entry, by rising index, for every ERROR.
    cdef const uint8_t *statuses         # [total]; owner: arena
    cdef Py_ssize_t total
    cdef Py_ssize_t counts[4]            # by status
    cdef Py_ssize_t *places              # position in the output by record, made when first asked
    cdef Arena arena
    cdef readonly RecordBatch output
    cdef list given                      # metadata of results, by place in the output, or None
    cdef readonly list errors
    cdef public double processing_time

    cdef PluginResult result_at(self, Py_ssize_t index)
    cdef Py_ssize_t place_of(self, Py_ssize_t index) except -1


cdef class Gathering:
    cdef RecordBatch batch
    cdef MemoryPool pool
    cdef Arena arena
    cdef uint8_t *status                 # [len(batch)]; owner: arena
    cdef Py_ssize_t position             # the next record
    cdef list objects, errors, given

    cdef int add(self, PluginResult result) except -1
    cdef int fail(self, object error) except -1
    cdef void decide(self, int status) noexcept
    cdef BatchResult finish(self)


cdef object as_plugin_error(object error, object plugin)
cdef BatchResult finish_result(
    RecordBatch batch, const uint8_t *status, Arena arena, RecordBatch output, list errors,
    list given, MemoryPool pool)
cdef int raise_wrong_type(object outcome) except -1
cdef BatchResult make_result(
    const uint8_t *statuses, Py_ssize_t total, Arena arena, RecordBatch output, list errors,
    list given)
cdef object record_error(object error, object plugin)
