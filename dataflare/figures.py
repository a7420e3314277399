"""What a manager shows of itself to a monitoring system: one table, whatever the system.

Every figure is read when it is asked for, from counters that are kept anyway. A plugin's figures
begin when it is registered and are gone when it is unregistered or the manager is closed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dataflare.types import CircuitState, PoolStats

if TYPE_CHECKING:
    from dataflare.manager import PluginManager
    from dataflare.metrics import PluginMetrics
    from dataflare.observer import PluginStatus, SystemStatus

__all__ = ["FIGURES", "Figure", "Kind", "Reading", "labels", "points"]

Point = tuple[tuple[str, ...], float]
"""The values of a figure's labels, and the figure."""


class Kind(enum.Enum):
    """How a figure behaves over time."""

    COUNTER = "counter"
    """Never falls, as long as what it belongs to exists."""
    LEVEL = "level"
    """Rises and falls; sums of it make sense."""
    GAUGE = "gauge"
    """Rises and falls; sums of it make none."""


class Reading:
    """A manager at one moment.

    Parameters
    ----------
    manager : PluginManager
    """

    def __init__(self, manager: PluginManager) -> None:
        self._manager = manager

    @cached_property
    def status(self) -> SystemStatus:
        """SystemStatus: Of the manager."""
        return self._manager.get_system_status()

    @property
    def is_open(self) -> bool:
        """bool: Whether the manager is not closed."""
        return self.status.state != "closed"

    @cached_property
    def metrics(self) -> list[tuple[str, PluginMetrics]]:
        """list of (str, PluginMetrics): By label."""
        metrics = self._manager.get_all_metrics()
        return list(zip(labels(metrics), metrics.values(), strict=True))

    @cached_property
    def plugins(self) -> list[tuple[str, PluginStatus]]:
        """list of (str, PluginStatus): By label."""
        return list(zip(labels(self.status.plugins), self.status.plugins.values(), strict=True))

    @property
    def pools(self) -> Iterable[PoolStats]:
        """iterable of PoolStats: That of the pool, or nothing if it does not count."""
        return () if self.status.memory is None else (self.status.memory,)


def labels(names: Iterable[str]) -> list[str]:
    """Names in a form that is valid UTF-8, and in which no two are the same.

    Parameters
    ----------
    names : iterable of str

    Returns
    -------
    list of str
        A name that comes again has a number behind it: ``upper``, ``upper (2)``.
    """
    found: dict[str, None] = {}
    for name in names:
        text = label = name.encode("utf-8", "backslashreplace").decode()
        number = 1
        while label in found:
            number += 1
            label = f"{text} ({number})"
        found[label] = None
    return list(found)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A quantity that is measured.

    Attributes
    ----------
    kind : Kind
    prometheus, otel : str
        Its names there; empty if that system gets it in another form.
    unit : str
        As UCUM writes it: ``s``, ``By``, ``{record}``; ``1`` for what has none.
    description : str
        One sentence.
    labels : tuple of str
    read : callable
        From a `Reading` to points.
    """

    kind: Kind
    prometheus: str = ""
    otel: str = ""
    unit: str
    description: str
    labels: tuple[str, ...] = ()
    read: Callable[[Reading], Iterable[Point]]


def _of_metrics(**values: Callable[[PluginMetrics], float]) -> Callable[[Reading], Iterator[Point]]:
    """Points of every plugin, by a second label."""

    def read(reading: Reading) -> Iterator[Point]:
        for plugin, metrics in reading.metrics:
            for label, value in values.items():
                yield (plugin, label), value(metrics)

    return read


def _of_metric(value: Callable[[PluginMetrics], float]) -> Callable[[Reading], Iterator[Point]]:
    return lambda reading: (((plugin,), value(metrics)) for plugin, metrics in reading.metrics)


def _of_plugin(value: Callable[[PluginStatus], float]) -> Callable[[Reading], Iterator[Point]]:
    return lambda reading: (((plugin,), value(status)) for plugin, status in reading.plugins)


def _of_manager(value: Callable[[SystemStatus], float]) -> Callable[[Reading], Iterator[Point]]:
    return lambda reading: iter([((), value(reading.status))])


def _of_pool(value: Callable[[PoolStats], float]) -> Callable[[Reading], Iterator[Point]]:
    return lambda reading: (((), value(stats)) for stats in reading.pools)


def _by_class(stats: PoolStats, field: str, *, oversize: bool) -> Iterator[tuple[str, int]]:
    """A field of every size class, and what is left of the total for larger requests."""
    rest = getattr(stats, field) if oversize else 0
    for size, of_class in stats.classes.items():
        value = getattr(of_class, field)
        rest -= value
        yield size.name.lower(), value
    if oversize:
        yield "oversize", rest


def _of_class(field: str, *, oversize: bool) -> Callable[[Reading], Iterator[Point]]:
    """Points of every size class."""
    return lambda reading: (
        ((name,), value)
        for stats in reading.pools
        for name, value in _by_class(stats, field, oversize=oversize)
    )


def _of_classes(**fields: str) -> Callable[[Reading], Iterator[Point]]:
    """Points of every size class, by a second label."""
    return lambda reading: (
        ((name, label), value)
        for stats in reading.pools
        for label, field in fields.items()
        for name, value in _by_class(stats, field, oversize=True)
    )


def _stages(reading: Reading) -> Iterator[Point]:
    for plugin, metrics in reading.metrics:
        names = labels(stage.name for stage in metrics.stages)
        for name, stage in zip(names, metrics.stages, strict=True):
            yield (plugin, name), stage.exclusive_time


def _circuits(reading: Reading) -> Iterator[Point]:
    for plugin, status in reading.plugins:
        for state in CircuitState:
            yield (plugin, state.name.lower()), float(status.circuit is state)


def _is_up(status: PluginStatus) -> bool:
    return status.enabled and status.circuit is not CircuitState.OPEN


UP = Figure(
    kind=Kind.LEVEL,
    prometheus="dataflare_up",
    otel="dataflare.up",
    unit="1",
    description="1, and 0 once the manager is closed; then there is no other figure.",
    read=_of_manager(lambda status: float(status.state != "closed")),
)

FIGURES = (
    UP,
    # ---- of a plugin
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_records_total",
        otel="dataflare.records",
        unit="{record}",
        description="Records that came in, by what became of them.",
        labels=("plugin", "outcome"),
        read=_of_metrics(
            success=lambda metrics: metrics.successful,
            filtered=lambda metrics: metrics.filtered,
            skipped=lambda metrics: metrics.skipped,
            failed=lambda metrics: metrics.failed,
            dead_lettered=lambda metrics: metrics.dead_lettered,
        ),
    ),
    Figure(
        kind=Kind.COUNTER,
        otel="dataflare.batches",  # Prometheus has it in the histogram
        unit="{batch}",
        description="Calls; a single record is a batch of one.",
        labels=("plugin",),
        read=_of_metric(lambda metrics: metrics.batches),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_bytes_total",
        otel="dataflare.io",
        unit="By",
        description="Sizes of the values that came in and went on.",
        labels=("plugin", "direction"),
        read=_of_metrics(
            **{"in": lambda metrics: metrics.bytes_in, "out": lambda metrics: metrics.bytes_out}
        ),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_retries_total",
        otel="dataflare.retries",
        unit="{attempt}",
        description="Further attempts at records that had failed.",
        labels=("plugin",),
        read=_of_metric(lambda metrics: metrics.retries),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_fallbacks_total",
        otel="dataflare.fallbacks",
        unit="{record}",
        description="Records that failed and that the fallback then processed.",
        labels=("plugin",),
        read=_of_metric(lambda metrics: metrics.fallbacks),
    ),
    Figure(
        kind=Kind.COUNTER,
        otel="dataflare.processing.time",  # Prometheus has it in the histogram
        unit="s",
        description="Time spent in the plugin.",
        labels=("plugin",),
        read=_of_metric(lambda metrics: metrics.processing_time),
    ),
    Figure(
        kind=Kind.GAUGE,
        otel="dataflare.batch.duration",  # Prometheus has a histogram
        unit="s",
        description="Time of a batch that so large a part of them does not exceed.",
        labels=("plugin", "quantile"),
        read=_of_metrics(
            **{
                "0.5": lambda metrics: metrics.p50_batch_latency,
                "0.95": lambda metrics: metrics.p95_batch_latency,
                "0.99": lambda metrics: metrics.p99_batch_latency,
                "1": lambda metrics: metrics.max_batch_latency,
            }
        ),
    ),
    Figure(
        kind=Kind.GAUGE,
        otel="dataflare.record.duration",  # Prometheus has a histogram
        unit="s",
        description="Time of a record that so large a part of them does not exceed; amortised.",
        labels=("plugin", "quantile"),
        read=_of_metrics(
            **{
                "0.5": lambda metrics: metrics.p50_latency,
                "0.95": lambda metrics: metrics.p95_latency,
                "0.99": lambda metrics: metrics.p99_latency,
                "1": lambda metrics: metrics.max_latency,
            }
        ),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_stage_seconds_total",
        otel="dataflare.stage.time",
        unit="s",
        description="Time that batches spent in a member of a chain alone.",
        labels=("plugin", "stage"),
        read=_stages,
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_circuit_state",
        otel="dataflare.circuit.state",
        unit="1",
        description="1 for the state that the circuit breaker is in, 0 for the others.",
        labels=("plugin", "state"),
        read=_circuits,
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_circuit_opened_total",
        otel="dataflare.circuit.opened",
        unit="{opening}",
        description="How often the circuit opened.",
        labels=("plugin",),
        read=_of_plugin(lambda status: status.times_opened),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_plugin_up",
        otel="dataflare.plugin.up",
        unit="1",
        description="1 if calls reach the plugin: it is enabled and its circuit is not open.",
        labels=("plugin",),
        read=_of_plugin(lambda status: float(_is_up(status))),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_plugin_enabled",
        otel="dataflare.plugin.enabled",
        unit="1",
        description="1 if the plugin is not disabled.",
        labels=("plugin",),
        read=_of_plugin(lambda status: float(status.enabled)),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_plugin_instances",
        otel="dataflare.plugin.instances",
        unit="{instance}",
        description="Instances of the plugin.",
        labels=("plugin",),
        read=_of_plugin(lambda status: status.instances),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_calls_running",
        otel="dataflare.calls.running",
        unit="{call}",
        description="Calls that run now.",
        labels=("plugin",),
        read=_of_plugin(lambda status: status.running),
    ),
    # ---- of the memory pool
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_pool_buffers",
        otel="dataflare.pool.buffers",
        unit="{buffer}",
        description="Buffers that are out (in_use), and free slabs (cached).",
        labels=("class", "state"),
        read=_of_classes(in_use="in_use", cached="cached"),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_pool_slabs",
        otel="dataflare.pool.slabs",
        unit="{buffer}",
        description="Slabs, which are buffers that are kept.",
        labels=("class",),
        read=_of_class("capacity", oversize=False),
    ),
    Figure(
        kind=Kind.GAUGE,
        prometheus="dataflare_pool_peak_buffers",
        otel="dataflare.pool.buffers.peak",
        unit="{buffer}",
        description="The most buffers that were out at a time.",
        labels=("class",),
        read=_of_class("peak_in_use", oversize=False),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_pool_requests_total",
        otel="dataflare.pool.requests",
        unit="{request}",
        description="Buffers asked for: served by a slab (hit), or by an allocation (miss).",
        labels=("class", "result"),
        read=_of_classes(hit="hits", miss="misses"),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_pool_returns_total",
        otel="dataflare.pool.returns",
        unit="{buffer}",
        description="Buffers that came back.",
        labels=("class",),
        read=_of_class("returns", oversize=True),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_pool_requested_bytes_total",
        otel="dataflare.pool.requested",
        unit="By",
        description="Bytes asked for.",
        read=_of_pool(lambda stats: stats.bytes_requested),
    ),
    Figure(
        kind=Kind.COUNTER,
        prometheus="dataflare_pool_allocated_bytes_total",
        otel="dataflare.pool.allocated",
        unit="By",
        description="Capacity handed out for the bytes asked for.",
        read=_of_pool(lambda stats: stats.bytes_allocated),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_pool_in_use_bytes",
        otel="dataflare.pool.in_use",
        unit="By",
        description="Capacity that is out now.",
        read=_of_pool(lambda stats: stats.bytes_in_use),
    ),
    Figure(
        kind=Kind.GAUGE,
        prometheus="dataflare_pool_peak_in_use_bytes",
        otel="dataflare.pool.in_use.peak",
        unit="By",
        description="The most capacity that was out at a time.",
        read=_of_pool(lambda stats: stats.peak_bytes_in_use),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_pool_reserved_bytes",
        otel="dataflare.pool.reserved",
        unit="By",
        description="Address space of all slabs.",
        read=_of_pool(lambda stats: stats.bytes_reserved),
    ),
    # ---- of the manager
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_workers",
        otel="dataflare.workers",
        unit="{thread}",
        description="Threads that share batches with their callers: running now.",
        read=_of_manager(lambda status: status.workers),
    ),
    Figure(
        kind=Kind.LEVEL,
        prometheus="dataflare_workers_limit",
        otel="dataflare.workers.limit",
        unit="{thread}",
        description="Threads that share batches with their callers: at most.",
        read=_of_manager(lambda status: status.max_workers),
    ),
    Figure(
        kind=Kind.GAUGE,
        prometheus="dataflare_manager_uptime_seconds",
        otel="dataflare.manager.uptime",
        unit="s",
        description="Time since the manager was made.",
        read=_of_manager(lambda status: status.uptime),
    ),
)


def points(figure: Figure, reading: Reading) -> Iterable[Point]:
    """What a figure shows; of a closed manager `UP` alone shows something.

    Parameters
    ----------
    figure : Figure
    reading : Reading

    Returns
    -------
    iterable of Point
    """
    return figure.read(reading) if figure is UP or reading.is_open else ()
