"""Run the benchmarks and print the figures beside targets and peers."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.targets import TARGETS, number

HERE = Path(__file__).parent

Figures = dict[str, dict[str, dict[str, float]]]
"""By target, job and who."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="check all answers, on little input")
    parser.add_argument("-k", metavar="EXPRESSION", help="only these, as of pytest: -k 'p2 and FU'")
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep what pytest-benchmark says")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        report = options.json or Path(folder, "report.json")
        # -P: the dataflare that is installed, not the source tree in the current directory.
        command = [sys.executable, "-P", "-m", "pytest", HERE, "-q", "--benchmark-quiet"]
        command += [f"--rootdir={HERE.parent}", f"--benchmark-json={report}"]
        command += ["--quick"] if options.quick else []
        command += ["-k", options.k] if options.k else []
        status = subprocess.run(command).returncode
        if report.is_file() and (text := report.read_bytes()):
            show(json.loads(text), options.quick)
    return status


def figures(report: dict[str, Any]) -> Figures:
    """What was measured, from what pytest-benchmark wrote."""
    found: Figures = {}
    for benchmark in report["benchmarks"]:
        rows = benchmark["extra_info"].get("rows")
        if rows is None:
            info = benchmark["extra_info"]
            figure = benchmark["stats"]["min"] * 1e9 / info["count"]
            rows = [(info["target"], info["job"], info["who"], figure)]
        for target, job, who, figure in rows:
            found.setdefault(target, {}).setdefault(job, {})[who] = figure
    return found


def show(report: dict[str, Any], quick: bool) -> None:
    """Print the table."""
    machine = report["machine_info"]
    print(f"\n{machine['cpu'].get('brand_raw', machine['machine'])}, one processor")
    print(f"Python {machine['python_version']}, DataFlare {machine['dataflare']}")
    if quick:
        print("Little input, one round: the answers were checked, the figures mean nothing.")
    table = Table(box=SIMPLE_HEAD)
    for heading in ("job", "who"):
        table.add_column(heading, no_wrap=True)
    for heading in ("figure", "/ ours"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    measured = figures(report)
    for name, target in TARGETS.items():
        if name not in measured:
            continue
        table.add_section()
        table.add_row(f"[bold]{name}", f"[bold]{target.what}", f"[bold]{target.unit}")
        for job, by_who in measured[name].items():
            ours = by_who.get("DataFlare")
            for who, figure in by_who.items():
                judged = target.judge(job, figure, by_who) if who.startswith("DataFlare") else ""
                ratio = number(figure / ours) if ours else ""
                table.add_row(job, who, number(figure), ratio, "" if quick else judged)
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
