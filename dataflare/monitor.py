"""What a manager looks like over time: samples, and the thread that takes them."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dataflare._backend import DataFlarePlugin, Histogram, MemoryPool, PluginCounters
from dataflare.service import PluginService
from dataflare.types import CircuitState, PluginState, PoolStats

__all__ = ["Monitor", "PluginSample", "PluginStatus", "Sample", "SystemStatus", "Totals"]

_logger = logging.getLogger("dataflare.monitor")


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


@dataclass
class _Before:
    """What was counted at the sample before."""

    counters: PluginCounters
    taken: float
    records: int = 0
    batches: int = 0
    latency: Histogram = field(default_factory=Histogram)
    batch_latency: Histogram = field(default_factory=Histogram)


class _Sampled(Protocol):
    """What a monitor watches."""

    def take_sample(self) -> object: ...
    def health_check(self) -> object: ...


class Monitor:
    """Keeps the latest samples of a manager.

    Parameters
    ----------
    max_samples : int
    """

    def __init__(self, max_samples: int) -> None:
        self._samples: deque[Sample] = deque(maxlen=max_samples)
        self._before: dict[str, _Before] = {}
        self._lock = threading.RLock()
        self._taken = time.monotonic()  # the latest sample
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

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

    def watch(
        self, manager: _Sampled, sample_every: float, check_every: float, growth: float = 0.0
    ) -> None:
        """Take a sample and check the health every so often, until `stop` or the manager is gone.

        Parameters
        ----------
        manager : object
            Has ``take_sample()`` and ``health_check()``. It is not kept alive.
        sample_every, check_every : float
            Seconds; infinity for never.
        growth : float
            Part of the time that passed so far that lies between two samples at least.
        """
        if math.isinf(sample_every) and math.isinf(check_every):
            return
        stop = self._stop
        reference = weakref.ref(manager, lambda _: stop.set())
        self._thread = threading.Thread(
            target=_run,
            args=(reference, stop, sample_every, check_every, growth),
            name="dataflare-monitor",
            daemon=True,
        )
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """bool: Whether its thread is."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, wait: bool = True) -> None:
        """End the thread.

        Parameters
        ----------
        wait : bool
            Whether to return only when it has ended.
        """
        self._stop.set()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> bool:
        """In the child of a fork, where the thread is gone; whether there was one."""
        self._lock = threading.RLock()
        self._stop = threading.Event()
        watched, self._thread = self._thread, None
        return watched is not None


def _run(
    reference: weakref.ref[_Sampled],
    stop: threading.Event,
    sample_every: float,
    check_every: float,
    growth: float,
) -> None:
    """What the thread does; between two looks it holds nothing but a weak reference."""
    began = time.monotonic()
    sample_due, check_due = began + sample_every, began + check_every
    while True:
        wait = min(sample_due, check_due) - time.monotonic()
        if stop.wait(max(min(wait, threading.TIMEOUT_MAX), 0)):
            return
        now = time.monotonic()
        if now >= sample_due:
            _call(reference, lambda manager: manager.take_sample())
            sample_due = max(sample_due + max(sample_every, growth * (now - began)), now)
        if now >= check_due:
            _call(reference, lambda manager: manager.health_check())
            check_due = max(check_due + check_every, now)


def _call(reference: weakref.ref[_Sampled], look: Callable[[_Sampled], object]) -> None:
    manager = reference()
    if manager is None:
        return
    try:
        look(manager)
    except Exception:
        _logger.exception("monitoring failed")
