"""Whole processes, start-up included: P8, P11, P12 and A5."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from sysconfig import get_path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.peers import as_bytes
from benchmarks.workload import answer, as_block, is_repeated, write_repeated

USAGE = Path(__file__).with_name("usage.py")
PYTHON = shlex.quote(sys.executable)
DATAFLARE = shlex.quote(f"{get_path('scripts')}/dataflare")

LOOP = f"""{PYTHON} -c '
import sys
with open(sys.argv[1], "rb") as lines, open(sys.argv[2], "wb") as out:
    out.writelines(%s)
' {{input}} {{output}}"""

COMMANDS = {
    "F": {
        "DataFlare": f"{DATAFLARE} run -p contains:ERROR {{input}} -o {{output}}",
        "grep -F": "grep -F ERROR {input} > {output}",
        "awk": "awk '/ERROR/' {input} > {output}",
        "Python loop": LOOP % 'line for line in lines if b"ERROR" in line',
    },
    "U": {
        "DataFlare": f"{DATAFLARE} run -p upper {{input}} -o {{output}}",
        "tr": "tr a-z A-Z < {input} > {output}",
        "awk": "awk '{{print toupper($0)}}' {input} > {output}",
        "Python loop": LOOP % "line.upper() for line in lines",
    },
    "FU": {
        "DataFlare": f"{DATAFLARE} run -p contains:ERROR -p upper {{input}} -o {{output}}",
        "grep -F | tr": "grep -F ERROR {input} | tr a-z A-Z > {output}",
        "awk": "awk '/ERROR/ {{print toupper($0)}}' {input} > {output}",
        "Python loop": LOOP % 'line.upper() for line in lines if b"ERROR" in line',
    },
}


@pytest.fixture(scope="module")
def log(lines: list[bytes], quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A file of 1 GB and how many times it holds the lines; removed in the end."""
    path = tmp_path_factory.mktemp("log") / "lines.log"
    block = as_block(lines)
    times = 2 if quick else -(-(10**9) // len(block))
    write_repeated(path, block, times)
    yield path, times
    path.unlink()


POLARS = f"""{PYTHON} -c '
import sys, polars as pl
line = pl.col("line")
frame = pl.scan_parquet(sys.argv[1]).select("line")
%s.sink_parquet(sys.argv[2], compression="snappy", engine="streaming")
' {{input}} {{output}}"""
DUCKDB = f"""{PYTHON} -c '
import sys, duckdb
connection = duckdb.connect(config={{{{"threads": 1}}}})
connection.sql("COPY (SELECT %s AS line FROM read_parquet(" + repr(sys.argv[1]) + ") %s) TO " +
               repr(sys.argv[2]) + " (FORMAT parquet, COMPRESSION snappy)")
' {{input}} {{output}}"""
POLARS_HAS = 'frame.filter(line.str.contains("ERROR", literal=True))'
POLARS_UPPER = "select(line.str.to_uppercase())"
DUCKDB_HAS = """WHERE contains(line, " + repr("ERROR") + ")"""
RUN_PARQUET = f"{DATAFLARE} run --value line {{plugins}} {{{{input}}}} -o {{{{output}}}}"

PARQUET_COMMANDS = {
    "F": {
        "DataFlare": RUN_PARQUET.format(plugins="-p contains:ERROR"),
        "polars": POLARS % POLARS_HAS,
        "duckdb": DUCKDB % ("line", DUCKDB_HAS),
    },
    "U": {
        "DataFlare": RUN_PARQUET.format(plugins="-p upper"),
        "polars": POLARS % f"frame.{POLARS_UPPER}",
        "duckdb": DUCKDB % ("upper(line)", ""),
    },
    "FU": {
        "DataFlare": RUN_PARQUET.format(plugins="-p contains:ERROR -p upper"),
        "polars": POLARS % f"{POLARS_HAS}.{POLARS_UPPER}",
        "duckdb": DUCKDB % ("upper(line)", DUCKDB_HAS),
    },
}


@pytest.mark.parametrize("job", COMMANDS)
def test_p8(job, benchmark, log, lines, quick):
    path, times = log
    output = path.with_name("output")
    expected = as_block(answer(job, lines))

    def check(who: str) -> None:
        assert is_repeated(output, expected, times), who

    in_turn("P8", job, COMMANDS[job], benchmark, path, output, check, 1 if quick else 5)


def in_turn(
    target: str,
    job: str,
    commands: dict[str, str],
    benchmark: Any,
    path: Path,
    output: Path,
    check: Callable[[str], None],
    rounds: int,
) -> None:
    """Run commands from file to file, one after the other, and note medians."""
    taken: dict[str, list[list[float]]] = {who: [] for who in commands}

    def run() -> None:
        for who, command in commands.items():
            line = command.format(input=shlex.quote(str(path)), output=shlex.quote(str(output)))
            done = subprocess.run(
                [sys.executable, "-I", "-S", USAGE, line],
                check=True,
                stdout=subprocess.PIPE,
                env=os.environ | {"LC_ALL": "C"},
            )
            taken[who].append(json.loads(done.stdout))
            check(who)
            output.unlink()

    benchmark.group = f"{target} {job}"
    benchmark.pedantic(run, rounds=rounds)
    rows = []
    for who, samples in taken.items():
        wall, cpu, peak = map(median, zip(*samples, strict=True))
        rows += [
            (target, job, who, wall),
            (f"{target} CPU", job, who, cpu),
            (f"{target} memory", job, who, peak / 1e6),
        ]
    benchmark.extra_info["rows"] = rows


@pytest.fixture(scope="module")
def parquet(lines: list[bytes], quick: bool, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file that holds the lines several times, as strings, and how often."""
    path = tmp_path_factory.mktemp("parquet") / "lines.parquet"
    table = pa.table({"line": pa.array(lines, pa.string())})
    times = 2 if quick else 5
    with pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=False) as file:
        for _ in range(times):
            file.write_table(table, row_group_size=122_880)
    return path, times


@pytest.mark.parametrize("job", PARQUET_COMMANDS)
def test_a5(job, benchmark, parquet, answers, quick):
    options = subprocess.run(
        [sys.executable, "-P", "-m", "dataflare.cli", "run", "--help"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout
    if "--value" not in options:
        pytest.skip("this dataflare run reads no columns: it has no --value")
    path, times = parquet
    output = path.with_name("output.parquet")

    def check(who: str) -> None:
        values = pq.read_table(output)["line"].to_pylist()
        assert as_bytes(values) == answers[job] * times, who

    in_turn("A5", job, PARQUET_COMMANDS[job], benchmark, path, output, check, 1 if quick else 5)


@pytest.mark.parametrize("module", ["dataflare", "duckdb", "polars", "pyarrow"])
def test_p11(module, benchmark, tmp_path, quick):
    program = (
        "import time, numpy; start = time.perf_counter(); "
        f"import {module}; print(time.perf_counter() - start); {module}.__version__"
    )
    seconds = []

    def start_up() -> None:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, check=True, stdout=subprocess.PIPE
        )
        seconds.append(float(done.stdout))

    benchmark.group = "P11 import"
    benchmark.pedantic(start_up, rounds=1 if quick else 15, warmup_rounds=1)
    who = "DataFlare" if module == "dataflare" else module
    benchmark.extra_info["rows"] = [("P11", "import", who, median(seconds[1:]) * 1e3)]


PLUGIN = """
import dataflare

@dataflare.map_plugin
def plugin(value):
    return value.upper()
"""


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of fifty packages with a plugin each, as pip leaves them."""
    folder = tmp_path_factory.mktemp("fifty")
    for number in range(50):
        name = f"plugin_{number}"
        (folder / f"{name}.py").write_text(PLUGIN)
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{name} = {name}:plugin\n")
    return folder


@pytest.mark.parametrize("job", ["of the library", "by name"])
def test_p12(job, benchmark, fifty, tmp_path, quick):
    """With all fifty, and with none."""
    alone = tmp_path / "alone"
    alone.mkdir()
    file = alone / "plugin_7.py"
    file.write_text(PLUGIN)
    started = {
        "of the library": {"DataFlare": ("upper", fifty), "none installed": ("upper", alone)},
        "by name": {
            "DataFlare": ("plugin_7", fifty),
            "module:attribute, none installed": ("plugin_7:plugin", alone),
            "file.py:attribute, none installed": (f"{file}:plugin", alone),
        },
    }[job]
    seconds: dict[str, list[float]] = {who: [] for who in started}

    def start_up() -> None:
        for who, (plugin, folder) in started.items():
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "dataflare.cli", "run", "-p", plugin, "--stats", "none"],
                input=b"line\n",
                stdout=subprocess.PIPE,
                cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(folder)},
                check=True,
            )
            seconds[who].append(time.perf_counter() - begun)
            assert done.stdout == b"LINE\n", who

    benchmark.group = f"P12 {job}"
    benchmark.pedantic(start_up, rounds=1 if quick else 25, warmup_rounds=1)
    benchmark.extra_info["rows"] = [
        ("P12", job, who, min(taken[1:]) * 1e3) for who, taken in seconds.items()
    ]
