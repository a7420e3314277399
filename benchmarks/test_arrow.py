"""Arrow data in and out: A1 to A4."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from benchmarks.peers import PEERS, as_bytes
from benchmarks.targets import ENGINES
from benchmarks.workload import JOBS
from dataflare import RecordBatch

COLUMNS: dict[str, Callable[[list[bytes]], Any]] = {
    "string": lambda lines: pa.array(lines, pa.string()),
    "large_string": lambda lines: pa.array(lines, pa.large_string()),
    "string_view": lambda lines: pa.array(lines, pa.string_view()),
    "dictionary of 16": lambda lines: pa.array(
        (lines[:16] * (len(lines) // 16 + 1))[: len(lines)], pa.string()
    ).dictionary_encode(),
    "chunks of 65,536": lambda lines: pa.chunked_array(
        [lines[start : start + 65_536] for start in range(0, len(lines), 65_536)], pa.string()
    ),
}
"""What is imported, made by pyarrow."""


def values_of(table: Any) -> list[Any]:
    """The only column of a table of pyarrow's or a frame of polars'."""
    column = table.to_series() if isinstance(table, pl.DataFrame) else table[0]
    values: list[Any] = column.to_list() if isinstance(table, pl.DataFrame) else column.to_pylist()
    return values


class Given:
    """Capsules of an array, which moves them out of pyarrow at once; a stream for chunks."""

    def __init__(self, column: Any) -> None:
        self.column = column
        kind = "stream" if isinstance(column, pa.ChunkedArray) else "array"
        self.export = getattr(column, f"__arrow_c_{kind}__")
        setattr(self, f"__arrow_c_{kind}__", lambda: self.capsules)
        self.capsules: object = None

    def again(self) -> Given:
        """Itself, with new capsules."""
        self.capsules = self.export()
        return self


@pytest.mark.parametrize("kind", COLUMNS)
def test_a1(kind, compare, lines):
    """What a producer does for its capsules is done before the clock starts."""
    given = Given(COLUMNS[kind](lines))
    functions = {
        "DataFlare": lambda: RecordBatch.from_arrow(given),
        "polars": lambda: pl.Series(given),
    }
    found = compare("A1", kind, functions, len(lines), rounds=15, prepare=given.again)
    expected = given.column.to_pylist()
    assert found["DataFlare"].to_pylist() == [text.encode() for text in expected]
    assert found["polars"].to_list() == expected


@pytest.mark.parametrize("job", ["an array", "a record batch"])
def test_a1_of_one(job, compare, benchmark, lines, quick):
    """Beyond what pyarrow does for the capsules."""
    count = 100 if quick else 20_000
    array = pa.array(lines[:1], pa.string())
    data = array if job == "an array" else pa.record_batch({"line": array})

    def imported() -> RecordBatch:
        for _ in repeat(None, count):
            batch = RecordBatch.from_arrow(data)
        return batch

    def exported() -> object:
        for _ in repeat(None, count):
            capsules = data.__arrow_c_array__()
        return capsules

    functions = {"all of it": imported, "the capsules of pyarrow": exported}
    found = compare("A1 of one", job, functions, count, rounds=15)
    assert found["all of it"].to_pylist() == lines[:1]
    rows = benchmark.extra_info["rows"]
    (*_, whole), (*_, capsules) = rows
    rows.insert(0, ("A1 of one", job, "DataFlare", whole - capsules))


@pytest.mark.parametrize("type", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("job", ["as it came", *JOBS])
def test_a2(job, type, measure, manager, lines, answers):
    """The capsules of a stream: what a consumer gets, read or not."""
    result: Any = RecordBatch.from_arrow(pa.array(lines, pa.string()))
    expected = lines
    if job in JOBS:
        result, expected = manager.process_batch(job, result), answers[job]

    def run() -> object:
        return result.to_arrow(type=type).__arrow_c_stream__()

    measure("A2", f"{job}, {type}", "DataFlare", run, len(expected), rounds=15)
    assert as_bytes(values_of(pa.table(result.to_arrow(type=type)))) == expected


ROUND_TRIPS: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "DataFlare": ("pyarrow", lambda array: array, pa.table),
    "DataFlare, polars": (
        "polars",
        lambda frame: frame,
        lambda result: pl.DataFrame(result.to_arrow(type="string_view")),
    ),
    "DataFlare, duckdb": (
        "duckdb",
        lambda connection: connection.sql("SELECT line FROM log"),
        lambda result: pa.RecordBatchReader.from_stream(result).read_all(),
    ),
}
"""By who: whose form of the lines comes in, and what turns it and the result into Arrow data."""


@pytest.mark.parametrize("job", JOBS)
def test_a3(job, compare, manager, loaded, lines, answers):

    def ours(partner: str, take: Callable[[Any], Any], give: Callable[[Any], Any]) -> Any:
        data = loaded(partner)
        return lambda: give(manager.process_batch(job, take(data)))

    def theirs(who: str) -> Any:
        function, data = PEERS[who].job(job), loaded(who)
        return lambda: function(data)

    functions = {who: ours(*trip) for who, trip in ROUND_TRIPS.items()}
    functions |= {who: theirs(who) for who in ENGINES}
    found = compare("A3", job, functions, len(lines), rounds=9)
    for who in ENGINES:
        assert as_bytes(PEERS[who].values(found[who])) == answers[job], who
    for who in ROUND_TRIPS:
        assert as_bytes(values_of(found[who])) == answers[job], who


@pytest.mark.parametrize("job", JOBS)
def test_a4(job, compare, manager, lines, answers):
    functions: dict[str, Callable[[], Any]] = {
        "DataFlare": lambda: manager.process_batch(job, lines).output.to_pylist()
    }
    for who in (*ENGINES, "list comprehension"):
        functions[who] = lambda peer=PEERS[who]: peer.values(peer.job(job)(peer.load(lines)))
    found = compare("A4", job, functions, len(lines), rounds=5)
    for who, values in found.items():
        assert as_bytes(values) == answers[job], who
