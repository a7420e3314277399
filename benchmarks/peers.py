"""How others do the same: for each peer, the input in the form it likes best and the three jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import daft
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from daft import functions as daft_functions
from streamable import stream

from benchmarks.workload import NEEDLE

TEXT = NEEDLE.decode()


@dataclass(frozen=True)
class Peer:
    """Functions of one library.

    Attributes
    ----------
    load : callable
        Makes its own form out of a list of bytes.
    filtered, upper, both : callable
        The jobs, from that form to an answer in the library's own form.
    values : callable
        The answer as a list of bytes or str, to be checked.
    """

    load: Callable[[list[bytes]], Any]
    filtered: Callable[[Any], Any]
    upper: Callable[[Any], Any]
    both: Callable[[Any], Any]
    values: Callable[[Any], list[Any]] = list

    def job(self, name: str) -> Callable[[Any], Any]:
        return {"F": self.filtered, "U": self.upper, "FU": self.both}[name]


def has_needle(line: bytes) -> bool:
    return line.find(NEEDLE) >= 0


def upper(line: bytes) -> bytes:
    return line.upper()


def as_bytes(values: list[Any]) -> list[bytes]:
    """What a peer has as strings, as bytes."""
    return [value if type(value) is bytes else value.encode() for value in values]


def arrow_table(lines: list[bytes]) -> pa.Table:
    return pa.table({"line": pa.array(lines, pa.string())})


def arrow_filter(array: pa.Array) -> pa.Array:
    return array.filter(pc.match_substring(array, TEXT))


def numpy_filter(array: np.ndarray) -> np.ndarray:
    return array[np.strings.find(array, NEEDLE) >= 0]


def duckdb_load(lines: list[bytes]) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1}).register("log", arrow_table(lines))


def duckdb_job(query: str) -> Callable[[duckdb.DuckDBPyConnection], pa.Table]:
    return lambda connection: connection.sql(query).to_arrow_table()


POLARS_HAS = pl.col("line").str.contains(TEXT, literal=True)
POLARS_UPPER = pl.col("line").str.to_uppercase()
DAFT_HAS = daft_functions.contains(daft.col("line"), TEXT)
DAFT_UPPER = daft_functions.upper(daft.col("line")).alias("line")

PEERS = {
    "polars": Peer(
        lambda lines: pl.DataFrame([pl.Series("line", lines).cast(pl.String)]),
        lambda frame: frame.filter(POLARS_HAS),
        lambda frame: frame.select(POLARS_UPPER),
        lambda frame: frame.lazy().filter(POLARS_HAS).select(POLARS_UPPER).collect(),
        lambda frame: frame["line"].to_list(),
    ),
    "pyarrow": Peer(
        lambda lines: pa.array(lines, pa.string()),
        arrow_filter,
        pc.ascii_upper,
        lambda array: pc.ascii_upper(arrow_filter(array)),
        lambda array: array.to_pylist(),
    ),
    "duckdb": Peer(
        duckdb_load,
        duckdb_job(f"SELECT line FROM log WHERE contains(line, '{TEXT}')"),
        duckdb_job("SELECT upper(line) AS line FROM log"),
        duckdb_job(f"SELECT upper(line) AS line FROM log WHERE contains(line, '{TEXT}')"),
        lambda table: table["line"].to_pylist(),
    ),
    "daft": Peer(
        lambda lines: daft.from_arrow(arrow_table(lines)),
        lambda frame: frame.where(DAFT_HAS).collect(),
        lambda frame: frame.select(DAFT_UPPER).collect(),
        lambda frame: frame.where(DAFT_HAS).select(DAFT_UPPER).collect(),
        lambda frame: frame.to_pydict()["line"],
    ),
    "numpy S59": Peer(
        np.array,
        numpy_filter,
        np.strings.upper,
        lambda array: np.strings.upper(numpy_filter(array)),
        lambda array: array.tolist(),
    ),
    "list comprehension": Peer(
        list,
        lambda lines: [line for line in lines if line.find(NEEDLE) >= 0],
        lambda lines: [line.upper() for line in lines],
        lambda lines: [line.upper() for line in lines if line.find(NEEDLE) >= 0],
    ),
    "streamable": Peer(
        list,
        lambda lines: list(stream(lines).filter(has_needle)),
        lambda lines: list(stream(lines).map(upper)),
        lambda lines: list(stream(lines).filter(has_needle).map(upper)),
    ),
}
