"""Configuration: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = [
    "BatchConfig",
    "FailureRecoveryConfig",
    "MemoryPoolConfig",
    "PluginManagerConfig",
    "seconds",
]


def seconds(name: str, value: object) -> float:
    """A duration as seconds.

    Parameters
    ----------
    name : str
        What the duration is of, for the message.
    value : float or timedelta
        Infinity is allowed: never.

    Raises
    ------
    TypeError
        It is no duration.
    ValueError
        It is negative or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be a duration of 0 seconds or more, not {value}")
    return float(value)


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not bool")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {number}")
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


class _Duration:
    """A field that takes seconds or a timedelta, and is seconds when read."""

    def __init__(self, default: float) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> float:
        if instance is None:  # asked by the dataclass
            return self._default
        value: float = instance.__dict__[self._name]
        return value

    def __set__(self, instance: object, value: float | timedelta) -> None:
        instance.__dict__[self._name] = seconds(self._name, value)


class _Checked:
    """Replaces fields of a frozen dataclass by their checked form."""

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class MemoryPoolConfig(_Checked):
    """What a `MemoryPool` keeps ready.

    Parameters
    ----------
    max_tiny_buffers : int
        Slabs of 256 B.
    max_small_buffers : int
        Slabs of 4 KiB.
    max_medium_buffers : int
        Slabs of 64 KiB.
    max_large_buffers : int
        Slabs of 1 MiB.
    max_huge_buffers : int
        Slabs of 4 MiB.
    cleanup_interval : float or timedelta
        Seconds between two looks for idle slabs; infinity for none.
    max_idle_time : float or timedelta
        Seconds after which an idle slab gives its memory back to the operating system.
    enable_metrics : bool
        Whether to count; without, `MemoryPool.get_stats` returns None.
    """

    max_tiny_buffers: int = 2000
    max_small_buffers: int = 1000
    max_medium_buffers: int = 200
    max_large_buffers: int = 50
    max_huge_buffers: int = 5
    cleanup_interval: _Duration = _Duration(60.0)
    max_idle_time: _Duration = _Duration(300.0)
    enable_metrics: bool = True

    def __post_init__(self) -> None:
        for size in ("tiny", "small", "medium", "large", "huge"):
            name = f"max_{size}_buffers"
            self._set(**{name: _count(name, getattr(self, name), 0)})
        if self.cleanup_interval == 0:
            raise ValueError("cleanup_interval must be longer than 0 seconds")
        self._set(enable_metrics=_flag("enable_metrics", self.enable_metrics))


@dataclass(frozen=True, kw_only=True)
class BatchConfig(_Checked):
    """How a stream of records is cut into batches, and a batch into parts.

    Parameters
    ----------
    default_batch_size : int
        Records in the first batch, and in every one without automatic optimisation.
    max_batch_size : int
        Records in a batch at most; not less than `default_batch_size`.
    target_latency : float or timedelta
        Seconds that a batch should take at most.
    min_throughput : float
        Records per second below which batches grow as long as `target_latency` allows.
    enable_auto_optimization : bool
        Whether the size of the next batch follows from latency and throughput of those before it.
    max_batch_bytes : int, optional
        Bytes of values in a batch of a stream at most; a batch always holds at least one record.
    enable_parallel : bool
        Whether large batches are shared out among threads, where the plugin allows it.
    parallelism : int
        Threads that work on a batch, the caller's among them.
    """

    default_batch_size: int = 100
    max_batch_size: int = 1000
    target_latency: _Duration = _Duration(0.05)
    min_throughput: float = 2000
    enable_auto_optimization: bool = True
    enable_parallel: bool = True
    parallelism: int = 4
    max_batch_bytes: int | None = None

    def __post_init__(self) -> None:
        self._set(
            enable_parallel=_flag("enable_parallel", self.enable_parallel),
            parallelism=_count("parallelism", self.parallelism, 1),
            default_batch_size=_count("default_batch_size", self.default_batch_size, 1),
            max_batch_size=_count("max_batch_size", self.max_batch_size, 1),
            min_throughput=_rate("min_throughput", self.min_throughput),
            enable_auto_optimization=_flag(
                "enable_auto_optimization", self.enable_auto_optimization
            ),
        )
        if self.max_batch_bytes is not None:
            self._set(max_batch_bytes=_count("max_batch_bytes", self.max_batch_bytes, 1))
        if self.default_batch_size > self.max_batch_size:
            raise ValueError(
                f"default_batch_size ({self.default_batch_size}) must not exceed "
                f"max_batch_size ({self.max_batch_size})"
            )


def _rate(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class FailureRecoveryConfig(_Checked):
    """What happens to records that fail.

    Parameters
    ----------
    max_retries : int
        Further attempts at a record whose error is retryable; see `DataFlarePlugin`.
    retry_interval : float or timedelta
        Seconds before the first further attempt, on average. Each one after it waits twice as long.
    max_retry_interval : float or timedelta
        Seconds that no wait exceeds.
    circuit_breaker_threshold : float
        From 0 to 1. When a larger part of the latest records failed, the circuit opens and the
        plugin is not called any more; 1 for never.
    circuit_breaker_recovery_time : float or timedelta
        Seconds after which a single record probes whether the plugin works again.
    circuit_breaker_window : int
        How many of the latest records count, rounded up to whole batches.
    circuit_breaker_minimum : int
        How many there must be before the circuit can open.
    enable_fallback : bool
        Whether a plugin's fallback gets what the plugin failed at.
    batch_timeout : float or timedelta
        Seconds after which a batch begins no further record; infinity for no limit.
    """

    max_retries: int = 3
    retry_interval: _Duration = _Duration(0.1)
    max_retry_interval: _Duration = _Duration(10.0)
    circuit_breaker_threshold: float = 0.5
    circuit_breaker_recovery_time: _Duration = _Duration(30.0)
    circuit_breaker_window: int = 1024
    circuit_breaker_minimum: int = 20
    enable_fallback: bool = True
    batch_timeout: _Duration = _Duration(math.inf)

    def __post_init__(self) -> None:
        threshold = _rate("circuit_breaker_threshold", self.circuit_breaker_threshold)
        if threshold > 1:
            raise ValueError(f"circuit_breaker_threshold must be at most 1, not {threshold}")
        if self.batch_timeout == 0:
            raise ValueError("batch_timeout must be longer than 0 seconds")
        self._set(
            max_retries=_count("max_retries", self.max_retries, 0),
            circuit_breaker_threshold=threshold,
            circuit_breaker_window=_count("circuit_breaker_window", self.circuit_breaker_window, 1),
            circuit_breaker_minimum=_count(
                "circuit_breaker_minimum", self.circuit_breaker_minimum, 1
            ),
            enable_fallback=_flag("enable_fallback", self.enable_fallback),
        )


@dataclass(frozen=True, kw_only=True)
class PluginManagerConfig(_Checked):
    """What a `PluginManager` is made of.

    Parameters
    ----------
    memory_pool_config : MemoryPoolConfig
    batch_config : BatchConfig
    failure_recovery : FailureRecoveryConfig
    enable_auto_optimization : bool
        False overrides what `batch_config` says of it.
    monitoring_interval : float or timedelta
        Seconds between two samples of all metrics; infinity for none.
    monitoring_growth : float
        Part of its age that a manager lets pass between two samples at least. With 0.01 samples are
        taken every `monitoring_interval` at first, and every hundredth of the age later, so that
        a few hundred of them show a life of any length.
    max_samples : int
        Samples that are kept; the oldest goes first.
    max_plugin_instances : int
        Instances that are made of one class or factory at most.
    health_check_interval : float or timedelta
        Seconds between two health checks; infinity for none.
    health_check_timeout : float or timedelta
        Seconds that a plugin may take to answer.
    enable_debug_mode : bool
        Whether the manager logs each step, and its pool finds misuse of memory and names buffers
        that were not returned; slow.
    """

    memory_pool_config: MemoryPoolConfig = field(default_factory=MemoryPoolConfig)
    batch_config: BatchConfig = field(default_factory=BatchConfig)
    failure_recovery: FailureRecoveryConfig = field(default_factory=FailureRecoveryConfig)
    enable_auto_optimization: bool = True
    monitoring_interval: _Duration = _Duration(30.0)
    monitoring_growth: float = 0.0
    max_samples: int = 1000
    max_plugin_instances: int = 10
    health_check_interval: _Duration = _Duration(60.0)
    health_check_timeout: _Duration = _Duration(5.0)
    enable_debug_mode: bool = False

    def __post_init__(self) -> None:
        self._set(enable_debug_mode=_flag("enable_debug_mode", self.enable_debug_mode))
        for name, kind in (
            ("memory_pool_config", MemoryPoolConfig),
            ("batch_config", BatchConfig),
            ("failure_recovery", FailureRecoveryConfig),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}"
                )
        for name in ("monitoring_interval", "health_check_interval", "health_check_timeout"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be longer than 0 seconds")
        self._set(
            enable_auto_optimization=_flag(
                "enable_auto_optimization", self.enable_auto_optimization
            ),
            monitoring_growth=_rate("monitoring_growth", self.monitoring_growth),
            max_samples=_count("max_samples", self.max_samples, 1),
            max_plugin_instances=_count("max_plugin_instances", self.max_plugin_instances, 1),
        )
