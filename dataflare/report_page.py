"""A report as one page: no script, no other file, nothing from the network.

Everything that is text in a report may come from users: the template escapes it all, except for the
plots, whose texts pygal escapes. A policy in the page forbids scripts and requests besides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dataflare import units
from dataflare.report_plots import Line, plot, stairs

__all__ = ["page"]

KINDS_SHOWN = 5
_CIRCUIT = ("closed", "half open", "open")
_LATENCIES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _visible(text: str) -> str:
    """Text without what HTML does not allow in it."""
    return _CONTROL.sub("\ufffd", text)


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    finalize=lambda value: _visible(value) if type(value) is str else value,
)


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first column names the row."""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot, or the note that stands in its place."""

    key: str
    title: str
    svg: Markup | None = None
    legend: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Plugin:
    """The part of the page about one plugin."""

    name: str
    verdict: str
    facts: str
    plots: list[Plot]
    stages: Table


class _Series:
    """The samples of a report as lines over the seconds since the manager was made."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.samples = report["samples"]
        began = _seconds(report["generated_at"]) - report["status"]["uptime_seconds"]
        self.times = [max(_seconds(each["taken_at"]) - began, 0.0) for each in self.samples]

    def of(
        self, part: Callable[[dict[str, Any]], dict[str, Any] | None]
    ) -> list[tuple[float, dict[str, Any]]]:
        """What the samples say of a part, where they do."""
        found = zip(self.times, map(part, self.samples), strict=True)
        return [(time, each) for time, each in found if each is not None]


def page(report: dict[str, Any]) -> str:
    """A report as HTML.

    Parameters
    ----------
    report : dict
        As `dataflare.report.report_of` makes it.

    Returns
    -------
    str
    """
    series = _Series(report)
    return _environment.get_template("report.html.jinja").render(
        report=report,
        generated=datetime.fromisoformat(report["generated_at"]).strftime("%Y-%m-%d %H:%M:%S UTC"),
        tiles=_tiles(report),
        summary=_summary(report["metrics"]),
        plugins=[_plugin(name, report, series) for name in report["metrics"]],
        pool_plots=_pool_plots(series),
        pool_table=_pool_table(report["pool"]),
        health=_health(report["health"]),
        config=_config(report["config"]),
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _tiles(report: dict[str, Any]) -> list[tuple[str, str]]:
    status, pool = report["status"], report["pool"]
    totals = status["totals"]
    failed = totals["failed"] + totals["dead_lettered"]
    return [
        ("records in", f"{totals['total_processed']:,}"),
        ("failed", f"{failed:,}"),
        ("bytes in", units.size(totals["bytes_in"])),
        ("bytes out", units.size(totals["bytes_out"])),
        ("pool hit rate", "not counted" if pool is None else _percent(pool["cache_hit_rate"])),
        ("uptime", units.duration(status["uptime_seconds"])),
    ]


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _summary(metrics: dict[str, Any]) -> list[Table]:
    counts = ("total_processed", "successful", "filtered", "skipped", "failed", "dead_lettered")
    times = ("average", "p50", "p95", "p99", "max")

    def rows(cells: Callable[[dict[str, Any]], Iterable[str]]) -> list[tuple[str, ...]]:
        return [(name, *cells(found)) for name, found in metrics.items()]

    return [
        Table(
            (
                *("plugin", "in", "new value", "filtered", "unchanged", "failed"),
                *("dead letters", "error rate", "retries", "fallbacks"),
            ),
            rows(
                lambda m: (
                    *(f"{m[count]:,}" for count in counts),
                    _percent(m["error_rate"]),
                    f"{m['retries']:,}",
                    f"{m['fallbacks']:,}",
                )
            ),
            "Records by outcome",
        ),
        Table(
            (
                *("plugin", "records/s busy", "records/s lately", "batches", "records/batch"),
                *("time busy", "bytes in", "bytes out"),
            ),
            rows(
                lambda m: (
                    f"{m['average_throughput_records_per_second']:,.0f}",
                    f"{m['recent_throughput_records_per_second']:,.0f}",
                    f"{m['batches']:,}",
                    f"{m['total_processed'] / (m['batches'] or 1):,.1f}",
                    units.duration(m["processing_time_seconds"]),
                    units.size(m["bytes_in"]),
                    units.size(m["bytes_out"]),
                )
            ),
            "Rates",
        ),
        Table(
            ("plugin", *(f"record {time}" for time in times), *(f"batch {t}" for t in times[1:])),
            rows(
                lambda m: (
                    *(units.duration(m[f"{time}_latency_seconds"]) for time in times),
                    *(units.duration(m[f"{time}_batch_latency_seconds"]) for time in times[1:]),
                )
            ),
            "Latencies",
        ),
    ]


def _plugin(name: str, report: dict[str, Any], series: _Series) -> Plugin:
    status = report["status"]["plugins"].get(name)
    health = report["health"]["plugins"].get(name)
    seen = series.of(lambda sample: sample["plugins"].get(name))
    facts = "no longer in service"
    if status is not None:
        opened = status["times_opened"]
        facts = (
            f"{status['state']}{'' if status['enabled'] else ', disabled'}; "
            f"{_many(status['instances'], 'instance')}; circuit {status['circuit']}, "
            f"{'never opened' if opened == 0 else 'opened ' + _many(opened, 'time')}"
        )
    return Plugin(
        name=name,
        verdict="unknown" if health is None else health["verdict"],
        facts=facts,
        plots=_plugin_plots(seen) if seen else [],
        stages=_stages(report["metrics"][name]["stages"]),
    )


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _stages(stages: list[dict[str, Any]]) -> Table:
    total = sum(stage["exclusive_time_seconds"] for stage in stages)
    return Table(
        ("stage", "exclusive time", "share"),
        [
            (
                stage["name"],
                units.duration(stage["exclusive_time_seconds"]),
                _percent(stage["exclusive_time_seconds"] / total if total else 0.0),
            )
            for stage in stages
        ],
        "Where the time went",
    )


def _drawn(key: str, title: str, lines: list[Line], *args: Any, **options: Any) -> Plot:
    if all(value is None for line in lines for _, value in line.points):
        return Plot(key, title, note="Nothing was processed between two samples.")
    svg = Markup(_visible(plot(title, lines, *args, **options)))  # pygal escapes its texts
    return Plot(key, title, svg, tuple(line.name for line in lines) if len(lines) > 1 else ())


def _plugin_plots(seen: list[tuple[float, dict[str, Any]]]) -> list[Plot]:
    rate = [(time, each["throughput_records_per_second"]) for time, each in seen]
    sizes = [(time, each["batch_size"] or None) for time, each in seen]
    levels = stairs((time, float(_CIRCUIT.index(each["circuit"]))) for time, each in seen)
    return [
        _drawn("throughput", "Throughput, records per second", [Line("records", rate)]),
        _latencies("record-latency", "Latency of a record", seen, "latency_seconds"),
        _latencies("batch-latency", "Latency of a batch", seen, "batch_latency_seconds"),
        _drawn("batch-size", "Records per batch", [Line("records", sizes)]),
        _errors(seen),
        _drawn(
            "circuit",
            "Circuit breaker",
            [Line("state", levels)],
            top=len(_CIRCUIT) - 1,
            levels=_CIRCUIT,
        ),
    ]


def _latencies(key: str, title: str, seen: list[tuple[float, dict[str, Any]]], field: str) -> Plot:
    names = ("p50", "p95", "p99")
    highest = max(each[f"{name}_{field}"] for _, each in seen for name in names)
    scale, unit = next((pair for pair in _LATENCIES if highest >= pair[0]), _LATENCIES[-1])
    lines = [
        Line(
            name,
            [
                (time, each[f"{name}_{field}"] / scale if each["batch_size"] else None)
                for time, each in seen
            ],
        )
        for name in names
    ]
    return _drawn(key, f"{title}, {unit}", lines)


def _errors(seen: list[tuple[float, dict[str, Any]]]) -> Plot:
    title = "Failed records so far, by error"
    last = seen[-1][1]["errors"]
    kinds = sorted(last, key=lambda kind: (-last[kind], kind))
    if not kinds:
        return Plot("errors", title, note="No record failed.")
    lines = [
        Line(kind, [(time, float(each["errors"].get(kind, 0))) for time, each in seen])
        for kind in kinds[:KINDS_SHOWN]
    ]
    rest = kinds[KINDS_SHOWN:]
    if rest:
        others = [
            (time, float(sum(each["errors"].get(kind, 0) for kind in rest))) for time, each in seen
        ]
        lines.append(Line(_many(len(rest), "other error"), others))
    drawn = _drawn("errors", title, lines)
    return Plot("errors", title, drawn.svg, tuple(line.name for line in lines))


def _pool_plots(series: _Series) -> list[Plot]:
    seen = series.of(lambda sample: sample["pool"])
    if not seen:
        return []
    rates: list[tuple[float, float | None]] = []
    hits = allocations = 0
    for time, pool in seen:
        asked = pool["allocations"] - allocations
        rates.append((time, 100 * (pool["hits"] - hits) / asked if asked else None))
        hits, allocations = pool["hits"], pool["allocations"]
    return [
        _drawn(
            "hit-rate",
            "Requests that a slab served, %",
            [Line("hit rate", rates)],
            top=100,
        ),
        _drawn(
            "bytes-in-use",
            "Bytes in use",
            [
                Line("now", [(time, pool["bytes_in_use"]) for time, pool in seen]),
                Line("most so far", [(time, pool["peak_bytes_in_use"]) for time, pool in seen]),
            ],
            units.size,
        ),
    ]


def _pool_table(pool: dict[str, Any] | None) -> Table | None:
    if pool is None:
        return None
    counts = ("capacity", "allocations", "hits", "misses", "in_use", "peak_in_use", "cached")
    return Table(
        ("class", "slabs", "requests", "hits", "misses", "in use", "peak", "free", "bytes asked"),
        [
            (
                name,
                *(f"{found[count]:,}" for count in counts),
                units.size(found["bytes_requested"]),
            )
            for name, found in pool["classes"].items()
        ],
    )


def _health(health: dict[str, Any]) -> list[tuple[str, str, str]]:
    parts = {f"plugin {name}": part for name, part in health["plugins"].items()}
    parts |= {"memory pool": health["pool"], "workers": health["workers"]}
    return [(name, part["verdict"], part["reason"]) for name, part in parts.items()]


def _config(config: dict[str, Any]) -> list[Table]:
    """A table of the manager's own fields, and one of each configuration in it."""
    own = {name: value for name, value in config.items() if not isinstance(value, dict)}
    groups = {"manager": own} | {k: v for k, v in config.items() if isinstance(v, dict)}
    return [
        Table(("field", "value"), [_setting(name, value) for name, value in found.items()], caption)
        for caption, found in groups.items()
    ]


def _setting(name: str, value: Any) -> tuple[str, str]:
    bare = name.removesuffix("_seconds")
    if bare != name:
        return bare, "never" if value is None else units.duration(value)
    bare = name.removesuffix("_records_per_second")
    if bare != name:
        return bare, "infinite" if value is None else f"{value:,g} records/s"
    if value is None:
        return name, "none"
    if isinstance(value, bool):
        return name, "yes" if value else "no"
    return name, f"{value:,}" if isinstance(value, int) else f"{value:g}"
