"""Hypothesis strategies of batches and plugins, as recipes that either backend can follow."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dataflare.testing import strategies as public

# Pieces that the needles, prefixes and patterns below meet, overlap and just miss.
WORDS = [
    b"a", b"ab", b"aba", b"A", b"B", b"ERROR", b"ERRO", b"error", b" ", b"x", b"7", b"id=42",
    b"\0", b"\r", b"\xff", b"\xc3\xa9", b'{"name": "x"}', b'{"name": 1.50}', b'{"name": null}',
    b'{"other": [1, {"name": 2}]}', b'{"name": "\\u00e9\\n"}', b'{"name"', b"[]", b"z" * 70,
]  # fmt: skip
WORD = st.sampled_from(WORDS)
TEXT = st.lists(WORD, max_size=6).map(b"".join)
VALUES = st.one_of(
    WORD,
    TEXT,
    st.binary(max_size=40),
    TEXT.map(lambda text: text * 40),
    public.values(WORDS, max_size=40),
)
LINES = VALUES.map(lambda value: value.replace(b"\n", b"").replace(b"\r", b""))
METADATA = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=2),
    public.metadata(),
)


@dataclass(frozen=True)
class Batch:
    """How to make a batch: the source, the other columns, and which part of it."""

    source: str
    payload: Any
    columns: dict[str, Any] = field(default_factory=dict)
    part: slice = field(default_factory=lambda: slice(None))

    def build(self, backend: SimpleNamespace) -> Any:
        return self._whole(backend.RecordBatch)[self.part]

    def _whole(self, record_batch: Any) -> Any:
        if self.source == "lines":
            return record_batch.from_lines(self.payload)
        return record_batch.from_values(self.payload, **self.columns)


def column(entries: st.SearchStrategy[Any], length: int) -> st.SearchStrategy[Any]:
    """A column of some length, or none at all."""
    return st.none() | st.lists(entries, min_size=length, max_size=length)


def columns(length: int) -> st.SearchStrategy[dict[str, Any]]:
    """Every column besides the values."""
    return st.fixed_dictionaries(
        {
            "keys": column(public.keys() | VALUES, length),
            "timestamps": column(public.timestamps(), length),
            "partitions": column(public.partitions(), length),
            "offsets": column(public.offsets(), length),
            "metadata": column(METADATA, length),
        }
    )


PARTS = st.one_of(
    st.just(slice(None)), st.builds(slice, st.integers(0, 4), st.integers(3, 20)), st.slices(12)
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Batches of every source, whole and cut."""
    source = draw(st.sampled_from(["values", "mixed", "strings", "rows", "lines", "crlf"]))
    part = draw(PARTS)
    if source in ("lines", "crlf"):
        end = b"\n" if source == "lines" else b"\r\n"
        lines = draw(st.lists(LINES, max_size=12))
        last = draw(st.sampled_from([b"", end]))
        return Batch("lines", end.join(lines) + last, part=part)
    if source == "rows":
        shape = draw(st.tuples(st.integers(0, 8), st.integers(0, 9)))
        letters = draw(st.binary(min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
        payload: Any = np.frombuffer(letters, np.uint8).reshape(shape)
    else:
        payload = draw(st.lists(VALUES, max_size=12))
        if source == "strings":
            payload = np.array(payload, "S") if payload else np.array([], "S1")
        elif source == "mixed":
            forms = st.sampled_from([bytes, bytearray, memoryview])
            payload = [draw(forms)(value) for value in payload]
    return Batch(source, payload, draw(columns(len(payload))), part)


@dataclass(frozen=True)
class Plugin:
    """How to make a plugin; the name says which."""

    name: str
    build: Callable[[SimpleNamespace], Any] = field(repr=False)


def builtin(kind: str, *arguments: Any) -> Plugin:
    """One that comes with the library."""
    return Plugin(f"{kind}{arguments!r}", lambda backend: getattr(backend, kind)(*arguments))


NEEDLES = st.sampled_from([b"", b"a", b"aba", b"ERROR", b"\n", b"\0", b"\xff", b"zz", b"id=", b"}"])
NATIVE = st.one_of(
    NEEDLES.map(lambda needle: builtin("Contains", needle)),
    NEEDLES.map(lambda prefix: builtin("StartsWith", prefix)),
    st.sampled_from([builtin("Upper"), builtin("Lower")]),
    st.builds(lambda old, new: builtin("Replace", old, new), NEEDLES.filter(bool), NEEDLES),
    st.sampled_from(
        [
            builtin("Regex", rb"a.?a"),
            builtin("Regex", rb"id=(?P<id>\d+)", "id"),
            builtin("Regex", rb"(a)|(b)", 2),
            builtin("Regex", rb"[^ ]*", 0),
            builtin("JsonField", "name"),
            builtin("JsonField", "name", "filter"),
            builtin("JsonField", "name", "skip"),
        ]
    ),
)


def reverse(value: bytes) -> bytes:
    return value[::-1]


def fail_on_a(value: bytes) -> bytes:
    if b"a" in value:
        raise ValueError(f"an a in {len(value)} bytes")
    return value


def give_text_for_b(value: bytes) -> object:
    return "text" if b"b" in value else bytearray(value)


def is_long(value: bytes) -> bool:
    return len(value) > 3


def divide_by_length(value: bytes) -> float:
    return 1 / len(value)


def judge_by_length(backend: SimpleNamespace) -> Any:
    """A class that shows every outcome, by the length of the value."""
    result = backend.PluginResult

    class Judge(backend.DataFlarePlugin):
        def process(self, record: Any) -> object:
            length = len(record.value)
            return [
                lambda: result.success(record.value + b"!"),
                lambda: result.filtered(),
                lambda: result.skip(),
                lambda: result.error(f"length {length}", length),
                lambda: result.success(
                    record.key or b"no key", {**(record.metadata or {}), "length": length}
                ),
                lambda: result.success(memoryview(record.value)[1:]),
                lambda: None,
                lambda: {}["missing"],
            ][length % 8]()

    return Judge()


PYTHON = st.sampled_from(
    [
        Plugin("reverse", lambda backend: backend.map_plugin(reverse)),
        Plugin("fail_on_a", lambda backend: backend.map_plugin(fail_on_a)),
        Plugin("give_text_for_b", lambda backend: backend.map_plugin(give_text_for_b)),
        Plugin("is_long", lambda backend: backend.filter_plugin(is_long)),
        Plugin("divide_by_length", lambda backend: backend.filter_plugin(divide_by_length)),
        Plugin("Judge", judge_by_length),
    ]
)
MEMBERS = NATIVE | PYTHON


def chain_of(members: list[Plugin]) -> Plugin:
    """A chain of these."""
    return Plugin(
        " | ".join(member.name for member in members),
        lambda backend: backend.Chain(*(member.build(backend) for member in members)),
    )


NATIVE_CHAINS = st.lists(NATIVE, min_size=2, max_size=5)
CHAINS = st.lists(MEMBERS, min_size=1, max_size=5)
PLUGINS = MEMBERS | CHAINS.map(chain_of)
