"""Records as columns of views.

Design
------
a. A batch is a tuple of values, one of keys, and plain arrays for the numbers. A value is `bytes`
   or a read-only view of memory that belongs to someone else. A column that no record uses does
   not exist.
b. Making, slicing and filtering a batch copies references, never bytes.
c. A record without a value, which only Arrow has, has the value `NO_VALUE`.
d. A batch never changes. Its views are exports of its own, so that a `bytearray` cannot be resized,
   nor a `mmap` closed, meanwhile.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, cast, final, overload

import numpy as np
import numpy.typing as npt

from dataflare._later import Later
from dataflare._pure.record import Metadata, PluginRecord, flat, read_only_mapping, require
from dataflare.units import counted

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from dataflare._pure.pool import MemoryPool

_arrow = Later("dataflare._pure.arrow")

Value = bytes | memoryview
Numbers = npt.NDArray[Any]
T = TypeVar("T")

# A record without a value has this one, which is empty, and nobody else's.
NO_VALUE = memoryview(b"")
# Whether values are text. UNCHECKED: made from text by a plugin, which may have made anything.
BINARY, TEXT, UNCHECKED = range(3)

_SHOWN_VALUES = 3
_SHOWN_BYTES = 60
_NEWLINE, _RETURN = b"\n\r"


def _hold(item: object, what: str, index: int) -> Value:
    """The bytes of anything a value may be."""
    if type(item) is bytes:
        return item
    if isinstance(item, str):
        try:
            return item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{what} {index} cannot be encoded as UTF-8: {error}") from None
    try:
        view = memoryview(item)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{what} {index} must be bytes, str or bytes-like, not {type(item).__name__}"
        ) from None
    if not view.c_contiguous:
        raise TypeError(f"{what} {index} must be contiguous in memory")
    return flat(view)


def _as_tuple(items: Iterable[T], what: str) -> tuple[T, ...]:
    if isinstance(items, (str, bytes, bytearray, memoryview)):
        raise TypeError(
            f"{what} must be a sequence of values, not one {type(items).__name__} "
            f"(RecordBatch.from_lines splits a buffer into lines)"
        )
    try:
        # Of a list of our own: the garbage collector may run while the tuple is made, and CPython
        # does not expect the list to change then.
        return (*items,)
    except TypeError:
        if hasattr(type(items), "__iter__"):
            raise
        raise TypeError(
            f"{what} must be a sequence of values, not {type(items).__name__}"
        ) from None


def _number_column(
    numbers: npt.ArrayLike | None, what: str, dtype: type[np.signedinteger[Any]], length: int
) -> Numbers | None:
    if numbers is None:
        return None
    column = np.asarray(numbers)
    if column.size == 0:
        column = column.astype(dtype)
    bounds = np.iinfo(dtype)
    if column.dtype.kind not in "iu":
        raise TypeError(f"{what} must be integers that fit in {bounds.bits} bits")
    if column.shape != (length,):
        raise ValueError(f"{what} has the shape {column.shape}, there are {length} values")
    if length and not (bounds.min <= int(column.min()) and int(column.max()) <= bounds.max):
        raise ValueError(f"{what} must be integers that fit in {bounds.bits} bits")
    return frozen(np.require(column, dtype, ["C", "ALIGNED"]).view())


def frozen(column: Numbers) -> Numbers:
    column.flags.writeable = False
    return column


def _values_of_array(array: Numbers) -> tuple[Value, ...]:
    """The elements of an `S` array, or the rows of a uint8 array, where they are."""
    if array.dtype == np.uint8:
        if array.ndim != 2:
            raise ValueError(
                "of a uint8 array each row is a value, so it must have two dimensions "
                "(RecordBatch.from_lines splits one with a single dimension into lines)"
            )
        if array.shape[1] > 1 and array.strides[1] != 1:
            array = np.ascontiguousarray(array)
        return tuple(flat(row.data) for row in array)
    if array.dtype.kind != "S":
        raise TypeError(
            f"an array of values must be of bytes, strings or uint8, not of {array.dtype}"
        )
    if array.ndim != 1:
        raise ValueError(f"an array of values must have one dimension, not {array.ndim}")
    sizes = np.strings.str_len(array).tolist()
    rows = array.view(np.dtype((np.uint8, array.dtype.itemsize)))
    return tuple(flat(row.data[:size]) for row, size in zip(rows, sizes, strict=True))


def _metadata_column(
    items: tuple[Metadata | None, ...], length: int
) -> tuple[Metadata | None, ...]:
    if len(items) != length:
        raise ValueError(f"metadata has the length {len(items)}, there are {length} values")
    column = []
    for index, item in enumerate(items):
        try:
            column.append(read_only_mapping(item))
        except TypeError:
            raise TypeError(
                f"metadata {index} must be a mapping, not {type(item).__name__}"
            ) from None
    return tuple(column)


def _chosen(column: Any, which: slice | list[int]) -> Any:
    """Some entries of a column."""
    if column is None:
        return None
    if isinstance(column, np.ndarray):
        return frozen(column[which if isinstance(which, slice) else np.array(which, np.intp)])
    return column[which] if isinstance(which, slice) else tuple(column[i] for i in which)


@final
class RecordBatch:
    """An immutable sequence of records, stored as columns of views on memory that others own.

    Make one with `from_values`, `from_records`, `from_lines` or `from_arrow`. ``batch[i]`` is a
    `PluginRecord` whose value is `bytes`; ``batch[a:b]`` is a batch that shares all memory with
    this one.
    """

    # Line i, with what ends it, is block[bounds[i]:bounds[i + 1]]; only batches of lines have them.
    __slots__ = (
        "__weakref__", "_block", "_bounds", "_key_text", "_keys", "_metadata", "_name", "_nullable",
        "_offsets", "_partitions", "_text", "_timestamps", "_values",
    )  # fmt: skip

    _values: tuple[Value, ...]
    _keys: tuple[Value | None, ...] | None
    _timestamps: Numbers | None
    _partitions: Numbers | None
    _offsets: Numbers | None
    _metadata: tuple[Metadata | None, ...] | None
    _block: memoryview | None
    _bounds: Numbers | None
    _nullable: bool  # some values may be NO_VALUE; False: none is
    _text: int  # BINARY, TEXT or UNCHECKED
    _key_text: bool  # whether the keys came as text
    _name: str | None  # of the column that the values came from

    index = Sequence.index
    count = Sequence.count

    def __init__(self) -> None:
        raise TypeError(
            "make a batch with RecordBatch.from_values, from_records, from_lines or from_arrow"
        )

    @staticmethod
    def _of_values(values: tuple[Value, ...]) -> RecordBatch:
        batch = RecordBatch.__new__(RecordBatch)
        batch._values = values
        batch._keys = batch._timestamps = batch._partitions = batch._offsets = None
        batch._metadata = batch._block = batch._bounds = batch._name = None
        batch._nullable = batch._key_text = False
        batch._text = BINARY
        return batch

    @staticmethod
    def from_values(
        values: Iterable[str | ReadableBuffer] | npt.NDArray[Any],
        keys: Iterable[str | ReadableBuffer | None] | None = None,
        *,
        timestamps: npt.ArrayLike | None = None,
        partitions: npt.ArrayLike | None = None,
        offsets: npt.ArrayLike | None = None,
        metadata: Iterable[Metadata | None] | None = None,
    ) -> RecordBatch:
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
        if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
            batch = RecordBatch._of_values(_values_of_array(values))
        else:
            items = _as_tuple(values, "values")
            batch = RecordBatch._of_values(
                tuple(_hold(item, "value", i) for i, item in enumerate(items))
            )
        length = len(batch)
        if keys is not None:
            given = _as_tuple(keys, "keys")
            if len(given) != length:
                raise ValueError(f"keys has the length {len(given)}, there are {length} values")
            batch._keys = tuple(
                None if key is None else _hold(key, "key", i) for i, key in enumerate(given)
            )
        batch._timestamps = _number_column(timestamps, "timestamps", np.int64, length)
        batch._offsets = _number_column(offsets, "offsets", np.int64, length)
        batch._partitions = _number_column(partitions, "partitions", np.int32, length)
        if metadata is not None:
            batch._metadata = _metadata_column(_as_tuple(metadata, "metadata"), length)
        return batch

    @staticmethod
    def from_records(records: Iterable[PluginRecord]) -> RecordBatch:
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
        items = _as_tuple(records, "records")
        for i, item in enumerate(items):
            if not isinstance(item, PluginRecord):
                raise TypeError(f"record {i} must be a PluginRecord, not {type(item).__name__}")

        def column(name: str, unset: object) -> list[Any] | None:
            entries = [getattr(item, name) for item in items]
            return None if all(entry is unset or entry == unset for entry in entries) else entries

        return RecordBatch.from_values(
            [item.value for item in items],
            column("key", None),
            timestamps=column("timestamp", 0),
            partitions=column("partition", 0),
            offsets=column("offset", 0),
            metadata=column("metadata", None),
        )

    @staticmethod
    def from_lines(
        buffer: ReadableBuffer, *, newline: bytes | None = None, pool: MemoryPool | None = None
    ) -> RecordBatch:
        r"""Records from the lines of a buffer, which is not copied.

        Parameters
        ----------
        buffer : bytes-like
            `bytes`, a `mmap`, a NumPy array of bytes, a pool `Buffer`, ...
        newline : bytes, optional
            ``b"\n"`` or ``b"\r\n"``; if not given, whichever ends the first line. It is not part
            of a value. Under ``b"\r\n"`` a bare ``\n`` ends a line too.
        pool : MemoryPool, optional
            Where the compiled backend keeps its column of views; here views are Python objects.

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
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise TypeError("a buffer of lines must be contiguous in memory")
        if newline not in (None, b"\n", b"\r\n"):
            raise ValueError(f"newline must be b'\\n' or b'\\r\\n', not {newline!r}")
        block = flat(view)
        data = np.asarray(block)
        stops = np.flatnonzero(data == _NEWLINE)
        bounds = np.concatenate(([0], stops + 1))
        after_return = (stops > bounds[:-1]) & (data[stops - 1] == _RETURN)
        crlf = newline == b"\r\n" if newline is not None else bool(after_return[:1].any())
        if crlf:
            stops = stops - after_return
        if bounds[-1] < len(data):  # the last line has no end
            stops = np.append(stops, len(data))
            bounds = np.append(bounds, len(data))
        batch = RecordBatch._of_values(
            tuple(
                block[start:stop]
                for start, stop in zip(bounds[:-1].tolist(), stops.tolist(), strict=True)
            )
        )
        batch._block = block
        batch._bounds = bounds
        return batch

    @staticmethod
    def from_arrow(
        data: object,
        *,
        value: str | None = None,
        key: str | None = None,
        timestamp: str | None = None,
        partition: str | None = None,
        offset: str | None = None,
        metadata: str | None = None,
    ) -> RecordBatch:
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
        wanted = (value, key, timestamp, partition, offset, metadata)
        return cast(RecordBatch, _arrow.import_batch(data, wanted))

    def to_arrow(self, columns: Sequence[str] = ("value",), *, type: str | None = None) -> Any:
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
        return _arrow.Export(self, None, False, columns, type)

    def __arrow_c_schema__(self) -> object:
        return self.to_arrow().__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return cast(tuple[object, object], self.to_arrow().__arrow_c_array__(requested_schema))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PluginRecord: ...
    @overload
    def __getitem__(self, index: slice) -> RecordBatch: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PluginRecord | RecordBatch:
        length = len(self)
        if isinstance(index, slice):
            return self._cut(*index.indices(length))
        i = operator.index(index)
        if i < 0:
            i += length
        if not 0 <= i < length:
            raise IndexError(f"record {index} of a batch of {length}")
        return self._record_at(i)

    def __iter__(self) -> Iterator[PluginRecord]:
        for i in range(len(self)):
            yield self._record_at(i)

    def __repr__(self) -> str:
        values = [
            repr(bytes(value[:_SHOWN_BYTES])) + ("..." if len(value) > _SHOWN_BYTES else "")
            for value in self._values[:_SHOWN_VALUES]
        ]
        if len(self) > _SHOWN_VALUES:
            values.append("...")
        records, size = counted(len(self), "record"), counted(self.nbytes, "byte")
        return f"RecordBatch({records}, {size}: [{', '.join(values)}])"

    def __reduce__(self) -> tuple[object, ...]:
        return _batch, (
            self.to_pylist(),
            self.keys,
            self.timestamps,
            self.partitions,
            self.offsets,
            self._metadata and [None if m is None else dict(m) for m in self._metadata],
            self.nulls,
            self._text,
            self._key_text,
            self._name,
        )

    def take(self, indices: Sequence[int]) -> RecordBatch:
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
            if not 0 <= index < len(self):
                raise IndexError(f"record {index} of a batch of {len(self)}")
        part = self._carry(tuple(self._values[i] for i in chosen), chosen)
        part._text = self._text
        return part

    def to_pylist(self) -> list[bytes]:
        """The values.

        Returns
        -------
        list of bytes
        """
        return [self._value_at(i) for i in range(len(self))]

    def to_lines(self, newline: bytes = b"\n") -> bytes | memoryview:
        """Every value followed by a newline, as one piece.

        Parameters
        ----------
        newline : bytes

        Returns
        -------
        bytes-like
            A read-only view without a copy where the values stand in memory just so already.
        """
        require(newline, bytes, "newline")
        if len(self) == 0:
            return b""
        if self._block is not None and self._bounds is not None and newline in (b"\n", b"\r\n"):
            ends = np.diff(self._bounds) - [len(value) for value in self._values]
            if (ends == len(newline)).all():
                return self._block[self._bounds[0] : self._bounds[-1]]
        return newline.join((*self._values, b""))

    @property
    def nulls(self) -> npt.NDArray[np.bool_] | None:
        """numpy.ndarray of bool, shape (n,), or None: Which records have no value; None: all do."""
        if not self._has_nulls():
            return None
        return np.array([value is NO_VALUE for value in self._values], bool)

    def _has_nulls(self) -> bool:
        return self._nullable and any(value is NO_VALUE for value in self._values)

    @property
    def nbytes(self) -> int:
        """int: The sum of the sizes of the values."""
        return sum(map(len, self._values))

    @property
    def keys(self) -> list[bytes | None] | None:
        """list of (bytes or None), or None: The keys; None if no record has one."""
        if self._keys is None:
            return None
        return [None if key is None else bytes(key) for key in self._keys]

    @property
    def timestamps(self) -> npt.NDArray[np.int64] | None:
        """numpy.ndarray of int64, shape (n,), or None: Nanoseconds; None if no record has one."""
        return self._timestamps

    @property
    def offsets(self) -> npt.NDArray[np.int64] | None:
        """numpy.ndarray of int64, shape (n,), or None: By record; None if no record has one."""
        return self._offsets

    @property
    def partitions(self) -> npt.NDArray[np.int32] | None:
        """numpy.ndarray of int32, shape (n,), or None: By record; None if no record has one."""
        return self._partitions

    @property
    def metadata(self) -> list[Metadata | None] | None:
        """list of (Mapping or None), or None: By record; None if no record has any."""
        return None if self._metadata is None else list(self._metadata)

    def _value_at(self, index: int) -> bytes:
        value = self._values[index]
        return value if type(value) is bytes else bytes(value)

    def _record_at(self, index: int) -> PluginRecord:
        key = None if self._keys is None else self._keys[index]
        return PluginRecord._of_columns(
            value=self._value_at(index),
            key=None if key is None else bytes(key),
            metadata=None if self._metadata is None else self._metadata[index],
            timestamp=0 if self._timestamps is None else int(self._timestamps[index]),
            partition=0 if self._partitions is None else int(self._partitions[index]),
            offset=0 if self._offsets is None else int(self._offsets[index]),
        )

    def _cut(self, start: int, stop: int, step: int) -> RecordBatch:
        if step != 1:
            return self.take(range(start, stop, step))
        stop = max(start, stop)
        part = self._carry(self._values[start:stop], slice(start, stop))
        part._text = self._text
        if self._bounds is not None:
            part._block = self._block
            part._bounds = self._bounds[start : stop + 1]
        return part

    def _carry(self, values: tuple[Value, ...], which: slice | list[int]) -> RecordBatch:
        """Other values with the other columns of some of the records here."""
        batch = RecordBatch._of_values(values)
        batch._keys = _chosen(self._keys, which)
        batch._timestamps = _chosen(self._timestamps, which)
        batch._partitions = _chosen(self._partitions, which)
        batch._offsets = _chosen(self._offsets, which)
        batch._metadata = _chosen(self._metadata, which)
        batch._nullable = self._nullable
        batch._text = UNCHECKED if self._text else BINARY
        batch._key_text = self._key_text
        batch._name = self._name
        return batch


def _batch(
    values: list[bytes],
    keys: list[bytes | None] | None,
    timestamps: npt.NDArray[np.int64] | None,
    partitions: npt.NDArray[np.int32] | None,
    offsets: npt.NDArray[np.int64] | None,
    metadata: list[Metadata | None] | None,
    nulls: npt.NDArray[np.bool_] | None = None,
    text: int = BINARY,
    key_text: bool = False,
    name: str | None = None,
) -> RecordBatch:
    """Rebuild a pickled batch."""
    batch = RecordBatch.from_values(
        values,
        keys,
        timestamps=timestamps,
        partitions=partitions,
        offsets=offsets,
        metadata=metadata,
    )
    if nulls is not None:
        batch._values = tuple(
            NO_VALUE if null else value
            for value, null in zip(batch._values, nulls.tolist(), strict=True)
        )
        batch._nullable = True
    batch._text, batch._key_text, batch._name = text, key_text, name
    return batch


Sequence.register(RecordBatch)
