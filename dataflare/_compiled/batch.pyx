"""Records as columns of views.

Design
------
a. A batch is an array of (pointer, length) pairs for the values, the same for the keys, and plain
   arrays for the numbers. A column that no record uses does not exist.
b. Making, slicing and filtering a batch copies pairs, never bytes.
c. A batch never changes. What its pointers lead to is kept alive by `owners`: the objects that came
   in (in a tuple of the batch's own: the caller's list may change), exports of buffers (so that a
   `bytearray` cannot be resized, nor a `mmap` closed, meanwhile), or an arena.
d. Values of one contiguous piece of memory say so (`columns.block`): a kernel may then work on all
   of them at once.
"""
cimport cython
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from dataflare._compiled.kernels cimport (
    dfk_count, dfk_join, dfk_split, dfk_total, select_from_environment
)
from dataflare._compiled.record cimport view_of

from dataflare._later import Later
from dataflare.units import counted

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    int PyBytes_CheckExact(PyObject *item) nogil
    Py_ssize_t PyNumber_AsSsize_t(object number, object error) except? -1
    const Py_ssize_t PY_SSIZE_T_MAX

arrow = Later("dataflare._compiled.arrow")
cdef object import_batch = None          # of that module, once it was needed

cdef char[1] no_value = [0]
NO_VALUE = no_value

cdef Py_ssize_t SHOWN_VALUES = 3
cdef Py_ssize_t SHOWN_BYTES = 60


cdef df_view *new_views(Arena arena, Py_ssize_t length) except NULL:
    # An array whose rows are all the same one in memory may have any number of them.
    if length > PY_SSIZE_T_MAX // <Py_ssize_t>sizeof(df_view):
        raise MemoryError(f"no memory for {length} values")
    return <df_view *>arena.allocate(length * <Py_ssize_t>sizeof(df_view))


cdef object hold(object item, df_view *view, str what, Py_ssize_t index):
    """Fill `view` from anything a value may be; what is returned keeps the bytes in place."""
    if PyUnicode_Check(item):
        try:
            view.data = PyUnicode_AsUTF8AndSize(item, &view.size)
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {index} cannot be encoded as UTF-8: {error}") from None
        return item
    if not PyObject_CheckBuffer(item):
        raise TypeError(
            f"{what} {index} must be bytes, str or bytes-like, not {type(item).__name__}"
        )
    if type(item) is not bytes:
        # A memoryview of our own, because the caller can release theirs.
        item = memoryview(item)
        if not item.c_contiguous:
            raise TypeError(f"{what} {index} must be contiguous in memory")
    view_of(item, view)
    return item


cdef tuple as_tuple(object items, str what):
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        raise TypeError(
            f"{what} must be a sequence of values, not one {type(items).__name__} "
            f"(RecordBatch.from_lines splits a buffer into lines)"
        )
    try:
        return tuple(items)
    except TypeError:
        if hasattr(type(items), "__iter__"):
            raise
        raise TypeError(
            f"{what} must be a sequence of values, not {type(items).__name__}"
        ) from None


cdef object number_column(object numbers, str what, object dtype, Py_ssize_t length):
    if numbers is None:
        return None
    column = np.asarray(numbers)
    if column.size == 0:
        column = column.astype(dtype)
    if column.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers that fit in {np.dtype(dtype).itemsize * 8} bits")
    if column.shape != (length,):
        raise ValueError(f"{what} has the shape {column.shape}, there are {length} values")
    bounds = np.iinfo(dtype)
    if length and not (bounds.min <= int(column.min()) and int(column.max()) <= bounds.max):
        raise ValueError(f"{what} must be integers that fit in {bounds.bits} bits")
    return np.require(column, dtype, ["C", "ALIGNED"])


cdef RecordBatch from_columns(df_view *values, Py_ssize_t length, tuple owners):
    """A batch over views that `owners` keep valid."""
    cdef RecordBatch batch = RecordBatch.__new__(RecordBatch)
    batch.columns.length = length
    batch.columns.values = values
    batch.owners = owners
    batch.total = -1
    return batch


cdef RecordBatch from_objects(tuple objects, MemoryPool pool):
    """A batch of `bytes` objects."""
    cdef Py_ssize_t i, length = len(objects), total = 0
    cdef Arena arena = Arena(pool)
    cdef df_view *values = new_views(arena, length)
    cdef PyObject *item
    for i in range(length):
        item = <PyObject *>PyTuple_GET_ITEM(objects, i)
        values[i].data = PyBytes_AS_STRING(<object>item)
        values[i].size = PyBytes_GET_SIZE(<object>item)
        total += values[i].size
    cdef RecordBatch batch = from_columns(values, length, (arena, objects))
    batch.objects = objects
    batch.total = total
    return batch


@cython.final
cdef class RecordBatch:
    """An immutable sequence of records, stored as columns of views on memory that others own.

    Make one with `from_values`, `from_records`, `from_lines` or `from_arrow`. ``batch[i]`` is a
    `PluginRecord` whose value is `bytes`; ``batch[a:b]`` is a batch that shares all memory with
    this one.
    """

    def __init__(self):
        raise TypeError(
            "make a batch with RecordBatch.from_values, from_records, from_lines or from_arrow"
        )

    @staticmethod
    def from_values(values, keys=None, *, timestamps=None, partitions=None, offsets=None,
                    metadata=None):
        """Records from their values, which are not copied.

        Parameters
        ----------
        values : iterable of bytes, str or bytes-like, or numpy.ndarray
            A string counts as its UTF-8 form. Of an array of type ``S`` each element is a value
            (without trailing NULs, as NumPy has it), of a 2-D array of uint8 each row is one.
            A list may be changed afterwards, a buffer cannot be resized while the batch lives.
        keys : iterable of bytes, str, bytes-like or None, optional
        timestamps : array_like of int, shape (n,), optional
            Nanoseconds since the epoch; 64 bits each.
        partitions : array_like of int, shape (n,), optional
            32 bits each.
        offsets : array_like of int, shape (n,), optional
            64 bits each.
        metadata : iterable of Mapping or None, optional

        Returns
        -------
        RecordBatch

        Raises
        ------
        TypeError
            A value is of another type; the message has its index.
        ValueError
            A string that UTF-8 cannot express, a column of another length than `values`, a
            number that does not fit.
        """
        cdef RecordBatch batch
        if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
            batch = from_array(values)
        else:
            batch = from_list(values) if type(values) is list else None
            if batch is None:
                batch = from_sequence(as_tuple(values, "values"))
        cdef Py_ssize_t length = batch.columns.length
        if keys is not None:
            set_keys(batch, as_tuple(keys, "keys"))
        set_numbers(
            batch,
            number_column(timestamps, "timestamps", np.int64, length),
            number_column(offsets, "offsets", np.int64, length),
            number_column(partitions, "partitions", np.int32, length),
        )
        if metadata is not None:
            batch.metadata_column = metadata_tuple(as_tuple(metadata, "metadata"), length)
        return batch

    @staticmethod
    def from_records(records):
        """Records from `PluginRecord` objects; values and keys are not copied.

        Parameters
        ----------
        records : iterable of PluginRecord

        Returns
        -------
        RecordBatch

        Raises
        ------
        TypeError
            An item is something else; the message has its index.
        """
        cdef tuple items = as_tuple(records, "records")
        cdef Py_ssize_t i, length = len(items)
        cdef PluginRecord record
        cdef bint keyed = False, timed = False, placed = False, numbered = False, noted = False
        for i in range(length):
            item = items[i]
            if not isinstance(item, PluginRecord):
                raise TypeError(f"record {i} must be a PluginRecord, not {type(item).__name__}")
            record = item
            keyed |= record.key is not None
            timed |= record.timestamp != 0
            placed |= record.partition != 0
            numbered |= record.offset != 0
            noted |= record.metadata is not None
        return RecordBatch.from_values(
            [(<PluginRecord>item).value for item in items],
            [(<PluginRecord>item).key for item in items] if keyed else None,
            timestamps=[(<PluginRecord>item).timestamp for item in items] if timed else None,
            partitions=[(<PluginRecord>item).partition for item in items] if placed else None,
            offsets=[(<PluginRecord>item).offset for item in items] if numbered else None,
            metadata=[(<PluginRecord>item).metadata for item in items] if noted else None,
        )

    @staticmethod
    def from_lines(buffer, *, newline=None, MemoryPool pool=None):
        r"""Records from the lines of a buffer, which is not copied.

        Parameters
        ----------
        buffer : bytes-like
            `bytes`, a `mmap`, a NumPy array of bytes, a pool `Buffer`, ...
        newline : bytes, optional
            ``b"\n"`` or ``b"\r\n"``; if not given, whichever ends the first line. It is not part
            of a value. Under ``b"\r\n"`` a bare ``\n`` ends a line too.
        pool : MemoryPool, optional
            Where the column of views is kept.

        Returns
        -------
        RecordBatch

        Raises
        ------
        TypeError
            The buffer is not bytes-like, or not contiguous in memory.
        ValueError
            `newline` is something else.

        Notes
        -----
        A last line without a newline is a record, an empty buffer has none.
        """
        if isinstance(buffer, str):
            raise TypeError("a buffer of lines must be bytes-like, not str")
        # A memoryview of our own, because the caller can release theirs.
        memory = memoryview(buffer)
        if not memory.c_contiguous:
            raise TypeError("a buffer of lines must be contiguous in memory")
        if newline not in (None, b"\n", b"\r\n"):
            raise ValueError(f"newline must be b'\\n' or b'\\r\\n', not {newline!r}")
        cdef df_view block
        view_of(memory, &block)
        cdef bint crlf = newline == b"\r\n" if newline is not None else first_is_crlf(block)
        cdef Arena arena = Arena(pool)
        cdef Py_ssize_t length
        with nogil:
            length = dfk_count(block.data, block.size, c"\n")
        if block.size and block.data[block.size - 1] != c"\n":
            length += 1
        cdef df_view *values = new_views(arena, length)
        with nogil:
            length = dfk_split(block.data, block.size, crlf, values, length)
        cdef RecordBatch batch = from_columns(values, length, (arena, memory))
        batch.columns.block = block
        # Somebody may write to the buffer meanwhile: only what the views say can be relied upon.
        if length == 0:
            batch.total = 0
        elif not crlf:
            batch.total = values[length - 1].data + values[length - 1].size - block.data - (
                length - 1)
        return batch

    @staticmethod
    def from_arrow(data, *, value=None, key=None, timestamp=None, partition=None, offset=None,
                   metadata=None):
        """Records from Arrow data of any library; values and keys are not copied.

        Parameters
        ----------
        data : object with ``__arrow_c_array__`` or ``__arrow_c_stream__``
            An array of values, or a table or struct with a column of them; in chunks, too. Values
            are binary or strings, with offsets of 32 or 64 bits or as views, binary of a fixed
            size, or any of these in a dictionary.
        value : str, optional
            The name of the column of values; if not given, the only column, or the one named
            ``value``.
        key : str, optional
            The name of a column of the same types; null: the record has no key.
        timestamp : str, optional
            Of a column of timestamps of any unit, or of integers: nanoseconds.
        partition, offset : str, optional
            Of columns of integers.
        metadata : str, optional
            Of a column of maps, or of structs, from strings to strings or binary.

        Returns
        -------
        RecordBatch
            It owns the Arrow data, which is released when nothing refers to it any more.

        Raises
        ------
        TypeError
            `data` is no Arrow data, or a column has another type.
        ValueError
            There is no such column, a number does not fit, or the data is malformed.
        OSError
            A stream failed.

        Notes
        -----
        A null value makes a record without a value: `nulls` tells which, the record's ``value`` is
        empty, and no plugin sees it: it is skipped. A null number is 0.
        """
        global import_batch
        if import_batch is None:
            import_batch = arrow.import_batch
        return import_batch(data, (value, key, timestamp, partition, offset, metadata))

    def to_arrow(self, columns=("value",), *, type=None):
        """Some columns as a table for any library that reads Arrow data.

        Parameters
        ----------
        columns : sequence of str
            Of ``value``, ``key``, ``timestamp``, ``partition``, ``offset`` and ``metadata``. The
            values have the name of the column that they came from.
        type : str, optional
            Of values: ``binary``, ``string``, ``large_binary``, ``large_string``, ``binary_view``
            or ``string_view``. If not given, ``string`` if they came as strings, else ``binary``.
            Keys are of the same kind, as strings if they came as strings.

        Returns
        -------
        Export
            Has ``__arrow_c_schema__``, ``__arrow_c_array__`` and ``__arrow_c_stream__``.

        Raises
        ------
        ValueError
            There is no such column or type.
        """
        return arrow.Export(self, None, False, columns, type)

    def __arrow_c_schema__(self):
        return self.to_arrow().__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema=None):
        return self.to_arrow().__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema=None):
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    index = Sequence.index
    count = Sequence.count

    def __len__(self):
        return self.columns.length

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            start, stop, step = index.indices(self.columns.length)
            if step == 1:
                return self.cut(start, max(start, stop))
            return pick(self, range(start, stop, step))
        i = PyNumber_AsSsize_t(index, IndexError)
        if i < 0:
            i += self.columns.length
        if not 0 <= i < self.columns.length:
            raise IndexError(f"record {index} of a batch of {self.columns.length}")
        return self.record_at(i)

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.columns.length):
            yield self.record_at(i)

    def __repr__(self):
        cdef Py_ssize_t i, length = self.columns.length
        values = []
        for i in range(min(length, SHOWN_VALUES)):
            size = self.columns.values[i].size
            raw = self.columns.values[i].data[:min(size, SHOWN_BYTES)]
            values.append(repr(raw) + ("..." if size > SHOWN_BYTES else ""))
        if length > SHOWN_VALUES:
            values.append("...")
        records, size = counted(length, "record"), counted(self.nbytes, "byte")
        return f"RecordBatch({records}, {size}: [{', '.join(values)}])"

    def __reduce__(self):
        return _batch, (
            self.to_pylist(), self.keys, self.timestamps, self.partitions, self.offsets,
            self.metadata and [None if m is None else dict(m) for m in self.metadata],
            self.nulls, self.text, self.key_text, self.name,
        )

    def take(self, indices):
        """The records at some places, in that order; no value is copied.

        Parameters
        ----------
        indices : sequence of int
            From 0 on; the same one may come more than once.

        Returns
        -------
        RecordBatch

        Raises
        ------
        IndexError
            There is no record at one of them.
        """
        chosen = list(indices)
        for index in chosen:
            if not 0 <= index < self.columns.length:
                raise IndexError(f"record {index} of a batch of {self.columns.length}")
        return pick(self, chosen)

    def to_pylist(self):
        """The values.

        Returns
        -------
        list of bytes
        """
        cdef Py_ssize_t i, length = self.columns.length
        if self.objects is not None:
            return list(self.objects[self.shift:self.shift + length])
        return [self.value_at(i) for i in range(length)]

    def to_lines(self, bytes newline not None=b"\n"):
        """Every value followed by a newline, as one piece.

        Parameters
        ----------
        newline : bytes

        Returns
        -------
        bytes-like
            A read-only view without a copy where the values stand in memory just so already.
        """
        cdef const df_view *values = self.columns.values
        cdef Py_ssize_t length = self.columns.length
        cdef const char *end = PyBytes_AS_STRING(newline)
        cdef Py_ssize_t width = PyBytes_GET_SIZE(newline)
        cdef Py_ssize_t size = self.size_in_bytes() + length * width
        cdef char *target
        cdef bint joined
        if length == 0:
            return b""
        if self.columns.block.data is not NULL:
            with nogil:
                joined = is_joined(&self.columns, end, width)
            if joined:
                return memoryview(Piece.over(self, values[0].data, size))
        lines = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AS_STRING(lines)
        with nogil:
            dfk_join(target, values, length, end, width)
        return lines

    @property
    def nulls(self):
        """numpy.ndarray of bool, shape (n,), or None: Which records have no value; None: all do."""
        cdef Py_ssize_t i
        if not self.count_nulls():
            return None
        return np.array(
            [self.columns.values[i].data == NO_VALUE for i in range(self.columns.length)], bool
        )

    @property
    def nbytes(self):
        """int: The sum of the sizes of the values."""
        return self.size_in_bytes()

    @property
    def keys(self):
        """list of (bytes or None), or None: The keys; None if no record has one."""
        cdef const df_view *keys = self.columns.keys
        cdef Py_ssize_t i
        if keys is NULL:
            return None
        return [
            None if keys[i].data is NULL else keys[i].data[:keys[i].size]
            for i in range(self.columns.length)
        ]

    @property
    def timestamps(self):
        """numpy.ndarray of int64, shape (n,), or None: Nanoseconds; None if no record has one."""
        return self.numbers(self.columns.timestamps, np.int64)

    @property
    def offsets(self):
        """numpy.ndarray of int64, shape (n,), or None: By record; None if no record has one."""
        return self.numbers(self.columns.offsets, np.int64)

    @property
    def partitions(self):
        """numpy.ndarray of int32, shape (n,), or None: By record; None if no record has one."""
        return self.numbers(self.columns.partitions, np.int32)

    @property
    def metadata(self):
        """list of (Mapping or None), or None: By record; None if no record has any."""
        return None if self.metadata_column is None else list(self.metadata_column)

    cdef object numbers(self, const void *column, object dtype):
        if column is NULL:
            return None
        cdef Py_ssize_t size = self.columns.length * np.dtype(dtype).itemsize
        if size == 0:
            return np.frombuffer(b"", dtype)
        return np.frombuffer(Piece.over(self, <const char *>column, size), dtype)

    cdef Py_ssize_t count_nulls(self) noexcept:
        cdef Py_ssize_t i, count = 0
        if self.nullable:
            for i in range(self.columns.length):
                count += self.columns.values[i].data == NO_VALUE
        return count

    cdef Py_ssize_t size_in_bytes(self) noexcept:
        if self.total < 0:
            self.total = dfk_total(self.columns.values, self.columns.length)
        return self.total

    cdef bytes value_at(self, Py_ssize_t index):
        if self.objects is not None:
            return self.objects[self.shift + index]
        cdef const df_view *value = &self.columns.values[index]
        return PyBytes_FromStringAndSize(value.data, value.size)

    cdef PluginRecord record_at(self, Py_ssize_t index):
        cdef PluginRecord record = PluginRecord.__new__(PluginRecord)
        cdef const df_batch *columns = &self.columns
        record.value = self.value_at(index)
        if columns.keys is not NULL and columns.keys[index].data is not NULL:
            record.key = columns.keys[index].data[:columns.keys[index].size]
        if self.metadata_column is not None:
            record.metadata = self.metadata_column[index]
        if columns.timestamps is not NULL:
            record.timestamp = columns.timestamps[index]
        if columns.offsets is not NULL:
            record.offset = columns.offsets[index]
        if columns.partitions is not NULL:
            record.partition = columns.partitions[index]
        return record

    cdef RecordBatch cut(self, Py_ssize_t start, Py_ssize_t stop):
        """The records from `start` up to `stop`, sharing every column."""
        cdef RecordBatch part = RecordBatch.__new__(RecordBatch)
        cdef df_batch *columns = &part.columns
        cdef const char *end
        columns[0] = self.columns
        columns.length = stop - start
        columns.values += start
        if columns.keys is not NULL:
            columns.keys += start
        if columns.timestamps is not NULL:
            columns.timestamps += start
        if columns.offsets is not NULL:
            columns.offsets += start
        if columns.partitions is not NULL:
            columns.partitions += start
        if columns.block.data is not NULL and columns.length > 0:
            # The block shrinks with the records: up to where the next value begins.
            end = columns.block.data + columns.block.size
            if stop < self.columns.length:
                end = self.columns.values[stop].data
            columns.block.data = columns.values[0].data
            columns.block.size = end - columns.block.data
        part.owners = self.owners
        part.objects = self.objects
        part.shift = self.shift + start
        if self.metadata_column is not None:
            part.metadata_column = self.metadata_column[start:stop]
        part.total = self.total if columns.length == self.columns.length else -1
        part.nullable = self.nullable
        part.text = self.text
        part.key_text = self.key_text
        part.name = self.name
        return part

    cdef bint has_more_columns(self) noexcept:
        """Whether there is any column besides the values."""
        return (
            self.columns.keys is not NULL or self.columns.timestamps is not NULL
            or self.columns.offsets is not NULL or self.columns.partitions is not NULL
            or self.metadata_column is not None
        )

    cdef RecordBatch carry(self, RecordBatch source, const Py_ssize_t *chosen):
        """Take everything but the values over from `source`; record i comes from chosen[i].

        `chosen` NULL: record by record the same, so that the columns are shared.
        """
        cdef df_batch *columns = &self.columns
        cdef const df_batch *given = &source.columns
        cdef Py_ssize_t i, length = columns.length
        cdef Arena arena
        cdef df_view *keys
        cdef int64_t *numbers
        cdef int32_t *partitions
        self.name = source.name
        if source.text != BINARY:
            self.text = UNCHECKED
        if not source.has_more_columns():
            return self
        self.key_text = source.key_text
        if chosen is NULL:
            columns.keys = given.keys
            columns.timestamps = given.timestamps
            columns.offsets = given.offsets
            columns.partitions = given.partitions
            self.metadata_column = source.metadata_column
            self.owners += source.owners
            return self
        arena = Arena(None)
        if given.keys is not NULL:
            keys = new_views(arena, length)
            for i in range(length):
                keys[i] = given.keys[chosen[i]]
            columns.keys = keys
            self.owners += source.owners
        if given.timestamps is not NULL:
            numbers = <int64_t *>arena.allocate(length * 8)
            for i in range(length):
                numbers[i] = given.timestamps[chosen[i]]
            columns.timestamps = numbers
        if given.offsets is not NULL:
            numbers = <int64_t *>arena.allocate(length * 8)
            for i in range(length):
                numbers[i] = given.offsets[chosen[i]]
            columns.offsets = numbers
        if given.partitions is not NULL:
            partitions = <int32_t *>arena.allocate(length * 4)
            for i in range(length):
                partitions[i] = given.partitions[chosen[i]]
            columns.partitions = partitions
        if source.metadata_column is not None:
            self.metadata_column = tuple(
                [source.metadata_column[chosen[i]] for i in range(length)]
            )
        self.owners += (arena,)
        return self


@cython.final
cdef class Piece:
    """Exports a piece of a batch's memory, read-only, and keeps the batch alive meanwhile."""

    @staticmethod
    cdef Piece over(object owner, const char *data, Py_ssize_t size):
        cdef Piece piece = Piece.__new__(Piece)
        piece.owner = owner
        piece.data = data
        piece.size = size
        return piece

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.size, 1, flags)


cdef extern from "Python.h":
    int PyBuffer_FillInfo(Py_buffer *view, object exporter, void *buf, Py_ssize_t size,
                          int readonly, int flags) except -1


cdef bint first_is_crlf(df_view block) noexcept:
    cdef const char *found = <const char *>memchr(block.data, 10, <size_t>block.size)
    return found is not NULL and found > block.data and (found - 1)[0] == c"\r"


cdef extern from "string.h" nogil:
    const void *memchr(const void *data, int byte, size_t size)


cdef bint is_joined(const df_batch *batch, const char *end, Py_ssize_t width) noexcept nogil:
    """Whether each value is followed by `end`, and that by the next value, inside the block."""
    cdef const df_view *values = batch.values
    cdef const char *next = values[0].data
    cdef const char *limit = batch.block.data + batch.block.size
    cdef Py_ssize_t i
    for i in range(batch.length):
        if values[i].data != next:
            return False
        next += values[i].size
        if limit - next < width or memcmp(next, end, <size_t>width) != 0:
            return False
        next += width
    return True


cdef RecordBatch from_list(list items):
    """A batch of a list of nothing but `bytes`, else None; one pass, for the sake of the cache."""
    cdef Py_ssize_t i, length = len(items), total = 0
    cdef Arena arena = Arena(None)
    cdef df_view *values = new_views(arena, length)
    cdef tuple objects = PyTuple_New(length)
    cdef PyObject *item
    if len(items) != length:
        return None  # the garbage collector ran for the new tuple, and with it what changes lists
    for i in range(length):
        item = <PyObject *>PyList_GET_ITEM(items, i)
        if not PyBytes_CheckExact(item):
            return None
        Py_INCREF(<object>item)
        PyTuple_SET_ITEM(objects, i, <object>item)
        values[i].data = PyBytes_AS_STRING(<object>item)
        values[i].size = PyBytes_GET_SIZE(<object>item)
        total += values[i].size
    cdef RecordBatch batch = from_columns(values, length, (arena, objects))
    batch.objects = objects
    batch.total = total
    return batch


cdef RecordBatch from_sequence(tuple items):
    cdef Py_ssize_t i, length = len(items), total = 0
    cdef Arena arena = Arena(None)
    cdef df_view *values = new_views(arena, length)
    cdef PyObject *item
    cdef list held = None
    for i in range(length):
        item = <PyObject *>PyTuple_GET_ITEM(items, i)
        if PyBytes_CheckExact(item):
            values[i].data = PyBytes_AS_STRING(<object>item)
            values[i].size = PyBytes_GET_SIZE(<object>item)
        else:
            if held is None:
                held = []
            held.append(hold(<object>item, &values[i], "value", i))
        total += values[i].size
    cdef RecordBatch batch = from_columns(values, length, (arena, items, held))
    if held is None:
        batch.objects = items
    batch.total = total
    return batch


cdef RecordBatch from_array(object array):
    """The elements of an `S` array, or the rows of a uint8 array, where they are."""
    cdef bint rows = array.dtype == np.uint8
    if not rows and array.dtype.kind != "S":
        raise TypeError(
            f"an array of values must be of bytes, strings or uint8, not of {array.dtype}"
        )
    if rows and array.ndim != 2:
        raise ValueError(
            "of a uint8 array each row is a value, so it must have two dimensions "
            "(RecordBatch.from_lines splits one with a single dimension into lines)"
        )
    if not rows and array.ndim != 1:
        raise ValueError(f"an array of values must have one dimension, not {array.ndim}")
    if rows and array.shape[1] > 1 and array.strides[1] != 1:
        array = np.ascontiguousarray(array)
    cdef Py_ssize_t i, length = array.shape[0]
    cdef Py_ssize_t stride = array.strides[0]
    cdef Py_ssize_t width = array.shape[1] if rows else array.dtype.itemsize
    cdef const char *data = <const char *><size_t>array.__array_interface__["data"][0]
    cdef Arena arena = Arena(None)
    cdef df_view *values = new_views(arena, length)
    cdef Py_ssize_t size
    for i in range(length):
        size = width
        if not rows:
            while size > 0 and data[i * stride + size - 1] == 0:
                size -= 1
        values[i].data = data + i * stride
        values[i].size = size
    # The export keeps the array from being resized.
    cdef RecordBatch batch = from_columns(values, length, (arena, memoryview(array)))
    if length and stride >= width:
        batch.columns.block.data = data
        batch.columns.block.size = (length - 1) * stride + width
    return batch


cdef int set_keys(RecordBatch batch, tuple items) except -1:
    cdef Py_ssize_t i, length = batch.columns.length
    if len(items) != length:
        raise ValueError(f"keys has the length {len(items)}, there are {length} values")
    cdef Arena arena = Arena(None)
    cdef df_view *keys = new_views(arena, length)
    held = []
    for i in range(length):
        if items[i] is None:
            keys[i].data = NULL
            keys[i].size = 0
        else:
            held.append(hold(items[i], &keys[i], "key", i))
    batch.columns.keys = keys
    batch.owners += (arena, held)
    return 0


cdef int set_numbers(RecordBatch batch, object timestamps, object offsets,
                     object partitions) except -1:
    for column in (timestamps, offsets, partitions):
        if column is not None:
            batch.owners += (memoryview(column),)
    if timestamps is not None:
        batch.columns.timestamps = <const int64_t *>address(timestamps)
    if offsets is not None:
        batch.columns.offsets = <const int64_t *>address(offsets)
    if partitions is not None:
        batch.columns.partitions = <const int32_t *>address(partitions)
    return 0


cdef const void *address(object array) except? NULL:
    return <const void *><size_t>array.__array_interface__["data"][0]


cdef tuple metadata_tuple(tuple items, Py_ssize_t length):
    if len(items) != length:
        raise ValueError(f"metadata has the length {len(items)}, there are {length} values")
    for i, item in enumerate(items):
        if item is not None and not isinstance(item, Mapping):
            raise TypeError(f"metadata {i} must be a mapping, not {type(item).__name__}")
    return tuple([
        item if item is None or type(item) is MappingProxyType else MappingProxyType(item)
        for item in items
    ])


cdef RecordBatch pick(RecordBatch source, object indices):
    """The records at some indices, in that order."""
    cdef Py_ssize_t i, length = len(indices)
    cdef Arena arena = Arena(None)
    cdef df_view *values = new_views(arena, length)
    cdef Py_ssize_t *chosen = <Py_ssize_t *>arena.allocate(length * sizeof(Py_ssize_t))
    for i in range(length):
        chosen[i] = indices[i]
        values[i] = source.columns.values[chosen[i]]
    cdef RecordBatch batch = from_columns(values, length, (arena, *source.owners))
    if source.objects is not None:
        batch.objects = tuple([source.objects[source.shift + chosen[i]] for i in range(length)])
    batch.carry(source, chosen)
    batch.nullable = source.nullable
    batch.text = source.text
    return batch


def _batch(values, keys, timestamps, partitions, offsets, metadata, nulls=None, text=BINARY,
           key_text=False, name=None):
    """Rebuild a pickled batch."""
    cdef RecordBatch batch = RecordBatch.from_values(
        values, keys, timestamps=timestamps, partitions=partitions, offsets=offsets,
        metadata=metadata,
    )
    if nulls is not None:
        for i in np.flatnonzero(nulls):
            set_null(batch, i)
    batch.text = text
    batch.key_text = key_text
    batch.name = name
    return batch


cdef int set_null(RecordBatch batch, Py_ssize_t index) except -1:
    """Take the value of a record away; only of a batch that nobody else has seen yet."""
    cdef df_view *value = <df_view *>&batch.columns.values[index]
    value.data = NO_VALUE
    value.size = 0
    batch.nullable = True
    return 0


Sequence.register(RecordBatch)
select_from_environment()
