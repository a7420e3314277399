"""Configuration: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["BatchConfig", "MemoryPoolConfig", "PluginManagerConfig", "seconds"]


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
    max_tiny_buffers, max_small_buffers, max_medium_buffers, max_large_buffers, \
max_huge_buffers : int
        Slabs of 256 B, 4 KiB, 64 KiB, 1 MiB and 4 MiB.
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
    """How a stream of records is cut into batches.

    Parameters
    ----------
    default_batch_size : int
        Records in the first batch, and in every one without automatic optimisation.
    max_batch_size : int
        Records in a batch at most; not less than `default_batch_size`.
    target_latency : float or timedelta
        Seconds that a batch should take at most.
    min_throughput : float
        Records per second below which batches grow.
    enable_auto_optimization : bool
        Whether the size of the next batch follows from the last one's latency and throughput.
    """

    default_batch_size: int = 100
    max_batch_size: int = 1000
    target_latency: _Duration = _Duration(0.05)
    min_throughput: float = 2000
    enable_auto_optimization: bool = True

    def __post_init__(self) -> None:
        self._set(
            default_batch_size=_count("default_batch_size", self.default_batch_size, 1),
            max_batch_size=_count("max_batch_size", self.max_batch_size, 1),
            min_throughput=_rate("min_throughput", self.min_throughput),
            enable_auto_optimization=_flag(
                "enable_auto_optimization", self.enable_auto_optimization
            ),
        )
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
class PluginManagerConfig(_Checked):
    """What a `PluginManager` is made of.

    Parameters
    ----------
    memory_pool_config : MemoryPoolConfig
    batch_config : BatchConfig
    enable_debug_mode : bool
        Whether the manager logs each step, and its pool finds misuse of memory and names buffers
        that were not returned; slow.
    """

    memory_pool_config: MemoryPoolConfig = field(default_factory=MemoryPoolConfig)
    batch_config: BatchConfig = field(default_factory=BatchConfig)
    enable_debug_mode: bool = False

    def __post_init__(self) -> None:
        self._set(enable_debug_mode=_flag("enable_debug_mode", self.enable_debug_mode))
        for name, kind in (("memory_pool_config", MemoryPoolConfig), ("batch_config", BatchConfig)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}"
                )
