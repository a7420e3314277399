"""Arrow data in and out, through the structs of its C data interface; no library is needed.

Design
------
a. **In.** The array is moved out of its capsule into a `Held`, which is an owner of the batch, like
   any other: it calls the producer's release when the last batch or result that refers to it dies.
   That is once, in whatever thread this happens, with the GIL held. A stream is moved into a
   `Stream`, and released at its end or when nobody wants more; it is read and released without the
   GIL. Schemas stay in their capsules.
b. **Views.** A batch is columns of views, so offsets become views, and no value is copied. Element
   i of a child stands at ``parent.offset + child.offset + i``: a sliced struct array has its offset
   in the parent, a sliced record batch in the children.
c. **Nothing is believed** that can be checked: counts, NULL buffers, offsets that descend, views
   and indices that lead elsewhere. How long a buffer of a producer is, its struct does not say.
d. **Out.** Every `ArrowArray`, child or not, has a reference to its `Memory` as private data: what
   its buffers and children are kept in, and the batch that they lead to. So a consumer may move a
   child away and release the parent. Release may be called in any thread, with or without the GIL:
   it takes it, and raises nothing. After the interpreter's end there is no GIL; then memory stays.
e. **What is copied out.** Values that lie one behind the other are exported where they are, with
   new offsets; other ones are copied. As views, values of memory whose extent is known (an arena,
   a buffer, Arrow data) stay where they are, and only values of `bytes` objects are copied.
f. **Text.** Values that came as strings are exported as strings, after a look at whether what a
   plugin made of them is UTF-8: readers rely on it without looking.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport (
    PyCapsule_CheckExact, PyCapsule_GetName, PyCapsule_GetPointer, PyCapsule_IsValid,
    PyCapsule_New
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EINVAL, ENOMEM
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset, strcmp, strncmp

from os import strerror
from types import MappingProxyType

from dataflare._compiled.arena cimport Arena
from dataflare._compiled.batch cimport (
    BINARY, NO_VALUE, TEXT, UNCHECKED, RecordBatch, from_columns, new_views
)
from dataflare._compiled.kernels cimport dfk_join
from dataflare._compiled.result cimport BatchResult
from dataflare._compiled.types cimport DF_SKIP, DF_SUCCESS, df_batch, df_view

from dataflare._arrow import (
    RECORD_COLUMNS, RESULT_COLUMNS, STATUSES, TYPES, check_columns, check_type, choose,
    export_names, fits, type_name
)

cdef extern from "Python.h":
    int Py_IsInitialized() nogil
    void PyErr_Fetch(PyObject **type, PyObject **value, PyObject **traceback)
    void PyErr_Restore(PyObject *type, PyObject *value, PyObject *traceback)
    const Py_ssize_t PY_SSIZE_T_MAX

NONE = (None,) * 6                       # no column is named

cdef const char *EMPTY = b""
cdef const char *SCHEMA_NAME = b"arrow_schema"
cdef const char *ARRAY_NAME = b"arrow_array"
cdef const char *STREAM_NAME = b"arrow_array_stream"

# With more of them an array of views, the widest elements, would not fit in an address space; so no
# address of an element overflows.
cdef int64_t MOST_ELEMENTS = PY_SSIZE_T_MAX // 16 - 1

# As many rows at least make a chunk of their own in a stream.
cdef Py_ssize_t LEAST_CHUNK = 4096

# The most bytes of values in an array whose offsets have 32 bits, and in a buffer of views.
cdef int64_t most_bytes = INT32_MAX

cdef enum Layout:
    OTHER, NOTHING, SPLIT, FIXED, VIEWED

# How the values of a column lie in memory.
cdef struct Kind:
    Layout layout
    int64_t width                        # bytes of an offset, or of a value of fixed size
    bint text


def limit_bytes(int64_t limit):
    """Set how many bytes an array with offsets of 32 bits may have, for tests; the old limit."""
    global most_bytes
    before = most_bytes
    most_bytes = limit
    return before


# -- In ------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class Held:
    """An array of a producer's: releases it when it dies itself."""
    cdef ArrowArray array                # moved here: nobody else has it; release NULL: nothing yet
    cdef df_view *extents                # [count] what values can lie in; the array owns it
    cdef Py_ssize_t count

    def __dealloc__(self):
        PyMem_RawFree(self.extents)
        if self.array.release is not NULL:
            self.array.release(&self.array)

    cdef int note_extent(self, const char *data, int64_t size) except -1:
        cdef void *grown
        if size <= 0:
            return 0
        grown = PyMem_RawRealloc(self.extents, (self.count + 1) * sizeof(df_view))
        if grown is NULL:
            raise MemoryError("no memory for the buffers of an Arrow array")
        self.extents = <df_view *>grown
        self.extents[self.count].data = data
        self.extents[self.count].size = size
        self.count += 1
        return 0


cdef void *pointer_in(object capsule, const char *name) except NULL:
    """What a capsule of that name has; it stays its owner."""
    if not PyCapsule_CheckExact(capsule):
        raise TypeError(f"Arrow data must come in a capsule, not in {type(capsule).__name__}")
    if not PyCapsule_IsValid(capsule, name):
        found = PyCapsule_GetName(capsule)
        shown = "no name" if found is NULL else f"the name {found.decode('utf-8', 'replace')!r}"
        raise TypeError(f"an Arrow capsule must be named {name.decode()!r}, this one has {shown}")
    return PyCapsule_GetPointer(capsule, name)


cdef Held take_array(object capsule):
    """Move the array out of its capsule, which from now on owns nothing."""
    cdef ArrowArray *source = <ArrowArray *>pointer_in(capsule, ARRAY_NAME)
    cdef Held held = Held.__new__(Held)
    if source.release is NULL:
        raise ValueError("the Arrow array was released already")
    held.array = source[0]
    source.release = NULL
    return held


cdef const ArrowSchema *schema_in(object capsule) except NULL:
    cdef const ArrowSchema *schema = <const ArrowSchema *>pointer_in(capsule, SCHEMA_NAME)
    check_schema(schema)
    return schema


cdef int check_schema(const ArrowSchema *schema) except -1:
    cdef int64_t i
    if schema.release is NULL:
        raise ValueError("the Arrow schema was released already")
    if schema.format is NULL:
        raise ValueError("the Arrow schema is malformed: it has no format")
    if schema.n_children < 0 or (schema.n_children > 0 and schema.children is NULL):
        raise ValueError("the Arrow schema is malformed: it lacks its children")
    for i in range(schema.n_children):
        if schema.children[i] is NULL:
            raise ValueError(f"the Arrow schema is malformed: child {i} is missing")
    return 0


cdef str text_of(const char *text):
    return "" if text is NULL else text.decode("utf-8", "replace")


cdef Kind kind_of(const char *format) noexcept:
    cdef Kind kind
    cdef const char *digit
    kind.layout = OTHER
    kind.width = 0
    kind.text = False
    if format[0] == c"w" and format[1] == c":":
        digit = format + 2
        while c"0" <= digit[0] <= c"9" and kind.width <= INT32_MAX:
            kind.width = 10 * kind.width + digit[0] - c"0"
            digit += 1
        if digit != format + 2 and digit[0] == 0 and kind.width <= INT32_MAX:
            kind.layout = FIXED
        return kind
    if format[0] == c"v" and format[1] in (c"z", c"u") and format[2] == 0:
        kind.layout = VIEWED
        kind.text = format[1] == c"u"
    elif format[0] in (c"z", c"u", c"Z", c"U") and format[1] == 0:
        kind.layout = SPLIT
        kind.width = 4 if format[0] in (c"z", c"u") else 8
        kind.text = format[0] in (c"u", c"U")
    elif format[0] == c"n" and format[1] == 0:
        kind.layout = NOTHING
    return kind


cdef int integer_width(const char *format, bint *is_signed) noexcept:
    """Bytes of the integers of that format, 0 if it is another type."""
    cdef int width
    if format[0] == 0 or format[1] != 0:
        return 0
    if format[0] in (c"c", c"C"):
        width = 1
    elif format[0] in (c"s", c"S"):
        width = 2
    elif format[0] in (c"i", c"I"):
        width = 4
    elif format[0] in (c"l", c"L"):
        width = 8
    else:
        return 0
    is_signed[0] = format[0] >= c"a"
    return width


cdef int64_t unit_of(const char *format) noexcept:
    """The nanoseconds of the unit of a timestamp; 0 if it is another type."""
    if strncmp(format, b"ts", 2) != 0 or format[2] == 0 or format[3] != c":":
        return 0
    if format[2] == c"s":
        return 1_000_000_000
    if format[2] == c"m":
        return 1_000_000
    if format[2] == c"u":
        return 1_000
    return 1 if format[2] == c"n" else 0


cdef str named(object what):
    """What a message calls a column: it has a tuple of its name, or is called by a sentence."""
    return f"the column {what[0]!r}" if type(what) is tuple else what


cdef object malformed(object what, str why):
    return ValueError(f"{named(what)} of the Arrow data is malformed: {why}")


cdef int check_array(const ArrowArray *array, const ArrowSchema *schema, int64_t n_buffers,
                     object what) except -1:
    """Refuse what does not fit its schema, apart from what is in its buffers."""
    cdef int64_t i
    if array.release is NULL:
        raise malformed(what, "it was released already")
    if array.length < 0 or array.offset < 0 or array.length > MOST_ELEMENTS - array.offset:
        raise malformed(what, f"its length is {array.length}, its offset {array.offset}")
    if array.null_count < -1 or array.null_count > array.length:
        raise malformed(what, f"its null count is {array.null_count}")
    if array.n_buffers != n_buffers and not (n_buffers < 0 and array.n_buffers >= -n_buffers):
        raise malformed(what, f"it has {array.n_buffers} buffers, not {abs(n_buffers)}")
    if array.n_buffers > 0 and array.buffers is NULL:
        raise malformed(what, "it lacks its buffers")
    if array.n_children != schema.n_children:
        raise malformed(
            what, f"it has {array.n_children} children, not the {schema.n_children} of its schema"
        )
    if array.n_children > 0 and array.children is NULL:
        raise malformed(what, "it lacks its children")
    for i in range(array.n_children):
        if array.children[i] is NULL:
            raise malformed(what, f"child {i} is missing")
    if (array.dictionary is NULL) != (schema.dictionary is NULL):
        raise malformed(what, "only one of schema and array has a dictionary")
    return 0


cdef const uint8_t *validity_of(const ArrowArray *array, object what) except? NULL:
    """The bitmap of what is not null; NULL: nothing is."""
    if array.null_count == 0 or array.n_buffers == 0 or array.length == 0:
        return NULL
    if array.buffers[0] is NULL and array.null_count > 0:
        raise malformed(what, f"{array.null_count} of it are null, and it does not say which")
    return <const uint8_t *>array.buffers[0]


cdef int check_range(const ArrowArray *array, int64_t start, int64_t length,
                     object what) except -1:
    """The elements from `start` on must exist."""
    if start > array.length or length > array.length - start:
        raise malformed(what, f"it has {array.length} elements where {start + length} are needed")
    return 0


cdef Py_ssize_t fill_views(Held held, const ArrowSchema *schema, const ArrowArray *array,
                           int64_t start, Py_ssize_t length, df_view *out, const char *mark,
                           object what, bint *is_text) except -1:
    """Views of `length` elements from `start` on; null ones lead to `mark`. How many these are."""
    cdef Py_ssize_t bad = -1, count
    cdef int64_t first = start, size = 0, at
    cdef bint is_signed = False
    cdef int width
    cdef df_view *words
    cdef const void **buffers
    cdef const uint8_t *validity
    cdef Arena scratch
    cdef Kind kind = kind_of(schema.format)
    cdef const char *data
    cdef const char *sizes
    if schema.dictionary is not NULL:
        width = integer_width(schema.format, &is_signed)
        check_schema(schema.dictionary)
        if width == 0 or schema.dictionary.dictionary is not NULL:
            raise TypeError(f"{named(what)} has a dictionary of a type that is not supported")
        check_array(array, schema, 2, what)
        check_range(array, start, length, what)
        scratch = Arena(None)
        at = array.dictionary.length
        if at < 0:
            raise malformed(what, f"its dictionary has the length {at}")
        words = new_views(scratch, at)
        fill_views(held, schema.dictionary, array.dictionary, 0, at, words, mark,
                   f"the dictionary of {named(what)}", is_text)
        if length == 0:
            return 0
        if array.buffers[1] is NULL:
            raise malformed(what, "it lacks its indices")
        validity = validity_of(array, what)
        first += array.offset
        data = <const char *>array.buffers[1] + first * width
        with nogil:
            bad = dfa_look_up(out, data, width, is_signed, length, validity, first, words, at)
            if bad < 0 and validity is not NULL:
                dfa_mark_nulls(out, length, validity, first, mark)
        if bad >= 0:
            raise malformed(what, f"element {bad} is not in its dictionary")
        return dfa_count_nulls(out, length, mark)
    is_text[0] = kind.text
    if kind.layout == OTHER:
        raise TypeError(
            f"{named(what)} has the type {type_name(text_of(schema.format))}, and must be of "
            f"strings or of binary values"
        )
    if kind.layout == NOTHING:
        check_array(array, schema, 0, what)
        check_range(array, start, length, what)
        dfa_slice(out, mark, 0, length)
        return length
    check_array(array, schema, 3 if kind.layout == SPLIT else 2 if kind.layout == FIXED else -3,
                what)
    check_range(array, start, length, what)
    if length == 0:
        return 0
    validity = validity_of(array, what)
    buffers = array.buffers
    first += array.offset
    if kind.layout == FIXED:
        if kind.width and buffers[1] is NULL:
            raise malformed(what, "it lacks its values")
        if kind.width and first + length > PY_SSIZE_T_MAX // kind.width:
            raise malformed(what, f"its length is {array.length}")
        data = <const char *>buffers[1] + first * kind.width if kind.width else EMPTY
        dfa_slice(out, data, kind.width, length)
        held.note_extent(data, kind.width * length)
    elif buffers[1] is NULL:
        raise malformed(what, "it lacks its offsets" if kind.layout == SPLIT else "it lacks its "
                              "views")
    elif kind.layout == SPLIT:
        data = <const char *>buffers[1] + first * kind.width
        with nogil:
            bad = dfa_split(out, data, kind.width, <const char *>buffers[2], length)
        if bad >= 0:
            raise malformed(what, f"the offsets of element {bad} descend or are negative")
        if kind.width == 4:
            size = dfa_load32(data, length) - dfa_load32(data, 0)
        else:
            size = dfa_load64(data, length) - dfa_load64(data, 0)
        if buffers[2] is NULL:
            if size:
                raise malformed(what, "it lacks its values")
            dfa_slice(out, EMPTY, 0, length)
        held.note_extent(out[0].data, size)
    else:
        count = array.n_buffers - 3
        sizes = <const char *>buffers[array.n_buffers - 1]
        if count and sizes is NULL:
            raise malformed(what, "it lacks the sizes of its buffers")
        data = <const char *>buffers[1] + first * 16
        with nogil:
            bad = dfa_follow(out, data, length, validity, first, buffers + 2, sizes, count)
        if bad >= 0:
            raise malformed(what, f"the view of element {bad} leads out of its buffers")
        for at in range(count):
            if buffers[2 + at] is not NULL:
                held.note_extent(<const char *>buffers[2 + at], dfa_load64(sizes, at))
    if validity is NULL:
        return 0
    with nogil:
        count = dfa_mark_nulls(out, length, validity, first, mark)
    return count


cdef const int64_t *numbers_of(const ArrowSchema *schema, const ArrowArray *array, int64_t start,
                               Py_ssize_t length, Arena arena, bint timed,
                               object what) except NULL:
    """A column of integers; in place where it lies in memory just so."""
    cdef bint is_signed = True
    cdef int64_t unit = unit_of(schema.format) if timed else 0
    cdef int width = 8 if unit else integer_width(schema.format, &is_signed)
    cdef const uint8_t *validity
    cdef const char *data
    cdef int64_t *numbers
    cdef Py_ssize_t bad
    if width == 0 or schema.dictionary is not NULL:
        raise TypeError(
            f"{named(what)} has the type {type_name(text_of(schema.format))}, and must be of "
            f"{'timestamps or ' if timed else ''}integers"
        )
    check_array(array, schema, 2, what)
    check_range(array, start, length, what)
    if length and array.buffers[1] is NULL:
        raise malformed(what, "it lacks its numbers")
    validity = validity_of(array, what)
    start += array.offset
    data = <const char *>array.buffers[1] + start * width if length else EMPTY
    if (width == 8 and is_signed and unit <= 1 and validity is NULL and length
            and <size_t>data % sizeof(int64_t) == 0):
        return <const int64_t *>data
    numbers = <int64_t *>arena.allocate(length * sizeof(int64_t))
    with nogil:
        bad = dfa_numbers(numbers, data, width, is_signed, length, validity, start,
                          unit if unit else 1)
    if bad >= 0:
        raise ValueError(f"element {bad} of {named(what)} does not fit in 64 bits"
                         f"{' as nanoseconds' if timed else ''}")
    return numbers


cdef list strings_of(Held held, const ArrowSchema *schema, const ArrowArray *array, int64_t start,
                     Py_ssize_t length, object what):
    """Elements as `str`, or as `bytes` if the type is binary; None for null."""
    cdef Arena scratch = Arena(None)
    cdef df_view *views = new_views(scratch, length)
    cdef bint is_text = False
    cdef Py_ssize_t i
    fill_views(held, schema, array, start, length, views, NULL, what, &is_text)
    if is_text:
        return [
            None if views[i].data is NULL else views[i].data[:views[i].size].decode()
            for i in range(length)
        ]
    return [
        None if views[i].data is NULL else <bytes>views[i].data[:views[i].size]
        for i in range(length)
    ]


cdef tuple metadata_of(Held held, const ArrowSchema *schema, const ArrowArray *array,
                       int64_t start, Py_ssize_t length, object what):
    """A column of maps, or of structs, as mappings."""
    cdef const uint8_t *validity
    cdef int64_t first, stop, i, j
    cdef int width = 8 if strcmp(schema.format, b"+L") == 0 else 4
    cdef const ArrowSchema *pair
    cdef const ArrowArray *pairs
    cdef const char *offsets
    cdef list found = []
    if strcmp(schema.format, b"+s") == 0:
        check_array(array, schema, 1, what)
        check_range(array, start, length, what)
        validity = validity_of(array, what)
        first = array.offset + start
        names = []
        columns = []
        for i in range(schema.n_children):
            check_schema(schema.children[i])
            names.append(text_of(schema.children[i].name))
            columns.append(strings_of(held, schema.children[i], array.children[i], first, length,
                                      f"{names[i]!r} in {named(what)}"))
        for j in range(length):
            if validity is not NULL and not dfa_bit(validity, first + j):
                found.append(None)
                continue
            found.append(MappingProxyType({
                name: column[j] for name, column in zip(names, columns, strict=True)
                if column[j] is not None
            }))
        return tuple(found)
    pair = schema.children[0] if schema.n_children == 1 else NULL
    if pair is not NULL:
        check_schema(pair)
    if (strcmp(schema.format, b"+m") != 0 and strcmp(schema.format, b"+l") != 0 and width == 4
            or pair is NULL or strcmp(pair.format, b"+s") != 0 or pair.n_children != 2):
        raise TypeError(
            f"{named(what)} has the type {type_name(text_of(schema.format))}, and must be of maps "
            f"or of structs"
        )
    check_array(array, schema, 2, what)
    check_range(array, start, length, what)
    pairs = array.children[0]
    check_array(pairs, pair, 1, what)
    if length == 0:
        return ()
    if array.buffers[1] is NULL:
        raise malformed(what, "it lacks its offsets")
    validity = validity_of(array, what)
    start += array.offset
    offsets = <const char *>array.buffers[1] + start * width
    places = [
        dfa_load32(offsets, i) if width == 4 else dfa_load64(offsets, i) for i in range(length + 1)
    ]
    first, stop = places[0], places[length]
    if first < 0 or places != sorted(places):
        raise malformed(what, "its offsets descend or are negative")
    check_range(pairs, first, stop - first, what)
    for i in range(2):
        check_schema(pair.children[i])
    at = pairs.offset + first
    keys = strings_of(held, pair.children[0], pairs.children[0], at, stop - first, what)
    values = strings_of(held, pair.children[1], pairs.children[1], at, stop - first, what)
    for i in range(length):
        if validity is not NULL and not dfa_bit(validity, start + i):
            found.append(None)
            continue
        mapping = {}
        for j in range(places[i] - first, places[i + 1] - first):
            if type(keys[j]) is not str:
                raise TypeError(f"{named(what)} must have strings as keys")
            if values[j] is not None:
                mapping[keys[j]] = values[j]
        found.append(MappingProxyType(mapping))
    return tuple(found)


@cython.final
cdef class Plan:
    """Which columns of data of one schema the parts of a record come from."""
    cdef bint table                      # a struct; else a plain array of values
    cdef int64_t value, key, timestamp, partition, offset, metadata  # -1: none
    cdef list names

    @staticmethod
    cdef Plan of(const ArrowSchema *schema, tuple wanted):
        cdef Plan plan = Plan.__new__(Plan)
        cdef int64_t i
        plan.table = strcmp(schema.format, b"+s") == 0 and schema.dictionary is NULL
        plan.key = plan.timestamp = plan.partition = plan.offset = plan.metadata = -1
        if not plan.table:
            for name in wanted:
                if name is not None:
                    raise ValueError(f"no column {name!r}: the data is an array without columns")
            return plan
        plan.names = []
        for i in range(schema.n_children):
            check_schema(schema.children[i])
            plan.names.append(text_of(schema.children[i].name))
        if wanted == NONE and len(plan.names) == 1:  # what `choose` would say, only sooner
            return plan
        (plan.value, plan.key, plan.timestamp, plan.partition, plan.offset,
         plan.metadata) = choose(plan.names, wanted)
        return plan

    cdef RecordBatch batch(self, const ArrowSchema *schema, Held held):
        cdef const ArrowArray *root = &held.array
        cdef const uint8_t *validity = NULL
        cdef Arena arena = Arena(None)
        cdef Py_ssize_t length, nulls, i
        cdef df_view *values
        cdef df_view *keys
        cdef const int64_t *wide
        cdef int32_t *narrow
        cdef bint is_text = False
        cdef RecordBatch batch
        cdef int64_t start = 0
        cdef object what = "the array"
        if self.table:
            check_array(root, schema, 1, "the table")
            validity = validity_of(root, "the table")
            start = root.offset
            what = (self.names[self.value],)
        elif root.length < 0:
            raise malformed(what, f"its length is {root.length}")
        length = root.length
        values = new_views(arena, length)
        nulls = fill_views(
            held, schema.children[self.value] if self.table else schema,
            root.children[self.value] if self.table else root, start, length, values, NO_VALUE,
            what, &is_text
        )
        if validity is not NULL:
            dfa_mark_nulls(values, length, validity, start, NO_VALUE)
            nulls = dfa_count_nulls(values, length, NO_VALUE)
        batch = from_columns(values, length, (arena, held))
        batch.nullable = nulls > 0
        batch.text = TEXT if is_text else BINARY
        if not self.table:
            self.note_block(batch, schema, held)
            return batch
        batch.name = self.names[self.value]
        self.note_block(batch, schema.children[self.value], held)
        if self.key >= 0:
            keys = new_views(arena, length)
            fill_views(held, schema.children[self.key], root.children[self.key], start, length,
                       keys, NULL, (self.names[self.key],), &batch.key_text)
            if validity is not NULL:
                dfa_mark_nulls(keys, length, validity, start, NULL)
            batch.columns.keys = keys
        if self.timestamp >= 0:
            batch.columns.timestamps = self.numbers(schema, root, self.timestamp, arena, True)
        if self.offset >= 0:
            batch.columns.offsets = self.numbers(schema, root, self.offset, arena, False)
        if self.partition >= 0:
            wide = self.numbers(schema, root, self.partition, arena, False)
            narrow = <int32_t *>arena.allocate(length * sizeof(int32_t))
            i = dfa_narrow(narrow, wide, length)
            if i >= 0:
                raise ValueError(f"element {i} of the column {self.names[self.partition]!r} does "
                                 f"not fit in 32 bits")
            batch.columns.partitions = narrow
        if self.metadata >= 0:
            batch.metadata_column = metadata_of(
                held, schema.children[self.metadata], root.children[self.metadata], start, length,
                (self.names[self.metadata],)
            )
        return batch

    cdef int note_block(self, RecordBatch batch, const ArrowSchema *schema, Held held) except -1:
        """Values that are all there, one behind the other, are one block."""
        if (not batch.nullable and held.count == 1 and schema.dictionary is NULL
                and kind_of(schema.format).layout in (SPLIT, FIXED)):
            batch.columns.block = held.extents[0]
            batch.total = held.extents[0].size
        return 0

    cdef const int64_t *numbers(self, const ArrowSchema *schema, const ArrowArray *root,
                                int64_t column, Arena arena, bint timed) except NULL:
        return numbers_of(
            schema.children[column], root.children[column], root.offset, root.length, arena,
            timed, (self.names[column],)
        )


@cython.final
cdef class Stream:
    """A producer's stream as an iterator of batches, of a chunk each."""
    cdef ArrowArrayStream stream         # moved here; release NULL: at its end
    cdef ArrowSchema schema              # of all chunks, released with this object
    cdef Plan plan
    cdef bint busy                       # somebody is in __next__, and may end the stream

    def __dealloc__(self):
        if self.schema.release is not NULL:
            self.schema.release(&self.schema)
        self.end()

    cdef int begin(self, object capsule, tuple wanted) except -1:
        cdef ArrowArrayStream *source = <ArrowArrayStream *>pointer_in(capsule, STREAM_NAME)
        cdef int code
        if source.release is NULL:
            raise ValueError("the Arrow stream was released already")
        self.stream = source[0]
        source.release = NULL
        if self.stream.get_schema is NULL or self.stream.get_next is NULL:
            raise ValueError("the Arrow stream is malformed: it lacks its functions")
        with nogil:
            code = self.stream.get_schema(&self.stream, &self.schema)
        if code:
            self.schema.release = NULL
            self.fail(code)
        check_schema(&self.schema)
        self.plan = Plan.of(&self.schema, wanted)
        return 0

    cdef int fail(self, int code) except -1:
        cdef const char *reason = NULL
        if self.stream.get_last_error is not NULL:
            reason = self.stream.get_last_error(&self.stream)
        message = strerror(code) if reason is NULL else text_of(reason)
        self.end()
        raise OSError(code, f"the Arrow stream failed: {message}")

    cdef int end(self) except -1:
        cdef ArrowArrayStream stream = self.stream
        self.stream.release = NULL
        if stream.release is not NULL:
            with nogil:  # the producer may wait for threads of its own that want the GIL
                stream.release(&stream)
        return 0

    cdef RecordBatch empty(self):
        """The batch of a stream without chunks."""
        cdef const ArrowSchema *schema = &self.schema
        cdef Arena arena = Arena(None)
        cdef RecordBatch batch = from_columns(new_views(arena, 0), 0, (arena,))
        if self.plan.table:
            schema = schema.children[self.plan.value]
            batch.name = self.plan.names[self.plan.value]
        if schema.dictionary is not NULL:
            schema = schema.dictionary
        batch.text = TEXT if kind_of(schema.format).text else BINARY
        return batch

    def __iter__(self):
        return self

    def __next__(self):
        if self.busy:
            raise ValueError("another thread is reading the Arrow stream")
        # To the end: who found an error releases the stream, and nobody may be in it then.
        self.busy = True
        try:
            return self.read()
        finally:
            self.busy = False

    cdef RecordBatch read(self):
        cdef Held held = Held.__new__(Held)
        cdef int code
        if self.stream.release is NULL:
            raise StopIteration
        with nogil:
            code = self.stream.get_next(&self.stream, &held.array)
        if code:
            held.array.release = NULL
            self.fail(code)
        if held.array.release is NULL:
            self.end()
            raise StopIteration
        try:
            return self.plan.batch(&self.schema, held)
        except BaseException:
            self.end()
            raise


cdef Stream open_stream(object data, tuple wanted):
    cdef Stream stream = Stream.__new__(Stream)
    stream.begin(data.__arrow_c_stream__(), wanted)
    return stream


def import_stream(data, tuple wanted=NONE):
    """Batches of the chunks of Arrow data, as they come.

    Parameters
    ----------
    data : object with ``__arrow_c_array__`` or ``__arrow_c_stream__``
    wanted : tuple of (str or None)
        Columns, in the order of ``RecordBatch.from_arrow``.

    Returns
    -------
    iterator of RecordBatch
    """
    if hasattr(data, "__arrow_c_stream__"):
        return open_stream(data, wanted)
    return iter((import_batch(data, wanted),))


def import_batch(data, tuple wanted=NONE):
    """All of some Arrow data as one batch; see `RecordBatch.from_arrow`."""
    cdef const ArrowSchema *schema
    cdef Held held
    cdef Stream stream
    export = getattr(data, "__arrow_c_array__", None)
    if export is None:
        if not hasattr(data, "__arrow_c_stream__"):
            raise TypeError(
                f"data must have __arrow_c_array__ or __arrow_c_stream__, and "
                f"{type(data).__name__} has neither"
            )
        stream = open_stream(data, wanted)
        return join_batches(list(stream) or [stream.empty()])
    capsules = export()
    if not isinstance(capsules, tuple) or len(capsules) != 2:
        raise TypeError("__arrow_c_array__ must return two capsules")
    held = take_array(capsules[1])
    schema = schema_in(capsules[0])
    return Plan.of(schema, wanted).batch(schema, held)


def join_batches(list batches):
    """One batch after the other, as one; no value is copied.

    Parameters
    ----------
    batches : list of RecordBatch

    Returns
    -------
    RecordBatch
    """
    cdef RecordBatch batch, part
    cdef Arena arena
    cdef Py_ssize_t length = 0, at = 0
    cdef df_view *values
    cdef df_view *keys = NULL
    cdef int64_t *timestamps = NULL
    cdef int64_t *offsets = NULL
    cdef int32_t *partitions = NULL
    if len(batches) == 1:
        return batches[0]
    arena = Arena(None)
    for part in batches:
        length += part.columns.length
    values = new_views(arena, length)
    batch = from_columns(values, length, (arena, tuple(batches)))
    noted = False
    texts = set()
    for part in batches:
        keys = <df_view *>part.columns.keys or keys
        timestamps = <int64_t *>part.columns.timestamps or timestamps
        offsets = <int64_t *>part.columns.offsets or offsets
        partitions = <int32_t *>part.columns.partitions or partitions
        noted = noted or part.metadata_column is not None
        batch.nullable |= part.nullable
        batch.key_text |= part.key_text
        batch.name = batch.name or part.name
        texts.add(part.text)
    if texts and BINARY not in texts:
        batch.text = TEXT if texts == {TEXT} else UNCHECKED
    if keys is not NULL:
        keys = <df_view *>zeros(arena, length, sizeof(df_view))
    if timestamps is not NULL:
        timestamps = <int64_t *>zeros(arena, length, sizeof(int64_t))
    if offsets is not NULL:
        offsets = <int64_t *>zeros(arena, length, sizeof(int64_t))
    if partitions is not NULL:
        partitions = <int32_t *>zeros(arena, length, sizeof(int32_t))
    for part in batches:
        length = part.columns.length
        memcpy(values + at, part.columns.values, length * sizeof(df_view))
        if part.columns.keys is not NULL:
            memcpy(keys + at, part.columns.keys, length * sizeof(df_view))
        if part.columns.timestamps is not NULL:
            memcpy(timestamps + at, part.columns.timestamps, length * sizeof(int64_t))
        if part.columns.offsets is not NULL:
            memcpy(offsets + at, part.columns.offsets, length * sizeof(int64_t))
        if part.columns.partitions is not NULL:
            memcpy(partitions + at, part.columns.partitions, length * sizeof(int32_t))
        at += length
    batch.columns.keys = keys
    batch.columns.timestamps = timestamps
    batch.columns.offsets = offsets
    batch.columns.partitions = partitions
    if noted:
        column = []
        for part in batches:
            column.extend(part.metadata_column or [None] * part.columns.length)
        batch.metadata_column = tuple(column)
    return batch


cdef char *zeros(Arena arena, Py_ssize_t count, Py_ssize_t size) except NULL:
    cdef char *memory = arena.allocate(count * size)
    memset(memory, 0, count * size)
    return memory


# -- Out -----------------------------------------------------------------------------------------

@cython.final
cdef class Memory:
    """What an exported struct leads to; see the head of the module."""
    cdef Arena arena                     # buffers, lists of them, children
    cdef object owner                    # of what is not in the arena

    def __cinit__(self):
        self.arena = Arena(None)


cdef void drop(void *private_data) noexcept nogil:
    """Give up a reference, in whatever thread."""
    cdef PyObject *type
    cdef PyObject *value
    cdef PyObject *traceback
    if private_data is not NULL and Py_IsInitialized():
        with gil:
            # The consumer may be on its way out with an exception, which must stay the one it is.
            PyErr_Fetch(&type, &value, &traceback)
            Py_DECREF(<object>private_data)
            PyErr_Restore(type, value, traceback)


cdef void release_array(ArrowArray *array) noexcept nogil:
    cdef int64_t i
    cdef ArrowArray *child
    cdef void *memory = array.private_data
    for i in range(array.n_children):
        child = array.children[i]
        if child.release is not NULL:  # else the consumer moved it away
            child.release(child)
    array.release = NULL
    array.private_data = NULL
    drop(memory)


cdef void release_schema(ArrowSchema *schema) noexcept nogil:
    cdef int64_t i
    cdef ArrowSchema *child
    cdef void *memory = schema.private_data
    for i in range(schema.n_children):
        child = schema.children[i]
        if child.release is not NULL:
            child.release(child)
    schema.release = NULL
    schema.private_data = NULL
    drop(memory)


cdef int set_array(ArrowArray *array, Memory memory, Py_ssize_t length, Py_ssize_t nulls,
                   list buffers, Py_ssize_t n_children) except -1:
    """Fill in a struct, which from now on has a reference to `memory`; children are zeroed."""
    cdef Py_ssize_t i
    cdef ArrowArray *children
    memset(array, 0, sizeof(ArrowArray))
    array.buffers = <const void **>zeros(memory.arena, len(buffers), sizeof(void *))
    for i in range(len(buffers)):
        array.buffers[i] = <const void *><size_t>buffers[i]
    if n_children:
        children = <ArrowArray *>zeros(memory.arena, n_children, sizeof(ArrowArray))
        array.children = <ArrowArray **>zeros(memory.arena, n_children, sizeof(void *))
        for i in range(n_children):
            array.children[i] = &children[i]
    array.length = length
    array.null_count = nulls
    array.n_buffers = len(buffers)
    array.n_children = n_children
    Py_INCREF(memory)
    array.private_data = <void *>memory
    array.release = release_array
    return 0


cdef int set_schema(ArrowSchema *schema, bytes format, bytes name, bint nullable,
                    Py_ssize_t n_children) except -1:
    cdef Py_ssize_t i
    cdef ArrowSchema *children
    cdef Memory memory = Memory()
    memset(schema, 0, sizeof(ArrowSchema))
    memory.owner = (format, name)
    schema.format = PyBytes_AS_STRING(format)
    schema.name = PyBytes_AS_STRING(name)
    schema.flags = ARROW_FLAG_NULLABLE if nullable else 0
    if n_children:
        children = <ArrowSchema *>zeros(memory.arena, n_children, sizeof(ArrowSchema))
        schema.children = <ArrowSchema **>zeros(memory.arena, n_children, sizeof(void *))
        for i in range(n_children):
            schema.children[i] = &children[i]
    schema.n_children = n_children
    Py_INCREF(memory)
    schema.private_data = <void *>memory
    schema.release = release_schema
    return 0


cdef void drop_array(object capsule) noexcept:
    cdef ArrowArray *array = <ArrowArray *>PyCapsule_GetPointer(capsule, ARRAY_NAME)
    if array.release is not NULL:  # nobody took it
        array.release(array)
    PyMem_RawFree(array)


cdef void drop_schema(object capsule) noexcept:
    cdef ArrowSchema *schema = <ArrowSchema *>PyCapsule_GetPointer(capsule, SCHEMA_NAME)
    if schema.release is not NULL:
        schema.release(schema)
    PyMem_RawFree(schema)


cdef void drop_stream(object capsule) noexcept:
    cdef ArrowArrayStream *stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, STREAM_NAME)
    if stream.release is not NULL:
        stream.release(stream)
    PyMem_RawFree(stream)


cdef object new_capsule(size_t size, const char *name, void (*drop)(object) noexcept):
    """A capsule of a zeroed struct, which it frees, and releases if nobody took it."""
    cdef void *memory = PyMem_RawCalloc(1, size)
    if memory is NULL:
        raise MemoryError("no memory for an Arrow struct")
    try:
        return PyCapsule_New(memory, name, drop)
    except BaseException:
        PyMem_RawFree(memory)
        raise


cdef bint goes_on(uint8_t status) noexcept nogil:
    return status == DF_SUCCESS or status == DF_SKIP


cdef int compare_segments(const void *one, const void *other) noexcept nogil:
    cdef size_t first = <size_t>(<const dfa_segment *>one).data
    cdef size_t second = <size_t>(<const dfa_segment *>other).data
    return (first > second) - (first < second)


@cython.final
cdef class Segments:
    """The pieces of memory that owners of a batch own, as far as they can be told.

    Sorted, and apart, but for those of more than 2 GiB: these are cut into pieces that overlap by
    half, because the place of a value in a buffer has 31 bits.
    """
    cdef dfa_segment *pieces             # [count]
    cdef Py_ssize_t count, room

    def __dealloc__(self):
        PyMem_RawFree(self.pieces)

    cdef int add(self, const char *data, Py_ssize_t size) except -1:
        cdef void *grown
        if size <= 0:
            return 0
        if self.count == self.room:
            self.room = max(2 * self.room, 8)
            grown = PyMem_RawRealloc(self.pieces, self.room * sizeof(dfa_segment))
            if grown is NULL:
                raise MemoryError("no memory to look for the memory of a batch")
            self.pieces = <dfa_segment *>grown
        self.pieces[self.count].data = data
        self.pieces[self.count].size = size
        self.pieces[self.count].used = 0
        self.pieces[self.count].index = -1
        self.count += 1
        return 0

    cdef int add_owner(self, object owner) except -1:
        cdef Py_ssize_t i
        cdef Arena arena
        cdef Held held
        cdef Py_buffer buffer
        kind = type(owner)
        if kind is Arena:
            arena = owner
            for i in range(arena.count):
                self.add(arena.loans[i].data, arena.loans[i].capacity)
        elif kind is Held:
            held = owner
            for i in range(held.count):
                self.add(held.extents[i].data, held.extents[i].size)
        elif kind is memoryview:
            PyObject_GetBuffer(owner, &buffer, PyBUF_SIMPLE)
            self.add(<const char *>buffer.buf, buffer.len)
            PyBuffer_Release(&buffer)  # the batch has the memoryview
        elif kind is RecordBatch:
            self.add_owners((<RecordBatch>owner).owners)
        elif kind is BatchResult:
            self.add_owner((<BatchResult>owner).output)
        elif kind in (tuple, list) and len(owner) and type(owner[0]) in (RecordBatch, BatchResult):
            self.add_owners(tuple(owner))
        return 0

    cdef int add_owners(self, tuple owners) except -1:
        for owner in owners:
            self.add_owner(owner)
        return 0

    cdef int sort(self) except -1:
        cdef Py_ssize_t i, kept = 0, count
        cdef dfa_segment *last
        cdef dfa_segment piece
        if self.count == 0:
            return 0
        qsort(self.pieces, self.count, sizeof(dfa_segment), compare_segments)
        for i in range(1, self.count):  # what overlaps becomes one
            last = &self.pieces[kept]
            piece = self.pieces[i]
            if <size_t>piece.data < <size_t>last.data + <size_t>last.size:
                last.size = max(last.size, (piece.data - last.data) + piece.size)
            else:
                kept += 1
                self.pieces[kept] = piece
        self.count = count = kept + 1
        for i in range(count):
            piece = self.pieces[i]
            if piece.size > most_bytes:
                self.pieces[i].size = most_bytes
                while piece.size > most_bytes:
                    piece.data += most_bytes // 2
                    piece.size -= most_bytes // 2
                    self.add(piece.data, min(piece.size, most_bytes))
        if self.count > count:
            qsort(self.pieces, self.count, sizeof(dfa_segment), compare_segments)
        return 0


@cython.final
cdef class Export:
    """Columns of a batch or of a result, for any library that reads Arrow data."""
    cdef RecordBatch batch               # the records that go on
    cdef BatchResult result              # None: a batch alone
    cdef bint every                      # a row for every record that came in
    cdef tuple columns
    cdef list names                      # by column
    cdef str type                        # of the values, or None
    cdef Memory scratch                  # of columns by row
    cdef const df_view *values           # by row, made when first asked for, or NULL
    cdef const df_view *keys
    cdef const int64_t *origins          # likewise
    cdef const int64_t *places

    def __cinit__(self, RecordBatch batch, BatchResult result, bint every, columns, type):
        self.batch = batch
        self.result = result
        self.every = every
        self.columns = check_columns(columns, RECORD_COLUMNS if result is None else RESULT_COLUMNS)
        check_type(type)
        self.type = type
        self.scratch = Memory()
        self.names = export_names(self.columns, batch.name)

    def __len__(self):
        return self.result.total if self.every else self.batch.columns.length

    def __repr__(self):
        return f"Export({len(self)} rows: {', '.join(self.names)})"

    def __arrow_c_schema__(self):
        return self.schema_capsule(self.formats(None))

    def __arrow_c_array__(self, requested_schema=None):
        cdef list formats = self.formats(requested_schema)
        cdef Py_ssize_t length = len(self)
        if self.fitting(formats, 0, length) < length:
            raise ValueError(
                f"more than {most_bytes} bytes do not fit in one array with offsets of 32 bits: "
                f"ask for a stream, or for a type that is large"
            )
        schema = self.schema_capsule(formats)
        array = new_capsule(sizeof(ArrowArray), ARRAY_NAME, drop_array)
        self.fill(<ArrowArray *>PyCapsule_GetPointer(array, ARRAY_NAME), formats, 0, length)
        return schema, array

    def __arrow_c_stream__(self, requested_schema=None):
        cdef Chunks chunks = Chunks.__new__(Chunks)
        cdef ArrowArrayStream *stream
        chunks.export = self
        chunks.formats = self.formats(requested_schema)
        capsule = new_capsule(sizeof(ArrowArrayStream), STREAM_NAME, drop_stream)
        stream = <ArrowArrayStream *>PyCapsule_GetPointer(capsule, STREAM_NAME)
        # The first chunk is made now: what is wrong with the values is then an exception here.
        chunks.prepare()
        stream.get_schema = get_schema
        stream.get_next = get_next
        stream.get_last_error = get_last_error
        Py_INCREF(chunks)
        stream.private_data = <void *>chunks
        stream.release = release_stream
        return capsule

    cdef list formats(self, object requested):
        """The types of the columns, as the C data interface writes them."""
        cdef const ArrowSchema *schema
        cdef const ArrowSchema *child
        cdef Py_ssize_t i
        found = []
        kind = self.type
        if kind is None:
            kind = "string" if self.batch.text != BINARY else "binary"
        value = TYPES[kind]
        text = TYPES[kind.replace("binary", "string")]
        binary = TYPES[kind.replace("string", "binary")]
        for column in self.columns:
            if column == "value":
                found.append(value)
            elif column == "key":
                found.append(text if self.batch.key_text else binary)
            elif column in ("status", "error"):
                found.append(text)
            else:
                found.append({"timestamp": "tsn:", "partition": "i", "metadata": "+m"}.get(
                    column, "l"))
        if requested is None:
            return found
        schema = schema_in(requested)
        if strcmp(schema.format, b"+s") != 0 or schema.dictionary is not NULL:
            raise ValueError(
                f"the schema asked for is {type_name(text_of(schema.format))}, and this is a table"
            )
        for i in range(schema.n_children):
            check_schema(schema.children[i])
        names = [text_of(schema.children[i].name) for i in range(schema.n_children)]
        if names != self.names:
            raise ValueError(f"the schema asked for has the columns {names}, here are {self.names}")
        for i in range(schema.n_children):
            child = schema.children[i]
            wish = text_of(child.format)
            if child.dictionary is not NULL or not fits(self.columns[i], wish):
                raise ValueError(
                    f"the column {names[i]!r} cannot be exported as "
                    f"{'a dictionary' if child.dictionary is not NULL else type_name(wish)}"
                )
            found[i] = wish
        return found

    cdef object schema_capsule(self, list formats):
        capsule = new_capsule(sizeof(ArrowSchema), SCHEMA_NAME, drop_schema)
        self.fill_schema(<ArrowSchema *>PyCapsule_GetPointer(capsule, SCHEMA_NAME), formats)
        return capsule

    cdef int fill_schema(self, ArrowSchema *schema, list formats) except -1:
        cdef Py_ssize_t i
        cdef ArrowSchema *child
        set_schema(schema, b"+s", b"", False, len(formats))
        for i, format in enumerate(formats):
            child = schema.children[i]
            nullable = self.every or self.columns[i] not in ("partition", "offset", "index",
                                                             "status")
            if self.columns[i] in ("index", "status"):
                nullable = False
            name = (<str>self.names[i]).encode()
            set_schema(child, (<str>format).encode(), name, nullable, format == "+m")
            if format == "+m":
                set_schema(child.children[0], b"+s", b"entries", False, 2)
                set_schema(child.children[0].children[0], b"u", b"key", False, 0)
                set_schema(child.children[0].children[1], b"u", b"value", True, 0)
        return 0

    cdef const df_view *views_of(self, str column) except? NULL:
        """A column of views, by row: the batch's own, or one in `scratch`."""
        if column == "value":
            if self.values is NULL:
                self.values = self.by_row(self.batch.columns.values, NO_VALUE)
            return self.values
        if self.keys is NULL:
            if self.batch.columns.keys is NULL:
                self.keys = <df_view *>zeros(self.scratch.arena, len(self), sizeof(df_view))
            else:
                self.keys = self.by_row(self.batch.columns.keys, NULL)
        return self.keys

    cdef const df_view *by_row(self, const df_view *source, const char *mark) except? NULL:
        cdef Py_ssize_t i, place = 0, length = len(self)
        cdef df_view *views
        if not self.every:
            return source
        views = new_views(self.scratch.arena, length)
        for i in range(length):
            views[i].data = mark
            views[i].size = 0
            if goes_on(self.result.statuses[i]):
                views[i] = source[place]
                place += 1
        return views

    cdef Py_ssize_t whole(self, list formats, Py_ssize_t start, Py_ssize_t length) except -1:
        """How many of so many rows to put in one chunk, so that values need not be copied."""
        cdef const df_view *views
        cdef const char *begin
        cdef Py_ssize_t run
        if "value" not in self.columns or formats[self.columns.index("value")][0] == "v":
            return length
        views = self.views_of("value") + start
        with nogil:
            run = dfa_adjacent(views, length, &begin)
        return run if run >= LEAST_CHUNK else length

    cdef Py_ssize_t fitting(self, list formats, Py_ssize_t start, Py_ssize_t length) except -1:
        """How many of the rows from `start` on fit in one array."""
        cdef Py_ssize_t fit
        cdef const df_view *views
        for column, format in zip(self.columns, formats, strict=True):
            if format not in ("z", "u") or column in ("status", "error"):
                continue
            views = self.views_of(column)
            with nogil:
                fit = dfa_fitting(views, start, start + length, most_bytes)
            if fit == 0 and length > 0:
                raise ValueError(
                    f"row {start} has {views[start].size} bytes in the column {column!r}, too many "
                    f"for offsets of 32 bits: ask for a type that is large"
                )
            length = fit
        return length

    cdef int fill(self, ArrowArray *array, list formats, Py_ssize_t start,
                  Py_ssize_t length) except -1:
        """Some rows, as a struct."""
        cdef Py_ssize_t i
        set_array(array, Memory(), length, 0, [0], len(formats))
        try:
            for i in range(len(formats)):
                self.fill_column(array.children[i], self.columns[i], formats[i], start, length)
        except BaseException:
            array.release(array)
            raise
        return 0

    cdef int fill_column(self, ArrowArray *array, str column, str format, Py_ssize_t start,
                         Py_ssize_t length) except -1:
        cdef Memory memory = Memory()
        cdef const df_view *views
        cdef Py_ssize_t bad
        memory.owner = self.batch
        if column in ("value", "key"):
            views = self.views_of(column) + start
            if format.endswith(("u", "U")) and self.must_check(column):
                with nogil:
                    bad = dfa_check_text(views, length)
                if bad >= 0:
                    raise ValueError(
                        f"the {column} of row {start + bad} is not UTF-8: export it as binary, "
                        f"with to_arrow(type='binary')"
                    )
                if column == "value" and self.batch.text == UNCHECKED and start == 0 and (
                        length == len(self)):
                    self.batch.text = TEXT
            self.write_views(array, memory, views, length, format,
                             NO_VALUE if column == "value" else NULL, self.batch.owners)
        elif column == "status":
            self.write_strings(array, memory, self.status_names(start, length), format)
        elif column == "error":
            self.write_strings(array, memory, self.messages(start, length), format)
        elif column == "metadata":
            self.write_metadata(array, memory, start, length)
        else:
            self.write_numbers(array, memory, column, format, start, length)
        return 0

    cdef bint must_check(self, str column) noexcept:
        return not self.batch.key_text if column == "key" else self.batch.text != TEXT

    cdef int write_views(self, ArrowArray *array, Memory memory, const df_view *views,
                         Py_ssize_t length, str format, const char *mark,
                         tuple owners) except -1:
        cdef Py_ssize_t nulls = dfa_count_nulls(views, length, mark)
        cdef char *bitmap = NULL
        cdef char *offsets
        cdef const char *data
        cdef char *copy
        cdef int64_t total
        cdef Py_ssize_t adjacent
        cdef int width = 8 if format in "ZU" else 4
        if nulls:
            bitmap = memory.arena.allocate((length + 7) // 8)
            dfa_write_bitmap(<uint8_t *>bitmap, views, length, mark)
        if format[0] == "v":
            return self.write_arrow_views(array, memory, views, length, nulls, bitmap, owners)
        offsets = memory.arena.allocate((length + 1) * width)
        with nogil:
            total = dfa_write_offsets(offsets, width, views, length)
            adjacent = dfa_adjacent(views, length, &data)
        if width == 4 and total > most_bytes:  # of values and keys there are no more: see fitting
            raise ValueError(f"a column of {total} bytes is too much for offsets of 32 bits: "
                             f"export fewer rows at a time, or as a type that is large")
        if adjacent < length or data is NULL:
            copy = memory.arena.allocate(total)
            if total:
                with nogil:
                    if mark is NULL:
                        dfa_join(copy, views, length)
                    else:
                        dfk_join(copy, views, length, EMPTY, 0)
            data = copy
        return set_array(array, memory, length, nulls,
                         [<size_t>bitmap, <size_t>offsets, <size_t>data], 0)

    cdef int write_arrow_views(self, ArrowArray *array, Memory memory, const df_view *views,
                               Py_ssize_t length, Py_ssize_t nulls, char *bitmap,
                               tuple owners) except -1:
        cdef Segments segments = Segments.__new__(Segments)
        cdef char *target = memory.arena.allocate(length * 16)
        cdef int32_t used = 0
        cdef int64_t rest = 0, size
        cdef Py_ssize_t bad, at = 0, i
        cdef int64_t *sizes
        cdef char *copy
        segments.add_owners(owners)
        segments.sort()
        with nogil:
            bad = dfa_write_views(target, views, length, segments.pieces, segments.count, &used,
                                  &rest)
        if bad >= 0:
            raise ValueError(f"row {bad} has {views[bad].size} bytes, too many for a view: ask for "
                             f"a type that is large")
        found = [(0, 0)] * used
        for i in range(segments.count):
            if segments.pieces[i].index >= 0:
                found[segments.pieces[i].index] = (
                    <size_t>segments.pieces[i].data, segments.pieces[i].used
                )
        while rest > 0:
            size = dfa_fill_size(target, at, length, most_bytes)
            if size == 0:
                raise ValueError(f"a value is larger than {most_bytes} bytes: ask for a type that "
                                 f"is large")
            copy = memory.arena.allocate(size)
            with nogil:
                at = dfa_fill(target, views, at, length, copy, size, used)
            found.append((<size_t>copy, size))
            used += 1
            rest -= size
        sizes = <int64_t *>zeros(memory.arena, used, sizeof(int64_t))
        for i in range(used):
            sizes[i] = found[i][1]
        return set_array(
            array, memory, length, nulls,
            [<size_t>bitmap, <size_t>target, *[address for address, _ in found], <size_t>sizes], 0
        )

    cdef int write_strings(self, ArrowArray *array, Memory memory, list strings,
                           str format) except -1:
        """A column of `bytes` or None."""
        cdef Py_ssize_t i, length = len(strings)
        cdef df_view *views = new_views(memory.arena, length)
        for i in range(length):
            item = strings[i]
            views[i].data = NULL if item is None else PyBytes_AS_STRING(item)
            views[i].size = 0 if item is None else PyBytes_GET_SIZE(item)
        # A short value that is alone, or the same object twice, may seem to be adjacent.
        memory.owner = (strings, self.batch)
        return self.write_views(array, memory, views, length, format, NULL, ())

    cdef list status_names(self, Py_ssize_t start, Py_ssize_t length):
        cdef Py_ssize_t i
        cdef const int64_t *origins = self.origins_of_rows()
        names = [name.encode() for name in STATUSES]
        return [names[self.result.statuses[origins[i]]] for i in range(start, start + length)]

    cdef list messages(self, Py_ssize_t start, Py_ssize_t length):
        found = [None] * length
        if self.every:
            for index, error in self.result.errors:
                if start <= index < start + length:
                    found[index - start] = str(error.message).encode("utf-8", "replace")
        return found

    cdef const int64_t *origins_of_rows(self) except NULL:
        """By row of a result: the position of its record in the input."""
        cdef Py_ssize_t i, place = 0
        cdef int64_t *origins
        if self.origins is NULL:
            origins = <int64_t *>zeros(self.scratch.arena, len(self), sizeof(int64_t))
            for i in range(self.result.total):
                if self.every or goes_on(self.result.statuses[i]):
                    origins[place] = i
                    place += 1
            self.origins = origins
        return self.origins

    cdef const int64_t *places_of_rows(self) except NULL:
        """By row: the place of its record in the batch, or -1."""
        cdef Py_ssize_t i, place = 0, length = len(self)
        cdef int64_t *places
        if self.places is NULL:
            places = <int64_t *>zeros(self.scratch.arena, length, sizeof(int64_t))
            for i in range(length):
                if self.every and not goes_on(self.result.statuses[i]):
                    places[i] = -1
                else:
                    places[i] = place
                    place += 1
            self.places = places
        return self.places

    cdef int write_numbers(self, ArrowArray *array, Memory memory, str column, str format,
                           Py_ssize_t start, Py_ssize_t length) except -1:
        cdef const df_batch *columns = &self.batch.columns
        cdef const int64_t *places
        cdef const int64_t *wide = NULL
        cdef const int32_t *narrow = NULL
        cdef int64_t *numbers = <int64_t *>zeros(memory.arena, length, sizeof(int64_t))
        cdef uint8_t *bitmap = <uint8_t *>zeros(memory.arena, (length + 7) // 8, 1)
        cdef int32_t *short_numbers
        cdef Py_ssize_t i, nulls = 0
        cdef bint timed = column == "timestamp", there
        if column == "index":
            memcpy(numbers, self.origins_of_rows() + start, length * sizeof(int64_t))
            return set_array(array, memory, length, 0, [0, <size_t>numbers], 0)
        if column == "partition":
            narrow = columns.partitions
        else:
            wide = columns.timestamps if timed else columns.offsets
        places = self.places_of_rows() + start
        for i in range(length):
            there = places[i] >= 0
            if there and wide is not NULL:
                numbers[i] = wide[places[i]]
            elif there and narrow is not NULL:
                numbers[i] = narrow[places[i]]
            if timed and numbers[i] == 0:  # it was not given
                there = False
            nulls += not there
            bitmap[i >> 3] |= <uint8_t>(there << (i & 7))
        if format == "i":
            short_numbers = <int32_t *>zeros(memory.arena, length, sizeof(int32_t))
            for i in range(length):
                short_numbers[i] = <int32_t>numbers[i]
            numbers = <int64_t *>short_numbers  # its address is all that is used from here on
        return set_array(array, memory, length, nulls,
                         [<size_t>bitmap if nulls else 0, <size_t>numbers], 0)

    cdef int write_metadata(self, ArrowArray *array, Memory memory, Py_ssize_t start,
                            Py_ssize_t length) except -1:
        """A map from strings to strings by row."""
        cdef int32_t *offsets = <int32_t *>zeros(memory.arena, length + 1, sizeof(int32_t))
        cdef uint8_t *bitmap = <uint8_t *>zeros(memory.arena, (length + 7) // 8, 1)
        cdef Py_ssize_t i, nulls = 0
        cdef const int64_t *places = self.places_of_rows() + start
        cdef tuple column = self.batch.metadata_column
        keys, values = [], []
        for i in range(length):
            metadata = None if column is None or places[i] < 0 else column[places[i]]
            offsets[i] = <int32_t>len(keys)
            if metadata is None:
                nulls += 1
                continue
            bitmap[i >> 3] |= <uint8_t>(1 << (i & 7))
            for key, value in metadata.items():
                if type(key) is not str or type(value) is not str:
                    raise TypeError(
                        f"the metadata of row {start + i} has {key!r}: {type(value).__name__}; "
                        f"what is exported must be strings"
                    )
                keys.append(key.encode())
                values.append(value.encode())
        offsets[length] = <int32_t>len(keys)
        set_array(array, memory, length, nulls,
                  [<size_t>bitmap if nulls else 0, <size_t>offsets], 1)
        set_array(array.children[0], Memory(), len(keys), 0, [0], 2)
        self.write_strings(array.children[0].children[0], Memory(), keys, "u")
        self.write_strings(array.children[0].children[1], Memory(), values, "u")
        return 0


@cython.final
cdef class Chunks:
    """An export as a stream: as many chunks as offsets of 32 bits make necessary, mostly one."""
    cdef Export export
    cdef list formats
    cdef Py_ssize_t start                # of the next chunk
    cdef ArrowArray ready                # the next chunk, or release NULL
    cdef bint done
    cdef bint busy                       # somebody makes a chunk
    cdef bytes error                     # of the last call, or None

    def __dealloc__(self):
        if self.ready.release is not NULL:
            self.ready.release(&self.ready)

    cdef int prepare(self) except -1:
        cdef Py_ssize_t length, total = len(self.export)
        if self.start == total and total > 0:
            self.done = True
            return 0
        length = self.export.whole(self.formats, self.start, total - self.start)
        length = self.export.fitting(self.formats, self.start, length)
        self.export.fill(&self.ready, self.formats, self.start, length)
        self.start += length
        self.done = total == 0
        return 0

    cdef int next(self, ArrowArray *out) except -1:
        if self.busy:
            raise ValueError("another thread is reading the Arrow stream")
        self.busy = True
        try:
            if self.ready.release is NULL and not self.done:
                self.prepare()
        finally:
            self.busy = False
        out[0] = self.ready
        self.ready.release = NULL
        return 0

    cdef int note(self, object error) noexcept:
        """Keep the message of what was raised; never 0, whatever else happens."""
        self.error = None
        try:
            message = str(error) or type(error).__name__
            self.error = message.encode("utf-8", "replace")
        except BaseException:
            pass  # no memory for a message: it fails without one
        return ENOMEM if isinstance(error, MemoryError) else EINVAL


cdef int get_schema(ArrowArrayStream *stream, ArrowSchema *out) noexcept nogil:
    with gil:
        return get_schema_with_gil(<Chunks>stream.private_data, out)


cdef int get_schema_with_gil(Chunks chunks, ArrowSchema *out) noexcept:
    out.release = NULL
    try:
        chunks.export.fill_schema(out, chunks.formats)
        return 0
    except BaseException as error:  # of a signal, too: the consumer would see success
        if out.release is not NULL:
            out.release(out)
        return chunks.note(error)


cdef int get_next(ArrowArrayStream *stream, ArrowArray *out) noexcept nogil:
    with gil:
        return get_next_with_gil(<Chunks>stream.private_data, out)


cdef int get_next_with_gil(Chunks chunks, ArrowArray *out) noexcept:
    out.release = NULL
    try:
        chunks.next(out)
        return 0
    except BaseException as error:
        return chunks.note(error)


cdef const char *get_last_error(ArrowArrayStream *stream) noexcept nogil:
    with gil:
        error = (<Chunks>stream.private_data).error
        # The bytes live as long as the stream, or until its next call.
        return NULL if error is None else PyBytes_AS_STRING(error)


cdef void release_stream(ArrowArrayStream *stream) noexcept nogil:
    cdef void *chunks = stream.private_data
    stream.release = NULL
    stream.private_data = NULL
    drop(chunks)
