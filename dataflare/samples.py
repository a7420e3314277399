"""What a manager looks like over time: the latest samples of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataflare._backend import DataFlarePlugin, Histogram, MemoryPool, PluginCounters
from dataflare.service import PluginService
from dataflare.types import CircuitState, PluginState, PoolStats

__all__ = ["PluginSample", "Sample", "Sampler"]


@dataclass(frozen=True)
class PluginSample:
    """What a plugin did up to a sample, and since the sample before.

    Attributes
    ----------
    total_processed, successful, filtered, skipped, failed, dead_lettered, retries, fallbacks : int
        Up to now; see `PluginMetrics`.
    bytes_in, bytes_out : int
        Up to now.
    throughput : float
        Records per second of wall time, since the sample before.
    p50_latency, p95_latency, p99_latency : float
        Seconds per record, since the sample before.
    p50_batch_latency, p95_batch_latency, p99_batch_latency : float
        Seconds per batch, since the sample before.
    batch_size : float
        Records per batch, since the sample before; 0.0 if there was none.
    errors : Mapping of str to int
        Records that failed up to now, by the type of the exception.
    state : PluginState
    circuit : CircuitState
    """

    total_processed: int
    successful: int
    filtered: int
    skipped: int
    failed: int
    dead_lettered: int
    retries: int
    fallbacks: int
    bytes_in: int
    bytes_out: int
    throughput: float
    p50_latency: float
    p95_latency: float
    p99_latency: float
    p50_batch_latency: float
    p95_batch_latency: float
    p99_batch_latency: float
    batch_size: float
    errors: Mapping[str, int]
    state: PluginState
    circuit: CircuitState


@dataclass(frozen=True)
class Sample:
    """A manager at one moment.

    Attributes
    ----------
    taken_at : float
        Seconds since the epoch.
    plugins : Mapping of str to PluginSample
        By name.
    pool : PoolStats or None
        None if the pool does not count.
    """

    taken_at: float
    plugins: Mapping[str, PluginSample]
    pool: PoolStats | None


@dataclass
class _Before:
    """What was counted at the sample before."""

    counters: PluginCounters
    taken: float
    records: int = 0
    batches: int = 0
    latency: Histogram = field(default_factory=Histogram)
    batch_latency: Histogram = field(default_factory=Histogram)


class Sampler:
    """Keeps the latest samples of a manager.

    Parameters
    ----------
    max_samples : int
    began : float
        Since when there is something to sample, by `time.monotonic`.
    """

    def __init__(self, max_samples: int, began: float) -> None:
        self._samples: deque[Sample] = deque(maxlen=max_samples)
        self._before: dict[str, _Before] = {}
        self._lock = threading.RLock()
        self._taken = began  # the latest sample

    @property
    def samples(self) -> list[Sample]:
        """list of Sample: The oldest first."""
        return list(self._samples)

    def take(self, services: Mapping[str, PluginService], pool: MemoryPool) -> Sample:
        """Take a sample and keep it.

        Parameters
        ----------
        services : Mapping of str to PluginService
        pool : MemoryPool

        Returns
        -------
        Sample
        """
        with self._lock:
            now = time.monotonic()
            for name in self._before.keys() - services.keys():
                del self._before[name]
            plugins = {name: self._look_at(name, services[name], now) for name in services}
            self._taken = now
            sample = Sample(time.time(), plugins, pool.get_stats())
            self._samples.append(sample)
        return sample

    def _look_at(self, name: str, service: PluginService, now: float) -> PluginSample:
        counters = service.counters
        before = self._before.get(name)
        if before is None or before.counters is not counters:  # registered since
            before = _Before(counters, self._taken)
        after = _Before(
            counters,
            now,
            counters.records,
            counters.batches,
            counters.latency.copy(),
            counters.batch_latency.copy(),
        )
        self._before[name] = after
        latency = after.latency.since(before.latency)
        batch_latency = after.batch_latency.since(before.batch_latency)
        records, batches = after.records - before.records, after.batches - before.batches
        return PluginSample(
            total_processed=counters.records,
            successful=counters.success,
            filtered=counters.filtered,
            skipped=counters.skipped,
            failed=counters.failed,
            dead_lettered=counters.dead_lettered,
            retries=counters.retries,
            fallbacks=counters.fallbacks,
            bytes_in=counters.bytes_in,
            bytes_out=counters.bytes_out,
            throughput=records / max(now - before.taken, 1e-9),
            p50_latency=latency.percentile(50) / 1e9,
            p95_latency=latency.percentile(95) / 1e9,
            p99_latency=latency.percentile(99) / 1e9,
            p50_batch_latency=batch_latency.percentile(50) / 1e9,
            p95_batch_latency=batch_latency.percentile(95) / 1e9,
            p99_batch_latency=batch_latency.percentile(99) / 1e9,
            batch_size=records / batches if batches else 0.0,
            errors=dict(service.error_kinds),
            state=DataFlarePlugin.get_state(service.runner.plugin),
            circuit=service.breaker.state,
        )

    def after_fork(self) -> None:
        """In the child of a fork, where the lock may be held by none."""
        self._lock = threading.RLock()
