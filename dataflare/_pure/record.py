"""One record, and what a plugin made of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Metadata = Mapping[str, Any]

SUCCESS, FILTERED, SKIP, ERROR = range(4)
_SHOWN = 60


def read_only(value: ReadableBuffer, what: str) -> bytes | memoryview:
    """`bytes` as they are; a flat, read-only view of any other bytes-like object."""
    if type(value) is bytes:
        return value
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"{what} must be bytes-like, not {type(value).__name__}") from None
    if not view.c_contiguous:
        raise TypeError(f"{what} must be contiguous in memory")
    return flat(view)


def flat(view: memoryview) -> memoryview:
    """The bytes of a contiguous view, read-only and in one dimension."""
    if view.ndim > 1 and view.nbytes == 0:  # which cannot be cast
        return memoryview(b"")
    return view.cast("B").toreadonly()


def read_only_mapping(metadata: Metadata | None) -> Metadata | None:
    if metadata is None or type(metadata) is MappingProxyType:
        return metadata
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, not {type(metadata).__name__}")
    return MappingProxyType(metadata)


def _number(value: SupportsIndex, what: str, bits: int) -> int:
    if not hasattr(type(value), "__index__"):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    number = value.__index__()
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise ValueError(f"{what} must fit in {bits} bits, {number} does not")
    return number


def require(value: object, kind: type, what: str) -> None:
    """Refuse a value of another type, as the signature of a compiled function does by itself."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be a {kind.__name__}, not {type(value).__name__}")


def _shown(data: bytes | memoryview) -> str:
    return repr(bytes(data[:_SHOWN])) + ("..." if len(data) > _SHOWN else "")


class _Immutable:
    """Base of classes whose attributes are set once, by `_fill`."""

    __slots__ = ()

    def _fill(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} cannot be changed")


@final
class PluginRecord(_Immutable):
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

    __slots__ = ("key", "metadata", "offset", "partition", "timestamp", "value")

    key: bytes | memoryview | None
    metadata: Metadata | None
    offset: int
    partition: int
    timestamp: int
    value: bytes | memoryview

    def __init__(
        self,
        value: ReadableBuffer,
        *,
        key: ReadableBuffer | None = None,
        metadata: Metadata | None = None,
        timestamp: SupportsIndex = 0,
        partition: SupportsIndex = 0,
        offset: SupportsIndex = 0,
    ) -> None:
        if hasattr(self, "value"):
            raise TypeError("a record cannot be changed")
        self._fill(
            value=read_only(value, "the value of a record"),
            key=None if key is None else read_only(key, "the key of a record"),
            metadata=read_only_mapping(metadata),
            timestamp=_number(timestamp, "timestamp", 64),
            partition=_number(partition, "partition", 32),
            offset=_number(offset, "offset", 64),
        )

    @staticmethod
    def _of_columns(
        value: bytes,
        key: bytes | None,
        metadata: Metadata | None,
        timestamp: int,
        partition: int,
        offset: int,
    ) -> PluginRecord:
        """A record of a batch, whose columns were checked."""
        record = PluginRecord.__new__(PluginRecord)
        record._fill(
            value=value,
            key=key,
            metadata=metadata,
            timestamp=timestamp,
            partition=partition,
            offset=offset,
        )
        return record

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PluginRecord):
            return NotImplemented
        return (
            self.value == other.value
            and self.key == other.key
            and self.timestamp == other.timestamp
            and self.partition == other.partition
            and self.offset == other.offset
            and (self.metadata or {}) == (other.metadata or {})
        )

    def __repr__(self) -> str:
        parts = [_shown(self.value)]
        if self.key is not None:
            parts.append(f"key={_shown(self.key)}")
        if self.metadata:
            parts.append(f"metadata={dict(self.metadata)!r}")
        for name in ("timestamp", "partition", "offset"):
            if getattr(self, name):
                parts.append(f"{name}={getattr(self, name)}")
        return f"PluginRecord({', '.join(parts)})"

    def __reduce__(self) -> tuple[object, ...]:
        return _record, (
            bytes(self.value),
            None if self.key is None else bytes(self.key),
            None if self.metadata is None else dict(self.metadata),
            self.timestamp,
            self.partition,
            self.offset,
        )


def _record(
    value: bytes,
    key: bytes | None,
    metadata: Metadata | None,
    timestamp: int,
    partition: int,
    offset: int,
) -> PluginRecord:
    """Rebuild a pickled record."""
    return PluginRecord(
        value,
        key=key,
        metadata=metadata,
        timestamp=timestamp,
        partition=partition,
        offset=offset,
    )


@final
class PluginResult(_Immutable):
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

    __slots__ = ("code", "data", "message", "metadata", "status")

    code: int | str | None
    data: bytes | memoryview | None
    message: str | None
    metadata: Metadata | None
    status: int

    def __init__(self) -> None:
        raise TypeError("make a result with PluginResult.success, filtered, skip or error")

    @staticmethod
    def _make(
        status: int,
        *,
        data: bytes | memoryview | None = None,
        metadata: Metadata | None = None,
        message: str | None = None,
        code: int | str | None = None,
    ) -> PluginResult:
        result = PluginResult.__new__(PluginResult)
        result._fill(status=status, data=data, metadata=metadata, message=message, code=code)
        return result

    @staticmethod
    def success(data: ReadableBuffer, metadata: Metadata | None = None) -> PluginResult:
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
        return PluginResult._make(
            SUCCESS,
            data=read_only(data, "the data of a result"),
            metadata=read_only_mapping(metadata),
        )

    @staticmethod
    def filtered() -> PluginResult:
        """The record is dropped."""
        return _FILTERED

    @staticmethod
    def skip() -> PluginResult:
        """The record goes on unchanged."""
        return _SKIP

    @staticmethod
    def error(message: str, code: int | str | None = None) -> PluginResult:
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
        if not isinstance(message, str):
            raise TypeError(f"the message of an error must be str, not {type(message).__name__}")
        if code is not None and not isinstance(code, (int, str)):
            raise TypeError(f"the code of an error must be int or str, not {type(code).__name__}")
        return PluginResult._make(ERROR, message=message, code=code)

    @property
    def is_success(self) -> bool:
        """bool: The record goes on with a new value."""
        return self.status == SUCCESS

    @property
    def is_filtered(self) -> bool:
        """bool: The record is dropped."""
        return self.status == FILTERED

    @property
    def is_skip(self) -> bool:
        """bool: The record goes on unchanged."""
        return self.status == SKIP

    @property
    def is_error(self) -> bool:
        """bool: The record failed."""
        return self.status == ERROR

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PluginResult):
            return NotImplemented
        return (
            self.status == other.status
            and self.data == other.data
            and (self.metadata or {}) == (other.metadata or {})
            and self.message == other.message
            and self.code == other.code
        )

    def __repr__(self) -> str:
        if self.data is not None:
            extra = f", metadata={dict(self.metadata)!r}" if self.metadata else ""
            return f"PluginResult.success({_shown(self.data)}{extra})"
        if self.is_error:
            extra = "" if self.code is None else f", code={self.code!r}"
            return f"PluginResult.error({self.message!r}{extra})"
        return "PluginResult.filtered()" if self.is_filtered else "PluginResult.skip()"

    def __reduce__(self) -> tuple[object, ...]:
        if self.data is not None:
            metadata = None if self.metadata is None else dict(self.metadata)
            return PluginResult.success, (bytes(self.data), metadata)
        if self.is_error:
            return PluginResult.error, (self.message, self.code)
        return (PluginResult.filtered if self.is_filtered else PluginResult.skip), ()


_FILTERED = PluginResult._make(FILTERED)
_SKIP = PluginResult._make(SKIP)
