"""What DataFlare and its peers need for the same work, measured side by side."""

from importlib.util import find_spec

MODULES = (
    *("cython", "daft", "duckdb", "polars", "pyarrow", "pytest", "pytest_benchmark", "rich"),
    *("streamable", "typer"),
)
MISSING = [name for name in MODULES if find_spec(name) is None]
if MISSING:
    raise SystemExit(
        f"the benchmarks need {', '.join(MISSING)}: install them with pip install '.[bench]'"
    )
