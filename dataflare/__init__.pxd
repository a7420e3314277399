# What the author of a native plugin needs:
#
#     from dataflare cimport NativePlugin, Record, Emitter, SKIP, FILTERED
#
#     cdef class LongLines(NativePlugin):
#         cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
#             return SKIP if record.value.size > 80 else FILTERED
#
# `c_process` runs without the GIL, once for each record. It may read `record.value.data` (char *)
# and `.size`, `record.key` (the same; data NULL: no key), `record.timestamp`, `.partition` and
# `.offset`, until it returns. What it returns says what becomes of the record:
#
#     FILTERED   it is dropped
#     SKIP       it goes on unchanged
#     SUCCESS    it goes on with the value that was committed; `commit`, `emit` and `forward`
#                return it, so:  return emit(out, data, size)
#     ERROR      it failed; `fail(out, code, message)` returns it
#
# Or it raises, `with gil`: the record fails with that exception, the others go on.
#
#     char *reserve(Emitter *out, Py_ssize_t size)     room for `size` bytes of output
#     int commit(Emitter *out, Py_ssize_t size)        the first `size` of them are the new value
#     int emit(Emitter *out, const char *data, Py_ssize_t size)             copies: both at once
#     int forward(Emitter *out, const Record *record, Py_ssize_t start, Py_ssize_t size)
#                                                      part of the record, without a copy
#
# A plugin that sees the whole batch at once overrides c_process_batch as well and decides the
# records in order: put(out, view), pass_on(out, batch), drop(out, count). See dataflare.h.
from dataflare._compiled.plugin cimport NativePluginABI1 as NativePlugin
from dataflare._compiled.types cimport DF_ERROR as ERROR
from dataflare._compiled.types cimport DF_FILTERED as FILTERED
from dataflare._compiled.types cimport DF_SKIP as SKIP
from dataflare._compiled.types cimport DF_SUCCESS as SUCCESS
from dataflare._compiled.types cimport df_batch as Batch
from dataflare._compiled.types cimport df_commit as commit
from dataflare._compiled.types cimport df_drop as drop
from dataflare._compiled.types cimport df_emit as emit
from dataflare._compiled.types cimport df_emitter as Emitter
from dataflare._compiled.types cimport df_fail as fail
from dataflare._compiled.types cimport df_forward as forward
from dataflare._compiled.types cimport df_output as Output
from dataflare._compiled.types cimport df_pass as pass_on
from dataflare._compiled.types cimport df_put as put
from dataflare._compiled.types cimport df_record as Record
from dataflare._compiled.types cimport df_view as View
from dataflare._compiled.types cimport reserve
