"""Hypothesis strategies of values, keys, metadata, records and batches.

They cover what real input has and examples forget: nothing at all, NUL, bytes that are no UTF-8,
line ends, numbers at the ends of their range. `AWKWARD` and `HUGE` are records that every plugin
should have seen once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hypothesis import strategies as st

from dataflare._backend import PluginRecord, RecordBatch

__all__ = [
    "AWKWARD",
    "EVERY_BYTE",
    "HUGE",
    "batches",
    "keys",
    "metadata",
    "offsets",
    "partitions",
    "records",
    "timestamps",
    "values",
]

_INT32 = 1 << 31
_INT64 = 1 << 63
_PIECES = (
    b"a", b"B", b"7", b" ", b"\0", b"\r", b"\t", b'"', b"{", b"ERROR", b"id=42",
    b"\xff", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80",
    b'{"name": "x"}', b'{"name": 1.50}', b'{"name"', b"[]", b"z" * 70,
)  # fmt: skip

AWKWARD: tuple[PluginRecord, ...] = (
    PluginRecord(b""),
    PluginRecord(b"", key=b""),
    PluginRecord(b"text", key=b"key", metadata={"source": "a", "tags": ["x", "y"]}),
    PluginRecord(b"no key", metadata={}),
    PluginRecord(b"\0"),
    PluginRecord(b"\0a\0", key=b"\0"),
    PluginRecord(b"two\nlines\r\n", key=b"\n"),
    PluginRecord(b"\n"),
    PluginRecord(b" "),
    PluginRecord("naïve 😀".encode()),
    PluginRecord(b"\xff\xfe\xc3", key=b"\xff"),  # no UTF-8
    PluginRecord(b"\xed\xa0\x80"),  # half a surrogate pair
    PluginRecord(b"\xef\xbb\xbftext"),  # a byte order mark
    PluginRecord(bytes(range(256)), key=bytes(range(255, -1, -1))),
    PluginRecord(b"1e999"),
    PluginRecord(b'{"name": "x", "deep": ' + b"[" * 200 + b"]" * 200 + b"}"),
    PluginRecord(b"min", timestamp=-_INT64, partition=-_INT32, offset=-_INT64),
    PluginRecord(b"max", timestamp=_INT64 - 1, partition=_INT32 - 1, offset=_INT64 - 1),
    PluginRecord(b"x" * 255),
    PluginRecord(b"x" * 256),
    PluginRecord(b"x" * 257, key=b"k" * 4097),
    PluginRecord(b"ab" * 35_000),  # longer than what is processed with the GIL held
    PluginRecord(b"odd", metadata={"": None, "n": -1.5, "ä": {"deep": [1, {}]}, "long": "x" * 999}),
)
"""Records that plugins tend to forget."""

EVERY_BYTE: tuple[PluginRecord, ...] = tuple(PluginRecord(bytes([byte])) for byte in range(256))
"""A record for each value that a byte can have."""

HUGE: tuple[PluginRecord, ...] = (PluginRecord(b"0123456789abcdef" * (1 << 16) + b"!"),)
"""A record of a megabyte and a byte."""


def values(words: Iterable[bytes] = (), *, max_size: int = 60) -> st.SearchStrategy[bytes]:
    """Values of records.

    Parameters
    ----------
    words : iterable of bytes
        What the plugin looks for: values are made of these as well, whole, repeated and side by
        side with other bytes.
    max_size : int
        Of values of random bytes; those made of words may be longer.

    Returns
    -------
    SearchStrategy of bytes
    """
    piece = st.sampled_from([*words, *_PIECES])
    text = st.lists(piece, max_size=6).map(b"".join)
    return st.one_of(st.binary(max_size=max_size), piece, text, text.map(lambda value: value * 40))


def keys() -> st.SearchStrategy[bytes | None]:
    """Keys of records, and none.

    Returns
    -------
    SearchStrategy of bytes or None
    """
    return st.one_of(st.none(), st.binary(max_size=20), st.sampled_from(_PIECES))


def metadata() -> st.SearchStrategy[dict[str, object] | None]:
    """Metadata of records, nested too, and none.

    Returns
    -------
    SearchStrategy of dict or None
    """
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=10), st.binary(max_size=10)
    )
    tree = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    )
    names = st.sampled_from(["a", "b", "tags", ""]) | st.text(max_size=8)
    return st.one_of(st.none(), st.dictionaries(names, tree, max_size=3))


def timestamps() -> st.SearchStrategy[int]:
    """Nanoseconds since the epoch, over all of their 64 bits.

    Returns
    -------
    SearchStrategy of int
    """
    now = 1_700_000_000 * 10**9
    return st.one_of(st.integers(-_INT64, _INT64 - 1), st.integers(now, now + 10**9))


def partitions() -> st.SearchStrategy[int]:
    """Numbers of partitions, over all of their 32 bits.

    Returns
    -------
    SearchStrategy of int
    """
    return st.integers(-_INT32, _INT32 - 1) | st.integers(0, 9)


def offsets() -> st.SearchStrategy[int]:
    """Offsets, over all of their 64 bits.

    Returns
    -------
    SearchStrategy of int
    """
    return st.integers(-_INT64, _INT64 - 1) | st.integers(0, 99)


def records(
    values: st.SearchStrategy[bytes] | None = None,
    *,
    keys: st.SearchStrategy[bytes | None] | None = None,
    metadata: st.SearchStrategy[Mapping[str, object] | None] | None = None,
) -> st.SearchStrategy[PluginRecord]:
    """Records; what is not given is anything.

    Parameters
    ----------
    values, keys, metadata : SearchStrategy, optional

    Returns
    -------
    SearchStrategy of PluginRecord
    """
    value = _values() if values is None else values
    return st.one_of(
        st.builds(PluginRecord, value),
        st.builds(
            PluginRecord,
            value,
            key=_keys() if keys is None else keys,
            metadata=_metadata() if metadata is None else metadata,
            timestamp=timestamps(),
            partition=partitions(),
            offset=offsets(),
        ),
    )


_values, _keys, _metadata = values, keys, metadata  # the arguments above have the same names


def batches(
    records: st.SearchStrategy[PluginRecord] | None = None, *, max_size: int = 8
) -> st.SearchStrategy[RecordBatch]:
    """Batches of records, the empty one too.

    Parameters
    ----------
    records : SearchStrategy of PluginRecord, optional
    max_size : int
        Records in a batch at most.

    Returns
    -------
    SearchStrategy of RecordBatch
    """
    return st.lists(_records() if records is None else records, max_size=max_size).map(
        RecordBatch.from_records
    )


_records = records
