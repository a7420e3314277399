from libc.stdint cimport uint8_t

from dataflare._compiled.arena cimport Arena
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord
from dataflare._compiled.types cimport df_batch, df_view


# A record without a value has a view of no bytes at this address, which is nobody else's.
cdef const char *NO_VALUE

# UNCHECKED: made from text by a plugin, which may have made something else of it.
cdef enum:
    BINARY, TEXT, UNCHECKED


cdef class RecordBatch:
    # Invariant: every pointer in `columns` leads into memory that an object in `owners` owns, and
    # none of these objects is one that a user can release or resize.
    cdef df_batch columns
    cdef tuple owners
    cdef tuple objects                   # `bytes`, or None; value i is objects[shift + i]
    cdef Py_ssize_t shift
    cdef tuple metadata_column           # mapping or None per record, or None: no record has any
    cdef Py_ssize_t total                # sum of the sizes of the values, -1: not added up yet
    cdef bint nullable                   # some values may be NO_VALUE; False: none is
    cdef int text                        # whether the values are text: BINARY, TEXT or UNCHECKED
    cdef bint key_text                   # whether the keys came as text
    cdef str name                        # of the column that the values came from, or None
    cdef object __weakref__

    cdef bytes value_at(self, Py_ssize_t index)
    cdef PluginRecord record_at(self, Py_ssize_t index)
    cdef RecordBatch cut(self, Py_ssize_t start, Py_ssize_t stop)
    cdef Py_ssize_t size_in_bytes(self) noexcept
    cdef object numbers(self, const void *column, object dtype)
    cdef bint has_more_columns(self) noexcept
    cdef Py_ssize_t count_nulls(self) noexcept
    cdef RecordBatch carry(self, RecordBatch source, const Py_ssize_t *chosen)


cdef class Piece:
    cdef object owner                    # keeps `data` valid
    cdef const char *data
    cdef Py_ssize_t size

    @staticmethod
    cdef Piece over(object owner, const char *data, Py_ssize_t size)


cdef RecordBatch from_columns(df_view *values, Py_ssize_t length, tuple owners)
cdef RecordBatch from_objects(tuple objects, MemoryPool pool)
cdef df_view *new_views(Arena arena, Py_ssize_t length) except NULL
cdef int set_null(RecordBatch batch, Py_ssize_t index) except -1
