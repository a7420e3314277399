"""The plugins that come with the library: what each does with what a record may hold."""

import importlib.abc
import itertools
import json
import pickle
import re
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare.errors import PluginConfigurationError, PluginProcessingError
from dataflare.types import PluginType

SUCCESS, FILTERED, SKIP, ERROR = range(4)


def over_values(backend, values):
    """Values that are objects of their own."""
    return backend.RecordBatch.from_values(values)


def over_lines(backend, values):
    """Values that stand next to each other in one block."""
    return backend.RecordBatch.from_lines(b"".join(value + b"\n" for value in values))


def over_rows(backend, values):
    """Values in the middle of a block that has other bytes in front and behind."""
    lines = b"".join(value + b"\r\n" for value in [b"ERROR", *values, b"ERROR"])
    return backend.RecordBatch.from_lines(lines)[1:-1]


LAYOUTS = [over_values, over_lines, over_rows]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def kept(backend, plugin, batch):
    """What goes on."""
    result = backend.run_batch(plugin, batch)
    assert result.errors == []
    return result.output.to_pylist()


@layouts
@pytest.mark.parametrize(
    ("needle", "values"),
    [
        (b"ERROR", [b"ERROR", b"an ERROR", b"ERROR here", b"ERRO", b"RROR", b"", b"error", b"ER"]),
        (b"a", [b"a", b"", b"ba", b"b", b"aaaa"]),
        (b"aa", [b"a", b"aa", b"aaa", b"aba", b"a a"]),
        (b"aab", [b"aaab", b"aaaab", b"abaab", b"aba", b"aaaa"]),
        (b"\0", [b"\0", b"a\0b", b"", b"0"]),
        (b"a\0b", [b"a\0b", b"a\0\0b", b"xa\0bx"]),
        (b"", [b"", b"a", b"bc"]),
        ("\xe9", ["\xe9".encode(), b"\xc3", b"\xa9", b"\xe9"]),
        (b"x" * 100, [b"x" * 99, b"x" * 100, b"x" * 300, b"y" + b"x" * 100]),
        (b"b" + b"a" * 40, [b"a" * 50, b"b" + b"a" * 39, b"a" * 33 + b"b" + b"a" * 40]),
    ],
)
def test_contains(backend, layout, needle, values) -> None:
    """As Python's `in`."""
    searched = needle.encode() if isinstance(needle, str) else needle
    plugin = backend.Contains(needle)
    batch = layout(backend, values)
    assert batch.to_pylist() == values
    assert kept(backend, plugin, batch) == [value for value in values if searched in value]
    assert plugin.needle == searched


@pytest.mark.parametrize("needle", [b"b\na", b"\n", b"a\n", b"\nb", b"b\r\na", b"\r"])
@pytest.mark.parametrize("text", [b"ab\nab\nab\n", b"ab\r\nab\r\nab\r\n", b"ab\nab\nab", b"\n\n"])
def test_a_needle_over_the_end_of_a_line_is_in_no_record(backend, needle, text) -> None:
    """What ends a line is not part of a value, though it stands right behind it in memory."""
    batch = backend.RecordBatch.from_lines(text)
    expected = [value for value in batch.to_pylist() if needle in value]
    assert expected == []
    assert kept(backend, backend.Contains(needle), batch) == expected
    lined = backend.RecordBatch.from_lines(b"a\r\nb\r\n", newline=b"\n")
    assert kept(backend, backend.Contains(b"\r"), lined) == [b"a\r", b"b\r"]


def test_a_hit_across_a_border_does_not_hide_a_hit_behind_it(backend) -> None:
    """Rows touch each other: the needle is found over the border and in the value itself."""
    rows = np.frombuffer(b"xxababxxbbaabxxxxabbaabb", np.uint8).reshape(6, 4)
    for needle in (b"ab", b"aab", b"aa", b"ba", b"bb", b"xx", b"bab", b"baab"):
        batch = backend.RecordBatch.from_values(rows)
        expected = [value for value in batch.to_pylist() if needle in value]
        assert kept(backend, backend.Contains(needle), batch) == expected


@layouts
@given(data=st.data())
def test_filters_agree_with_python(backend, layout, data) -> None:
    """Random values of few letters, so that needles nearly match everywhere."""
    word = st.text("ab\0", max_size=12).map(str.encode)
    values = data.draw(st.lists(word | st.builds(lambda w: w * 20, word), max_size=30))
    needle = data.draw(word)
    batch = layout(backend, values)
    assert kept(backend, backend.Contains(needle), batch) == [v for v in values if needle in v]
    assert kept(backend, backend.StartsWith(needle), batch) == [
        v for v in values if v.startswith(needle)
    ]


@layouts
def test_starts_with(backend, layout) -> None:
    """As Python's `startswith`; a prefix longer than the value does not read on."""
    values = [b"GET /", b"GET", b"GE", b"", b"get /", b" GET", b"GETGET"]
    batch = layout(backend, values)
    assert kept(backend, backend.StartsWith(b"GET"), batch) == [b"GET /", b"GET", b"GETGET"]
    assert kept(backend, backend.StartsWith("GET /"), batch) == [b"GET /"]
    assert kept(backend, backend.StartsWith(b""), batch) == values
    assert kept(backend, backend.StartsWith(b"GE\n"), batch) == []


@layouts
def test_upper_and_lower_change_ascii_letters_alone(backend, layout) -> None:
    """Every byte value, at every place of a vector, and lengths around its width."""
    alphabet = bytes(byte for byte in range(256) if byte not in b"\r\n")
    values = [alphabet[i:] + alphabet[:i] for i in range(0, 254, 7)]
    values += [b"aZ" * n for n in range(40)] + [b"", "\xe9\xc9".encode()]
    batch = layout(backend, values)
    assert kept(backend, backend.Upper(), batch) == [value.upper() for value in values]
    assert kept(backend, backend.Lower(), batch) == [value.lower() for value in values]
    assert batch.to_pylist() == values


@pytest.mark.parametrize("shown", [1, 100])
def test_a_transformed_batch_joins_as_its_values(backend, shown) -> None:
    """The lines of the output, of batches with many and with few other bytes between values."""
    text = b"".join(b"line %d\n" % i + b"x" * 50 + b"\n" for i in range(100))
    batch = backend.RecordBatch.from_lines(text)[::1][: 2 * shown]
    output = backend.run_batch(backend.Upper(), batch).output
    assert bytes(output.to_lines()) == bytes(batch.to_lines()).upper()
    picked = backend.run_batch(backend.Upper(), batch[::2]).output
    assert picked.to_pylist() == [value.upper() for value in batch.to_pylist()[::2]]


@layouts
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"a", b"b"), (b"a", b""), (b"a", b"aa"), (b"aa", b"a"), (b"aa", b"b"), (b"aba", b"x"),
        (b"ab", b"ba"), (b"\0", b"NUL"), ("\xe9", "e"), (b"abc", b"-" * 500), (b"zz", b"never"),
    ],
)  # fmt: skip
def test_replace(backend, layout, old, new) -> None:
    """As Python's `replace`; a record without an occurrence is skipped, not copied."""
    plugin = backend.Replace(old, new)
    values = [
        b"", b"a", b"aa", b"aaa", b"aaaa", b"abababa", b"abcabc", b"xabc", b"abcx", b"\0a\0",
        "caf\xe9".encode(), b"b" * 50, b"ab" * 300,
    ]  # fmt: skip
    result = backend.run_batch(plugin, layout(backend, values))
    expected = [value.replace(plugin.old, plugin.new) for value in values]
    assert result.output.to_pylist() == expected
    assert result.status.tolist() == [SUCCESS if plugin.old in value else SKIP for value in values]


def test_replace_may_grow_beyond_every_buffer(backend) -> None:
    """Values larger than the largest slab, and many of them."""
    value = b"a" * 100_000
    batch = backend.RecordBatch.from_values([value, b"none", value])
    with backend.MemoryPool() as pool:
        result = backend.run_batch(backend.Replace(b"a", b"b" * 50), batch, pool)
        sizes = [len(value) for value in result.output.to_pylist()]
        assert sizes == [5_000_000, 4, 5_000_000]
        assert set(result.output[2].value) == {ord("b")}
        del result
        assert pool.get_stats().in_use == 0


LOG = [b"id=42 ERROR disk", b"id=7", b"no number", b"", b"ID=9", b"id=1 id=2", b"\xff id=3"]


def test_replace_in_a_value_that_is_written_to_meanwhile(backend) -> None:
    """How much is replaced depends on the moment; nothing is written outside of the output."""
    few, many = b"b" * (1 << 20), b"a" * (1 << 20)
    value = bytearray(few)
    value[0] = ord("a")
    ended = threading.Event()

    def write():
        for content in itertools.cycle((many, few)):
            value[1:] = content[1:]
            if ended.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(50):
            batch = backend.RecordBatch.from_values([value])
            (made,) = backend.run_batch(backend.Replace("a", "xyz"), batch).output.to_pylist()
            assert len(made) == len(value) + 2 * made.count(b"xyz")
    finally:
        ended.set()
        thread.join()


@layouts
def test_regex_as_a_filter(backend, layout) -> None:
    """Searches, not matches; the record goes on unchanged."""
    batch = layout(backend, LOG)
    assert kept(backend, backend.Regex(rb"id=\d"), batch) == [LOG[0], LOG[1], LOG[5], LOG[6]]
    assert kept(backend, backend.Regex("id=", flags=re.IGNORECASE), batch) == [
        LOG[0], LOG[1], LOG[4], LOG[5], LOG[6],
    ]  # fmt: skip
    assert kept(backend, backend.Regex(rb"^$"), batch) == [b""]
    assert kept(backend, backend.Regex(rb"\n|\r"), batch) == []


@layouts
@pytest.mark.parametrize(
    ("pattern", "group", "expected"),
    [
        (rb"id=(\d+)", 1, [b"42", b"7", b"1", b"3"]),
        (rb"id=(\d+)", 0, [b"id=42", b"id=7", b"id=1", b"id=3"]),
        (rb"id=(?P<number>\d+)", "number", [b"42", b"7", b"1", b"3"]),
        (rb"(ERROR)|(id=1)", 2, [b"id=1"]),
        (rb"id=()", 1, [b"", b"", b"", b""]),
        (rb"[^=]*$", 0, [b"42 ERROR disk", b"7", b"no number", b"", b"9", b"2", b"3"]),
    ],
)
def test_regex_extracts_a_group(backend, layout, pattern, group, expected) -> None:
    """A record without a match, or whose group took no part, is dropped."""
    result = backend.run_batch(backend.Regex(pattern, group), layout(backend, LOG))
    assert result.output.to_pylist() == expected
    assert result.success_count == len(expected)
    assert result.filtered_count == len(LOG) - len(expected)


def test_regex_extracts_from_long_values_in_place(backend) -> None:
    """Longer than what is copied for the search; the group is at the very end."""
    value = b"-" * 100_000 + b"id=42"
    assert kept(backend, backend.Regex(rb"id=(\d+)", 1), over_lines(backend, [value])) == [b"42"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("(",), r"^'\(' is not a regular expression"),
        ((b"(\xff",), r"^'\(\\\\xff' is not a regular expression"),
        ((rb"a", 1), "has no group 1"),
        ((rb"a", -1), "has no group -1"),
        ((rb"(a)", "name"), "has no group 'name'"),
    ],
)
def test_regex_refuses_what_cannot_work(backend, arguments, message) -> None:
    """A configuration error, which is a ValueError too."""
    with pytest.raises(PluginConfigurationError, match=message) as caught:
        backend.Regex(*arguments)
    assert isinstance(caught.value, ValueError)


@layouts
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"name": "x"}', b"x"),
        (b' { "a" : 1 , "name" : "x" } ', b"x"),
        (b'{"name": ""}', b""),
        (b'{"name": "\\u00e9\\n\\"\\\\\\ud83d\\ude00"}', '\xe9\n"\\\U0001f600'.encode()),
        ('{"name": "\xe9"}'.encode(), "\xe9".encode()),
        (b'{"name": 1.50}', b"1.50"),
        (b'{"name": -0}', b"-0"),
        (b'{"name": 12345678901234567890123}', b"12345678901234567890123"),
        (b'{"name": true}', b"true"),
        (b'{"name": null}', b"null"),
        (b'{"name": [1, {"name": 2}]}', b'[1, {"name": 2}]'),
        (b'{"name": {"a":  1}}', b'{"a":  1}'),
        (b'{"other": {"name": 1}, "name": 2}', b"2"),
        (b'{"other": "' + b"z" * 5000 + b'", "name": "far"}', b"far"),
        (b'{"name": "' + b"z" * 5000 + b'"}', b"z" * 5000),
    ],
)
def test_json_field(backend, layout, text, expected) -> None:
    """A string unescaped, anything else as it is written."""
    assert kept(backend, backend.JsonField("name"), layout(backend, [text])) == [expected]


def test_a_field_name_may_be_anything(backend) -> None:
    """Empty, not an identifier, a keyword, not ASCII; what JSON must escape is refused."""
    for name in ("", "a b", "class", "__init__", "\xe9", "field", "0"):
        text = json.dumps({"other": 0, name: "found"}, ensure_ascii=False).encode()
        assert kept(backend, backend.JsonField(name), over_values(backend, [text])) == [b"found"]
    for name in ('quo"te', "back\\slash", "new\nline"):
        with pytest.raises(ValueError, match="names must not contain"):
            backend.JsonField(name)


@layouts
@pytest.mark.parametrize(("missing", "status"), [("error", 3), ("filter", 1), ("skip", 2)])
def test_a_missing_field_is_what_was_chosen(backend, layout, missing, status) -> None:
    """An error, or dropped, or unchanged; a field of an inner object does not count."""
    plugin = backend.JsonField("name", missing)
    values = [b"{}", b'{"Name": 1}', b'{"other": {"name": 1}}']
    result = backend.run_batch(plugin, layout(backend, values))
    assert result.status.tolist() == [status] * 3
    assert result.output.to_pylist() == (values if missing == "skip" else [])
    for _, error in result.errors:
        assert (str(error), error.plugin) == ("the object has no field 'name'", "JsonField")


@layouts
@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"name"', b"[]", b"5", b'"name"', b"null", b"text", b'{"name": x}']
)
def test_what_is_no_object_is_an_error(backend, layout, text) -> None:
    """Whatever `missing` says; the parser's own error is the cause."""
    for missing in ("error", "filter", "skip"):
        good = b'{"name": "good"}'
        result = backend.run_batch(
            backend.JsonField("name", missing), layout(backend, [good, text, good])
        )
        assert result.status.tolist() == [SUCCESS, ERROR, SUCCESS]
        ((index, error),) = result.errors
        assert (index, type(error), error.plugin) == (1, PluginProcessingError, "JsonField")
        assert isinstance(error.__cause__, ValueError)
        if text in (b"[]", b"5", b'"name"', b"null"):
            assert str(error) == "the value is not a JSON object"
        else:
            assert str(error.__cause__) in str(error)


@pytest.mark.parametrize(
    ("lacking", "error", "words"),
    [("msgspec", PluginConfigurationError, "dataflare[json]"), ("other", ImportError, "no other")],
)
def test_json_field_says_what_it_needs(backend, monkeypatch, lacking, error, words) -> None:
    """Without the parser the sentence names the extra; that the parser is broken is not hidden."""

    class Absent(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "msgspec":
                raise ModuleNotFoundError(f"no {lacking}", name=lacking)

    monkeypatch.delitem(sys.modules, "msgspec", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(error, match=re.escape(words)):
        backend.JsonField("name")


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("Contains", (5,), TypeError),
        ("Contains", (None,), TypeError),
        ("Contains", (), TypeError),
        ("StartsWith", (["a"],), TypeError),
        ("Upper", (1,), TypeError),
        ("Lower", (1,), TypeError),
        ("Replace", (b"a",), TypeError),
        ("Replace", (b"a", None), TypeError),
        ("Replace", (1, b"a"), TypeError),
        ("Replace", (b"", b"a"), ValueError),
        ("Regex", (5,), TypeError),
        ("JsonField", (b"name",), TypeError),
        ("JsonField", ("name", "ignore"), ValueError),
        ("JsonField", ("name", None), ValueError),
        ("Chain", (), TypeError),
        ("Chain", (len,), TypeError),
        ("Chain", (b"upper",), TypeError),
    ],
)
def test_bad_arguments_are_refused(backend, name, arguments, error) -> None:
    """When the plugin is made, not at the first record."""
    with pytest.raises(error):
        getattr(backend, name)(*arguments)


ALL = [
    ("Contains", (b"a",), "Contains(b'a')", PluginType.FILTER),
    ("StartsWith", ("\xe9",), "StartsWith(b'\\xc3\\xa9')", PluginType.FILTER),
    ("Upper", (), "Upper()", PluginType.TRANSFORMER),
    ("Lower", (), "Lower()", PluginType.TRANSFORMER),
    ("Replace", ("a", bytearray(b"b")), "Replace(b'a', b'b')", PluginType.TRANSFORMER),
    ("Regex", ("a",), "Regex(b'a')", PluginType.FILTER),
    ("Regex", ("(a)", 1, re.I.value), "Regex(b'(a)', group=1, flags=2)", PluginType.TRANSFORMER),
    ("JsonField", ("a",), "JsonField('a')", PluginType.TRANSFORMER),
    ("JsonField", ("a", "skip"), "JsonField('a', missing='skip')", PluginType.TRANSFORMER),
]


@pytest.mark.parametrize(("name", "arguments", "text", "kind"), ALL, ids=[row[2] for row in ALL])
def test_a_builtin_tells_what_it_is(backend, name, arguments, text, kind) -> None:
    """Repr, info, and pickling to an equal one."""
    plugin = getattr(backend, name)(*arguments)
    assert isinstance(plugin, backend.DataFlarePlugin)
    assert repr(plugin) == repr(pickle.loads(pickle.dumps(plugin))) == text
    info = plugin.info()
    assert (info.name, info.plugin_type, info.author) == (name, kind, "DataFlare")
    assert info.description.endswith(".")


@pytest.mark.parametrize(("name", "arguments", "text", "kind"), ALL, ids=[row[2] for row in ALL])
def test_a_builtin_processes_one_record(backend, name, arguments, text, kind) -> None:
    """By its own method, with short and long values of any kind; else a TypeError."""
    plugin = getattr(backend, name)(*arguments)
    for value in (b'{"a": "aA"}', bytearray(b'{"a": 1}'), b'{"a": "' + b"aA" * 50_000 + b'"}'):
        outcome = plugin.process(backend.PluginRecord(value))
        assert (
            outcome
            == backend.run_batch(plugin, backend.RecordBatch.from_values([value])).results[0]
        )
    for wrong in (None, b'{"a": 1}'):
        with pytest.raises(TypeError, match="record"):
            plugin.process(wrong)
