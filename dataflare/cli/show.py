"""Everything that is printed.

rich is imported where it is used: loading it takes as long as a run over a hundred megabytes. So
the summary, which every run prints, does without it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from dataflare import units
from dataflare.cli.tally import Tally
from dataflare.errors import PluginError

__all__ = ["note", "pairs", "problem", "progress", "sentence", "summary", "table"]


def problem(text: str) -> None:
    """Say in one sentence what went wrong."""
    _say(f"dataflare: {text}")


def note(text: str) -> None:
    """Say something that matters while the command runs."""
    _say(f"dataflare: {text}")


def _say(text: str) -> None:
    """Print to standard error; that nobody can read it there is no failure of the run."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def sentence(error: BaseException) -> str:
    """What an exception says."""
    if isinstance(error, SystemExit):
        return f"a plugin ended the program with exit({error.code!r})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, PluginError):
        known = error.plugin is None or error.plugin in str(error)
        return str(error) if known else f"{error.plugin}: {error}"
    return f"{type(error).__name__}: {error}"


def table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table whose last column may wrap."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    *names, last = heads
    grid = Table(*[Column(name, no_wrap=True) for name in names], last, box=None, pad_edge=False)
    for row in rows:
        grid.add_row(*map(Text, row))
    Console().print(grid)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values."""
    for name, value in rows:
        print(f"{name:14}  {value}")


def summary(tally: Tally, form: str) -> None:
    """Print what a run did to standard error, as ``"table"``, ``"json"`` or not at all."""
    if form == "json":
        _say(json.dumps(tally.as_dict()))
    elif form == "table":
        for name, value in _summary_rows(tally):
            _say(f"{name:11}{value:>22}")
        for failure in tally.first_failures:
            _say(f"failed: {failure}")
        if tally.failed > len(tally.first_failures):
            _say(f"and {tally.failed - len(tally.first_failures):,} more")


def _summary_rows(tally: Tally) -> list[tuple[str, str]]:
    latency = tally.metrics
    rows = [
        ("records in", f"{tally.records_in:,}"),
        ("records out", f"{tally.records_out:,}"),
        ("filtered", f"{tally.filtered:,}"),
        ("failed", f"{tally.failed:,}"),
        ("read", units.size(tally.bytes_in)),
        ("written", units.size(tally.bytes_out)),
        ("time", units.duration(tally.seconds)),
        ("rate", f"{tally.rate(tally.records_in):,.0f} records/s"),
        ("", f"{units.size(tally.rate(tally.bytes_in))}/s"),
    ]
    if latency is not None:
        rows.append(("batch p50", units.duration(latency.p50_batch_latency)))
        rows.append(("batch p99", units.duration(latency.p99_batch_latency)))
    return rows


@contextmanager
def progress(total: int | None, shown: bool) -> Iterator[Callable[[Tally], None]]:
    """A bar on standard error.

    Parameters
    ----------
    total : int or None
        Bytes that will be read, if that is known.
    shown : bool

    Returns
    -------
    context manager of a function
        That moves the bar.
    """
    if not shown:
        yield lambda tally: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[records]:,} records"),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=total, records=0)
        yield lambda tally: bar.update(task, completed=tally.bytes_in, records=tally.records_in)
