"""The native plugins that come with the library."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memcmp, memcpy

from dataflare._compiled.chain cimport Filter
from dataflare._compiled.kernels cimport (
    dfk_find, dfk_level, dfk_lower, dfk_needle, dfk_needle_init, dfk_simd, dfk_total, dfk_upper,
    select_from_environment
)
from dataflare._compiled.output cimport Run
from dataflare._compiled.plugin cimport NativePluginABI1
from dataflare._compiled.types cimport (
    DF_FILTERED, DF_SKIP, df_batch, df_commit, df_emitter, df_fail, df_forward,
    df_output, df_put, df_record, df_view, reserve
)

import re

from dataflare.errors import PluginConfigurationError, PluginProcessingError
from dataflare.types import PluginInfo, PluginType

cdef extern from "Python.h":
    int PyBUF_READ
    const Py_ssize_t PY_SSIZE_T_MAX

# Values up to this size are copied for a Python library to look at, larger ones are lent.
cdef Py_ssize_t COPY_UP_TO = 4096
# One step of a transformation takes at most so many records and bytes, of which no more than this
# many times the values themselves with a separator each.
cdef Py_ssize_t SEPARATOR = 2
cdef Py_ssize_t STEP_RECORDS = 4096
cdef Py_ssize_t STEP_BYTES = 512 << 10
cdef Py_ssize_t DENSE = 2


cdef bytes as_bytes(object text, str what):
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"{what} must be bytes or str, not {type(text).__name__}")


cdef inline df_view bytes_view(bytes text):
    cdef df_view view
    view.data = PyBytes_AS_STRING(text)
    view.size = PyBytes_GET_SIZE(text)
    return view


cdef object describe(object plugin, object plugin_type):
    return PluginInfo(
        name=type(plugin).__name__,
        plugin_type=plugin_type,
        description=type(plugin).__doc__.splitlines()[0],
        author="DataFlare",
    )


@cython.final
cdef class Contains(Filter):
    """Keeps the records that contain some bytes.

    Parameters
    ----------
    needle : bytes or str
        A string counts as its UTF-8 form; an empty one is in every record.
    """
    thread_safe = True
    cdef readonly bytes needle
    cdef dfk_needle prepared             # leads into `needle`

    def __cinit__(self, needle):
        self.needle = as_bytes(needle, "needle")
        dfk_needle_init(&self.prepared, PyBytes_AS_STRING(self.needle),
                        PyBytes_GET_SIZE(self.needle))

    def info(self):
        return describe(self, PluginType.FILTER)

    def __repr__(self):
        return f"Contains({self.needle!r})"

    def __reduce__(self):
        return Contains, (self.needle,)

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        if dfk_find(&self.prepared, record.value.data, record.value.size) is NULL:
            return DF_FILTERED
        return DF_SKIP

    cdef Py_ssize_t c_seek(self, const df_batch *batch, Py_ssize_t start) except -1 nogil:
        cdef const df_view *values = batch.values
        cdef Py_ssize_t i = start
        cdef const char *found
        cdef const char *end
        if batch.block.data is NULL:
            while i < batch.length:
                if dfk_find(&self.prepared, values[i].data, values[i].size) is not NULL:
                    break
                i += 1
            return i
        # Search through the values and what stands between them; then see whose hit it is.
        end = batch.block.data + batch.block.size
        while i < batch.length:
            found = dfk_find(&self.prepared, values[i].data, end - values[i].data)
            if found is NULL:
                return batch.length
            while values[i].data + values[i].size < found + self.prepared.size:
                # The hit is behind this value, or reaches over its end.
                if values[i].data + values[i].size > found >= values[i].data and dfk_find(
                        &self.prepared, values[i].data, values[i].size) is not NULL:
                    return i
                i += 1
                if i == batch.length:
                    return i
            if values[i].data <= found:
                return i
        return i


@cython.final
cdef class StartsWith(Filter):
    """Keeps the records that start with some bytes.

    Parameters
    ----------
    prefix : bytes or str
        A string counts as its UTF-8 form; every record starts with an empty one.
    """
    thread_safe = True
    cdef readonly bytes prefix
    cdef df_view start                   # leads into `prefix`

    def __cinit__(self, prefix):
        self.prefix = as_bytes(prefix, "prefix")
        self.start = bytes_view(self.prefix)

    def info(self):
        return describe(self, PluginType.FILTER)

    def __repr__(self):
        return f"StartsWith({self.prefix!r})"

    def __reduce__(self):
        return StartsWith, (self.prefix,)

    cdef inline bint keeps(self, const df_view *value) noexcept nogil:
        return value.size >= self.start.size and memcmp(
            value.data, self.start.data, <size_t>self.start.size) == 0

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        return DF_SKIP if self.keeps(&record.value) else DF_FILTERED

    cdef Py_ssize_t c_seek(self, const df_batch *batch, Py_ssize_t start) except -1 nogil:
        cdef Py_ssize_t i = start
        while i < batch.length and not self.keeps(&batch.values[i]):
            i += 1
        return i


ctypedef void (*transform)(char *, const char *, Py_ssize_t) noexcept nogil


cdef int transform_batch(transform change, const df_batch *batch, df_output *out) except? -1 nogil:
    """Change every value to one of the same size.

    Values that stand close together in a block are changed with what is between them, some hundred
    kilobytes at a time, so that input and output of each step fit the cache.
    """
    cdef const df_view *values = batch.values
    cdef Py_ssize_t i = out.position, stop, span
    cdef const char *end
    cdef const char *start
    cdef df_view value
    cdef char *target
    (<Run *>out).ordered = True
    while i < batch.length:
        start = values[i].data
        if batch.block.data is NULL:
            stop = i + 1
            span = values[i].size
        else:
            stop = dense_until(batch, i)
            end = values[stop - 1].data + values[stop - 1].size
            span = end - start
            # The line end behind the last value goes along, so that the output is lines as well.
            if stop < batch.length:
                span += min(values[stop].data - end, SEPARATOR)
            else:
                span += min(batch.block.data + batch.block.size - end, SEPARATOR)
        target = reserve(&out.emitter, span)
        change(target, start, span)
        df_commit(&out.emitter, span)
        while i < stop:
            value.data = target + (values[i].data - start)
            value.size = values[i].size
            df_put(out, value)
            i += 1
    return 0


cdef Py_ssize_t dense_until(const df_batch *batch, Py_ssize_t start) noexcept nogil:
    """Where the run of values that are worth one step ends, counted from `start`."""
    cdef const df_view *values = batch.values
    cdef Py_ssize_t stop = min(start + STEP_RECORDS, batch.length)
    cdef Py_ssize_t span
    while stop > start + 1:
        span = values[stop - 1].data + values[stop - 1].size - values[start].data
        if span <= STEP_BYTES and span <= DENSE * (dfk_total(values + start, stop - start)
                                                   + SEPARATOR * (stop - start)):
            break
        stop = start + (stop - start) // 2
    return stop


@cython.final
cdef class Upper(NativePluginABI1):
    """Upper-cases the ASCII letters; all other bytes stay as they are."""
    thread_safe = True

    def info(self):
        return describe(self, PluginType.TRANSFORMER)

    def __init__(self):
        pass  # takes no arguments, and says so

    def __repr__(self):
        return "Upper()"

    def __reduce__(self):
        return Upper, ()

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        dfk_upper(reserve(out, record.value.size), record.value.data, record.value.size)
        return df_commit(out, record.value.size)

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        return transform_batch(dfk_upper, batch, out)


@cython.final
cdef class Lower(NativePluginABI1):
    """Lower-cases the ASCII letters; all other bytes stay as they are."""
    thread_safe = True

    def info(self):
        return describe(self, PluginType.TRANSFORMER)

    def __init__(self):
        pass  # takes no arguments, and says so

    def __repr__(self):
        return "Lower()"

    def __reduce__(self):
        return Lower, ()

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        dfk_lower(reserve(out, record.value.size), record.value.data, record.value.size)
        return df_commit(out, record.value.size)

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        return transform_batch(dfk_lower, batch, out)


@cython.final
cdef class Replace(NativePluginABI1):
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
    thread_safe = True
    cdef readonly bytes old
    cdef readonly bytes new
    cdef dfk_needle prepared             # leads into `old`
    cdef df_view substitute              # leads into `new`

    def __cinit__(self, old, new):
        self.old = as_bytes(old, "old")
        self.new = as_bytes(new, "new")
        if not self.old:
            raise ValueError("old cannot be empty: there would be no end of replacing it")
        dfk_needle_init(&self.prepared, PyBytes_AS_STRING(self.old), PyBytes_GET_SIZE(self.old))
        self.substitute = bytes_view(self.new)

    def info(self):
        return describe(self, PluginType.TRANSFORMER)

    def __repr__(self):
        return f"Replace({self.old!r}, {self.new!r})"

    def __reduce__(self):
        return Replace, (self.old, self.new)

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        cdef Py_ssize_t old = self.prepared.size
        cdef Py_ssize_t new = self.substitute.size
        cdef const char *at = record.value.data
        cdef const char *end = at + record.value.size
        cdef const char *found = dfk_find(&self.prepared, at, end - at)
        cdef Py_ssize_t count = 0, size
        cdef char *target
        if found is NULL:
            return DF_SKIP
        size = record.value.size
        if new > old:  # room for all of them needs their number
            while found is not NULL:
                count += 1
                found = dfk_find(&self.prepared, found + old, end - found - old)
            if count > (PY_SSIZE_T_MAX - size) // (new - old):
                return df_fail(out, 0, b"the value with all its replacements is too long")
            size += count * (new - old)
            found = dfk_find(&self.prepared, at, end - at)
        else:
            count = size
        target = reserve(out, size)
        size = 0
        # No more than were counted: somebody may write to the value meanwhile.
        while found is not NULL and count > 0:
            count -= 1
            memcpy(target + size, at, <size_t>(found - at))
            size += found - at
            memcpy(target + size, self.substitute.data, <size_t>new)
            size += new
            at = found + old
            found = dfk_find(&self.prepared, at, end - at)
        memcpy(target + size, at, <size_t>(end - at))
        return df_commit(out, size + (end - at))


cdef object lend(const df_record *record):
    """The value for a Python library that looks at it and keeps nothing of it."""
    if record.value.size <= COPY_UP_TO:
        return PyBytes_FromStringAndSize(record.value.data, record.value.size)
    return PyMemoryView_FromMemory(<char *>record.value.data, record.value.size, PyBUF_READ)


@cython.final
cdef class Regex(NativePluginABI1):
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
    thread_safe = True
    cdef readonly bytes pattern
    cdef readonly object group
    cdef readonly object flags
    cdef object search

    def __cinit__(self, pattern, group=None, flags=0):
        self.needs_gil = True
        self.pattern = as_bytes(pattern, "pattern")
        self.group = group
        self.flags = flags
        try:
            compiled = re.compile(self.pattern, flags)
        except (re.error, ValueError) as error:
            raise PluginConfigurationError(
                f"{shown(self.pattern)} is not a regular expression: {error}"
            ) from error
        if group is not None and group not in (*range(compiled.groups + 1), *compiled.groupindex):
            raise PluginConfigurationError(f"{shown(self.pattern)} has no group {group!r}")
        self.search = compiled.search

    def info(self):
        return describe(
            self, PluginType.FILTER if self.group is None else PluginType.TRANSFORMER
        )

    def __repr__(self):
        parts = [repr(self.pattern)]
        if self.group is not None:
            parts.append(f"group={self.group!r}")
        if self.flags:
            parts.append(f"flags={self.flags!r}")
        return f"Regex({', '.join(parts)})"

    def __reduce__(self):
        return Regex, (self.pattern, self.group, self.flags)

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        with gil:
            return self.match(record, out)

    cdef int match(self, const df_record *record, df_emitter *out) except? -1:
        cdef Py_ssize_t start, stop
        found = self.search(lend(record))
        if found is None:
            return DF_FILTERED
        if self.group is None:
            return DF_SKIP
        start, stop = found.span(self.group)
        if start < 0:
            return DF_FILTERED
        return df_forward(out, record, start, stop - start)


@cython.final
cdef class JsonField(NativePluginABI1):
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
    thread_safe = True
    cdef readonly str name
    cdef readonly str missing
    cdef object decode
    cdef object decode_string
    cdef object field

    def __cinit__(self, name, missing="error"):
        self.needs_gil = True
        if not isinstance(name, str):
            raise TypeError(f"name must be str, not {type(name).__name__}")
        if missing not in ("error", "filter", "skip"):
            raise ValueError(f"missing must be 'error', 'filter' or 'skip', not {missing!r}")
        self.name = name
        self.missing = missing
        self.decode, self.decode_string = field_decoders(name)

    def info(self):
        return describe(self, PluginType.TRANSFORMER)

    def __repr__(self):
        extra = "" if self.missing == "error" else f", missing={self.missing!r}"
        return f"JsonField({self.name!r}{extra})"

    def __reduce__(self):
        return JsonField, (self.name, self.missing)

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        with gil:
            return self.extract(record, out)

    cdef int extract(self, const df_record *record, df_emitter *out) except? -1:
        cdef df_view text
        raw = self.decode(lend(record)).field
        if raw is None:
            if self.missing == "filter":
                return DF_FILTERED
            if self.missing == "skip":
                return DF_SKIP
            return df_fail(out, 0, f"the object has no field {self.name!r}".encode())
        data = bytes(raw)
        if data[:1] == b'"':
            data = self.decode_string(data).encode("utf-8", "surrogatepass")
        text = bytes_view(data)
        memcpy(reserve(out, text.size), text.data, <size_t>text.size)
        return df_commit(out, text.size)


def shown(pattern):
    """A pattern as it was written, most likely: as text."""
    return repr(pattern.decode(errors="backslashreplace"))


def field_decoders(name):
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
    shape = msgspec.defstruct(
        "Shape", [("field", msgspec.Raw, None)], rename={"field": name}
    )
    decode = msgspec.json.Decoder(shape).decode

    def decode_object(value):
        try:
            return decode(value)
        except msgspec.ValidationError as error:  # it says that for programmers
            raise PluginProcessingError("the value is not a JSON object") from error

    return decode_object, msgspec.json.Decoder(str).decode


def simd_level():
    """The instruction set that the kernels use, such as ``"avx2"``."""
    return dfk_simd().decode()


def simd_levels():
    """The instruction sets that this CPU has, best first."""
    levels = []
    while dfk_level(<int>len(levels)) is not NULL:
        levels.append(dfk_level(<int>len(levels)).decode())
    return levels


select_from_environment()
