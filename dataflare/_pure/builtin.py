"""The plugins that come with the library."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dataflare._pure.plugin import DataFlarePlugin, first_line, plain, plugin_name
from dataflare._pure.record import PluginRecord, PluginResult, require
from dataflare._pure.result import raise_plugin_error
from dataflare.errors import PluginConfigurationError, PluginProcessingError
from dataflare.types import PluginInfo, PluginType


def _as_bytes(text: object, what: str) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"{what} must be bytes or str, not {type(text).__name__}")


class _Builtin(DataFlarePlugin):
    """Base of the plugins that come with the library; a subclass defines `_apply`."""

    _plugin_type = PluginType.TRANSFORMER
    _arguments: tuple[object, ...] = ()

    thread_safe = True

    def process(self, record: PluginRecord) -> PluginResult:
        require(record, PluginRecord, "record")
        try:
            return self._apply(plain(record.value))
        except Exception as error:
            raise_plugin_error(error, plugin_name(self))

    def _apply(self, value: bytes) -> PluginResult:
        raise NotImplementedError

    def info(self) -> PluginInfo:
        return PluginInfo(
            name=type(self).__name__,
            plugin_type=self._plugin_type,
            description=first_line(type(self).__doc__),
            author="DataFlare",
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._arguments))})"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._arguments


def _keep(wanted: bool) -> PluginResult:
    return PluginResult.skip() if wanted else PluginResult.filtered()


class Contains(_Builtin):
    """Keeps the records that contain some bytes.

    Parameters
    ----------
    needle : bytes or str
        A string counts as its UTF-8 form; an empty one is in every record.
    """

    _plugin_type = PluginType.FILTER

    def __init__(self, needle: bytes | str) -> None:
        self.needle = _as_bytes(needle, "needle")
        self._arguments = (self.needle,)

    def _apply(self, value: bytes) -> PluginResult:
        return _keep(self.needle in value)


class StartsWith(_Builtin):
    """Keeps the records that start with some bytes.

    Parameters
    ----------
    prefix : bytes or str
        A string counts as its UTF-8 form; every record starts with an empty one.
    """

    _plugin_type = PluginType.FILTER

    def __init__(self, prefix: bytes | str) -> None:
        self.prefix = _as_bytes(prefix, "prefix")
        self._arguments = (self.prefix,)

    def _apply(self, value: bytes) -> PluginResult:
        return _keep(value.startswith(self.prefix))


class Upper(_Builtin):
    """Upper-cases the ASCII letters; all other bytes stay as they are."""

    def _apply(self, value: bytes) -> PluginResult:
        return PluginResult.success(value.upper())


class Lower(_Builtin):
    """Lower-cases the ASCII letters; all other bytes stay as they are."""

    def _apply(self, value: bytes) -> PluginResult:
        return PluginResult.success(value.lower())


class Replace(_Builtin):
    """Replaces every occurrence of some bytes by others.

    A record without any goes on unchanged, without a copy.

    Parameters
    ----------
    old : bytes or str
        Not empty. A string counts as its UTF-8 form.
    new : bytes or str

    Raises
    ------
    ValueError
        `old` is empty.
    """

    def __init__(self, old: bytes | str, new: bytes | str) -> None:
        self.old = _as_bytes(old, "old")
        self.new = _as_bytes(new, "new")
        if not self.old:
            raise ValueError("old cannot be empty: there would be no end of replacing it")
        self._arguments = (self.old, self.new)

    def _apply(self, value: bytes) -> PluginResult:
        if self.old not in value:
            return PluginResult.skip()
        return PluginResult.success(value.replace(self.old, self.new))


class Regex(_Builtin):
    r"""Keeps the records in which a regular expression is found, or extracts a group of it.

    Parameters
    ----------
    pattern : bytes or str
        As for the standard library's `re`; a string counts as its UTF-8 form and matches bytes.
    group : int or str, optional
        If given, the record's new value is what this group matched (0: the whole match); a record
        without a match, or in which the group took no part, is dropped.
    flags : int
        Such as ``re.IGNORECASE``.

    Raises
    ------
    PluginConfigurationError
        The pattern is not a regular expression, or has no such group.
    """

    def __init__(
        self, pattern: bytes | str, group: int | str | None = None, flags: int = 0
    ) -> None:
        self.pattern = _as_bytes(pattern, "pattern")
        self.group = group
        self.flags = flags
        self._arguments = (self.pattern, group, flags)
        try:
            compiled = re.compile(self.pattern, flags)
        except (re.error, ValueError) as error:
            raise PluginConfigurationError(
                f"{shown(self.pattern)} is not a regular expression: {error}"
            ) from error
        if group is None:
            self._plugin_type = PluginType.FILTER
        elif group not in (*range(compiled.groups + 1), *compiled.groupindex):
            raise PluginConfigurationError(f"{shown(self.pattern)} has no group {group!r}")
        self._search = compiled.search

    def _apply(self, value: bytes) -> PluginResult:
        found = self._search(value)
        if found is None:
            return PluginResult.filtered()
        if self.group is None:
            return PluginResult.skip()
        text = found[self.group]
        return PluginResult.filtered() if text is None else PluginResult.success(text)

    def __repr__(self) -> str:
        parts = [repr(self.pattern)]
        if self.group is not None:
            parts.append(f"group={self.group!r}")
        if self.flags:
            parts.append(f"flags={self.flags!r}")
        return f"Regex({', '.join(parts)})"


class JsonField(_Builtin):
    """Extracts one field of a JSON object.

    A string comes out as its text in UTF-8, without quotes and escapes; anything else as the JSON
    it is written in, so that numbers keep their form.

    Parameters
    ----------
    name : str
        Of a field of the outermost object.
    missing : {"error", "filter", "skip"}
        What becomes of a record without the field.

    Raises
    ------
    PluginConfigurationError
        The package msgspec is not installed.
    """

    def __init__(self, name: str, missing: str = "error") -> None:
        if not isinstance(name, str):
            raise TypeError(f"name must be str, not {type(name).__name__}")
        if missing not in ("error", "filter", "skip"):
            raise ValueError(f"missing must be 'error', 'filter' or 'skip', not {missing!r}")
        self.name = name
        self.missing = missing
        self._arguments = (name, missing)
        self._decode, self._decode_string = _field_decoders(name)

    def _apply(self, value: bytes) -> PluginResult:
        raw = self._decode(value).field
        if raw is None:
            if self.missing == "error":
                raise PluginProcessingError(f"the object has no field {self.name!r}")
            return _keep(self.missing == "skip")
        data = bytes(raw)
        if data[:1] == b'"':
            data = self._decode_string(data).encode("utf-8", "surrogatepass")
        return PluginResult.success(data)

    def __repr__(self) -> str:
        extra = "" if self.missing == "error" else f", missing={self.missing!r}"
        return f"JsonField({self.name!r}{extra})"


def shown(pattern: bytes) -> str:
    """A pattern as it was written, most likely: as text."""
    return repr(pattern.decode(errors="backslashreplace"))


def _field_decoders(name: str) -> tuple[Callable[[bytes], Any], Callable[[bytes], str]]:
    """Functions from a JSON text to an object with the raw `field`, and from one to a string."""
    try:
        import msgspec
    except ModuleNotFoundError as error:
        if error.name != "msgspec":  # it is there, and broken
            raise
        raise PluginConfigurationError(
            "JsonField needs the package msgspec: pip install 'dataflare[json]'"
        ) from None
    # Only the field is decoded: msgspec skips over the others.
    shape = msgspec.defstruct("Shape", [("field", msgspec.Raw, None)], rename={"field": name})
    decode = msgspec.json.Decoder(shape).decode

    def decode_object(value: bytes) -> Any:
        try:
            return decode(value)
        except msgspec.ValidationError as error:  # it says that for programmers
            raise PluginProcessingError("the value is not a JSON object") from error

    return decode_object, msgspec.json.Decoder(str).decode


def simd_level() -> str:
    """The instruction set that the kernels use; there are none in pure Python."""
    return "none"


def simd_levels() -> list[str]:
    """The instruction sets that the kernels could use."""
    return []
