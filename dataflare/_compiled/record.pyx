"""One record, and what a plugin made of it."""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from collections.abc import Mapping
from types import MappingProxyType

from dataflare._compiled.types cimport DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS


cdef object SHOWN = 60
cdef const char *NOTHING = b""


cdef int view_of(object owner, df_view *view) except -1:
    """Where the bytes of `owner` are: `bytes`, or a memoryview that somebody keeps alive."""
    cdef Py_buffer buffer
    if type(owner) is bytes:
        view.data = PyBytes_AS_STRING(owner)
        view.size = PyBytes_GET_SIZE(owner)
        return 0
    PyObject_GetBuffer(owner, &buffer, PyBUF_SIMPLE)
    # An empty buffer may have no address; a view with none would mean that there is no value.
    view.data = <const char *>buffer.buf if buffer.buf is not NULL else NOTHING
    view.size = buffer.len
    PyBuffer_Release(&buffer)  # the memoryview itself keeps the memory where it is
    return 0


cdef object read_only(object value, str what):
    """`bytes` as they are; a flat, read-only view of any other bytes-like object."""
    if type(value) is bytes:
        return value
    if not PyObject_CheckBuffer(value):
        raise TypeError(f"{what} must be bytes-like, not {type(value).__name__}")
    view = memoryview(value)
    if not view.c_contiguous:
        raise TypeError(f"{what} must be contiguous in memory")
    if not view.nbytes:
        return memoryview(b"")  # an empty view of several dimensions cannot be cast
    return view.cast("B").toreadonly()


cdef object read_only_mapping(object metadata):
    if metadata is None or type(metadata) is MappingProxyType:
        return metadata
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
    return MappingProxyType(metadata)


cdef object number(object value, str what, object bits):
    if not hasattr(type(value), "__index__"):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    value = value.__index__()
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise ValueError(f"{what} must fit in {bits} bits, {value} does not")
    return value


cdef str shown(object data):
    raw = bytes(data[:SHOWN])
    return repr(raw) + ("..." if len(data) > SHOWN else "")


@cython.final
cdef class PluginRecord:
    """One record, as a plugin sees it. It cannot be changed.

    What it is made of are its attributes, by the same names.

    Parameters
    ----------
    value : bytes-like
        The payload. Nothing is copied: `bytes` are kept as they are, anything else is kept as a
        read-only `memoryview`.
    key : bytes-like, optional
        Kept as `value` is; None if there is none.
    metadata : Mapping, optional
        Kept as a read-only view of the mapping given.
    timestamp : int
        Nanoseconds since the epoch; 64 bits.
    partition : int
        32 bits.
    offset : int
        64 bits.

    Raises
    ------
    TypeError
        A value or key that is not bytes-like, metadata that is not a mapping.
    ValueError
        A number that does not fit its width.
    """

    def __init__(self, value, *, key=None, metadata=None, timestamp=0, partition=0, offset=0):
        if self.value is not None:
            raise TypeError("a record cannot be changed")
        self.value = read_only(value, "the value of a record")
        if key is not None:
            self.key = read_only(key, "the key of a record")
        self.metadata = read_only_mapping(metadata)
        if timestamp is not 0:  # noqa: F632 - the default object, a cheap way to skip the check
            self.timestamp = number(timestamp, "timestamp", 64)
        if partition is not 0:  # noqa: F632
            self.partition = number(partition, "partition", 32)
        if offset is not 0:  # noqa: F632
            self.offset = number(offset, "offset", 64)

    def __eq__(self, other):
        if not isinstance(other, PluginRecord):
            return NotImplemented
        cdef PluginRecord right = other
        return (
            self.value == right.value
            and self.key == right.key
            and self.timestamp == right.timestamp
            and self.partition == right.partition
            and self.offset == right.offset
            and (self.metadata or {}) == (right.metadata or {})
        )

    __hash__ = None

    def __repr__(self):
        parts = [shown(self.value)]
        if self.key is not None:
            parts.append(f"key={shown(self.key)}")
        if self.metadata:
            parts.append(f"metadata={dict(self.metadata)!r}")
        for name in ("timestamp", "partition", "offset"):
            if getattr(self, name):
                parts.append(f"{name}={getattr(self, name)}")
        return f"PluginRecord({', '.join(parts)})"

    def __reduce__(self):
        return _record, (
            bytes(self.value),
            None if self.key is None else bytes(self.key),
            None if self.metadata is None else dict(self.metadata),
            self.timestamp, self.partition, self.offset,
        )


def _record(value, key, metadata, timestamp, partition, offset):
    """Rebuild a pickled record."""
    return PluginRecord(value, key=key, metadata=metadata, timestamp=timestamp,
                        partition=partition, offset=offset)


@cython.final
cdef class PluginResult:
    """What became of one record; made by `success`, `filtered`, `skip` or `error`.

    Attributes
    ----------
    data : bytes or memoryview or None
        The new value, of a success.
    metadata : Mapping or None
        The new metadata, of a success that gave some.
    message : str or None
        Why the record failed.
    code : int or str or None
        The plugin's own code of the failure.
    """

    def __init__(self):
        raise TypeError(
            "make a result with PluginResult.success, filtered, skip or error"
        )

    @staticmethod
    def success(data, metadata=None):
        """The record goes on with a new value.

        Parameters
        ----------
        data : bytes-like
        metadata : Mapping, optional
            Replaces the record's.

        Returns
        -------
        PluginResult

        Raises
        ------
        TypeError
            `data` is not bytes-like, or `metadata` not a mapping.
        """
        cdef PluginResult result = PluginResult.__new__(PluginResult)
        result.status = DF_SUCCESS
        result.data = read_only(data, "the data of a result")
        result.metadata = read_only_mapping(metadata)
        return result

    @staticmethod
    def filtered():
        """The record is dropped."""
        return FILTERED

    @staticmethod
    def skip():
        """The record goes on unchanged."""
        return SKIP

    @staticmethod
    def error(message, code=None):
        """The record failed.

        Parameters
        ----------
        message : str
        code : int or str, optional
            For machines; the meaning is the plugin's.

        Returns
        -------
        PluginResult

        Raises
        ------
        TypeError
            `message` is not a string, or `code` neither a string nor an integer.
        """
        cdef PluginResult result = PluginResult.__new__(PluginResult)
        if not isinstance(message, str):
            raise TypeError(f"the message of an error must be str, not {type(message).__name__}")
        if code is not None and not isinstance(code, (int, str)):
            raise TypeError(f"the code of an error must be int or str, not {type(code).__name__}")
        result.status = DF_ERROR
        result.message = message
        result.code = code
        return result

    @property
    def is_success(self):
        """bool: The record goes on with a new value."""
        return self.status == DF_SUCCESS

    @property
    def is_filtered(self):
        """bool: The record is dropped."""
        return self.status == DF_FILTERED

    @property
    def is_skip(self):
        """bool: The record goes on unchanged."""
        return self.status == DF_SKIP

    @property
    def is_error(self):
        """bool: The record failed."""
        return self.status == DF_ERROR

    def __eq__(self, other):
        if not isinstance(other, PluginResult):
            return NotImplemented
        cdef PluginResult right = other
        return (
            self.status == right.status
            and self.data == right.data
            and (self.metadata or {}) == (right.metadata or {})
            and self.message == right.message
            and self.code == right.code
        )

    __hash__ = None

    def __repr__(self):
        if self.status == DF_SUCCESS:
            extra = f", metadata={dict(self.metadata)!r}" if self.metadata else ""
            return f"PluginResult.success({shown(self.data)}{extra})"
        if self.status == DF_ERROR:
            extra = "" if self.code is None else f", code={self.code!r}"
            return f"PluginResult.error({self.message!r}{extra})"
        return "PluginResult.filtered()" if self.status == DF_FILTERED else "PluginResult.skip()"

    def __reduce__(self):
        if self.status == DF_SUCCESS:
            metadata = None if self.metadata is None else dict(self.metadata)
            return PluginResult.success, (bytes(self.data), metadata)
        if self.status == DF_ERROR:
            return PluginResult.error, (self.message, self.code)
        return (PluginResult.filtered if self.status == DF_FILTERED else PluginResult.skip), ()


cdef PluginResult FILTERED = PluginResult.__new__(PluginResult)
FILTERED.status = DF_FILTERED
cdef PluginResult SKIP = PluginResult.__new__(PluginResult)
SKIP.status = DF_SKIP
