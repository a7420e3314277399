"""What a manager knows of itself: metrics, samples, health and status.

The manager imports this when it is first asked: a job that never asks does not pay for it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from dataflare._backend import DataFlarePlugin, MemoryPool
from dataflare.config import PluginManagerConfig, seconds
from dataflare.health import (
    LEAK_CHECKS,
    HealthReport,
    Probes,
    Verdict,
    check_pool,
    check_workers,
)
from dataflare.metrics import PluginHistograms, PluginMetrics
from dataflare.samples import Sample, Sampler
from dataflare.service import PluginService
from dataflare.types import CircuitState, PluginState, PoolStats
from dataflare.workers import Workers

__all__ = ["Observer", "PluginStatus", "SystemStatus", "Totals"]

_logger = logging.getLogger("dataflare.health")


@dataclass(frozen=True)
class PluginStatus:
    """How a plugin is.

    Attributes
    ----------
    state : PluginState
        Of its first instance.
    enabled : bool
    instances : int
    running : int
        Calls that run now.
    circuit : CircuitState
    times_opened : int
        How often its circuit opened.
    """

    state: PluginState
    enabled: bool
    instances: int
    running: int
    circuit: CircuitState
    times_opened: int


@dataclass(frozen=True)
class Totals:
    """What all plugins that are in service did; see `PluginMetrics`."""

    total_processed: int = 0
    successful: int = 0
    filtered: int = 0
    skipped: int = 0
    failed: int = 0
    dead_lettered: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True)
class SystemStatus:
    """A manager as a whole.

    Attributes
    ----------
    state : str
        ``"running"`` or ``"closed"``.
    uptime : float
        Seconds since it was made.
    plugins : Mapping of str to PluginStatus
        By name.
    workers : int
        Threads that share batches and are running now.
    max_workers : int
        How many there are at most.
    memory : PoolStats or None
    totals : Totals
    """

    state: str
    uptime: float
    plugins: Mapping[str, PluginStatus]
    workers: int
    max_workers: int
    memory: PoolStats | None
    totals: Totals


class Observer:
    """Looks at a manager's plugins, pool and workers.

    Parameters
    ----------
    config : PluginManagerConfig
    pool : MemoryPool
    workers : Workers or None
    began : float
        When the manager was made, by `time.monotonic`.

    Attributes
    ----------
    last_health : HealthReport or None
        What the latest health check found.
    """

    # The services are passed in: which there are, the manager alone knows.

    def __init__(
        self,
        config: PluginManagerConfig,
        pool: MemoryPool,
        workers: Workers | None,
        began: float,
    ) -> None:
        self._config = config
        self._pool = pool
        self._workers = workers
        self._began = began
        self._sampler = Sampler(config.max_samples, began)
        self._probes = Probes()
        self._in_use: deque[int] = deque(maxlen=LEAK_CHECKS)  # at the latest checks
        self.last_health: HealthReport | None = None

    @property
    def samples(self) -> list[Sample]:
        """list of Sample: The oldest first."""
        return self._sampler.samples

    def take_sample(self, services: Mapping[str, PluginService]) -> Sample:
        """Keep a sample of all metrics."""
        return self._sampler.take(services, self._pool)

    def check_health(
        self, services: Mapping[str, PluginService], timeout: float | None
    ) -> HealthReport:
        """Ask every plugin, the pool and the workers; log what is not healthy."""
        limit = (
            self._config.health_check_timeout if timeout is None else seconds("timeout", timeout)
        )
        plugins = self._probes.check(services, limit)
        if (stats := self._pool.get_stats()) is not None:
            self._in_use.append(stats.in_use)
        report = HealthReport(
            plugins=plugins,
            pool=check_pool(self._pool, tuple(self._in_use)),
            workers=check_workers(self._workers),
            checked_at=time.time(),
        )
        if report.verdict is not Verdict.HEALTHY:
            for part, health in report.parts().items():
                if health.verdict is not Verdict.HEALTHY:
                    _logger.warning("%s is %s: %s", part, health.verdict.value, health.reason)
        self.last_health = report
        return report

    def status(self, state: str, services: Mapping[str, PluginService]) -> SystemStatus:
        """The manager as a whole."""
        counted = [service.counters for service in services.values()]
        return SystemStatus(
            state=state,
            uptime=time.monotonic() - self._began,
            plugins={
                name: PluginStatus(
                    state=DataFlarePlugin.get_state(service.runner.plugin),
                    enabled=service.runner.enabled,
                    instances=len(service.instances),
                    running=service.runner.running,
                    circuit=service.breaker.state,
                    times_opened=service.breaker.times_opened,
                )
                for name, service in services.items()
            },
            workers=0 if self._workers is None else self._workers.alive,
            max_workers=0 if self._workers is None else self._workers.size - 1,
            memory=self._pool.get_stats(),
            totals=Totals(
                total_processed=sum(each.records for each in counted),
                successful=sum(each.success for each in counted),
                filtered=sum(each.filtered for each in counted),
                skipped=sum(each.skipped for each in counted),
                failed=sum(each.failed for each in counted),
                dead_lettered=sum(each.dead_lettered for each in counted),
                bytes_in=sum(each.bytes_in for each in counted),
                bytes_out=sum(each.bytes_out for each in counted),
            ),
        )

    @staticmethod
    def metrics(service: PluginService) -> PluginMetrics:
        """What a plugin did so far."""
        return PluginMetrics.of(service.counters, service.exclusive_times())

    @staticmethod
    def histograms(service: PluginService) -> PluginHistograms:
        """How long a plugin took so far; copies, that do not change any more."""
        counters = service.counters
        return PluginHistograms(counters.latency.copy(), counters.batch_latency.copy())

    def close(self) -> None:
        """Wait for no plugin's answer any more."""
        self._probes.close()

    def after_fork(self) -> None:
        """In the child of a fork, where the threads that were asking are gone."""
        self._probes = Probes()
        self._sampler.after_fork()
