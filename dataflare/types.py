"""Small types that describe plugins and the pool; they hold no logic."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "API_VERSION",
    "BufferSize",
    "CircuitState",
    "ClassStats",
    "Loan",
    "PluginInfo",
    "PluginState",
    "PluginType",
    "PoolStats",
]

API_VERSION = 1
"""Version of the Python interface between plugins and the library."""


class PluginType(enum.Enum):
    """What a plugin is for."""

    SOURCE = "source"
    DESTINATION = "destination"
    PROCESSOR = "processor"
    TRANSFORMER = "transformer"
    FILTER = "filter"
    AGGREGATOR = "aggregator"
    CUSTOM = "custom"


class PluginState(enum.Enum):
    """Where in its life a plugin is."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    RUNNING = "running"
    ERROR = "error"
    STOPPED = "stopped"


class CircuitState(enum.Enum):
    """What a plugin's circuit breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True)
class PluginInfo:
    """Who a plugin is.

    Parameters
    ----------
    name : str
    version : str
        Of the plugin itself.
    plugin_type : PluginType
    description : str
        One line.
    author : str
    api_version : int
        The `API_VERSION` the plugin was written for.
    """

    name: str
    version: str = "0.0.0"
    plugin_type: PluginType = PluginType.CUSTOM
    description: str = ""
    author: str = ""
    api_version: int = API_VERSION


class BufferSize(enum.IntEnum):
    """The size classes of the memory pool, in bytes."""

    TINY = 256
    SMALL = 4096
    MEDIUM = 65536
    LARGE = 1 << 20
    HUGE = 4 << 20


@dataclass(frozen=True)
class ClassStats:
    """Counts of one size class of a memory pool; see `PoolStats`."""

    capacity: int
    allocations: int
    returns: int
    hits: int
    misses: int
    in_use: int
    cached: int
    peak_in_use: int
    bytes_requested: int


@dataclass(frozen=True)
class PoolStats:
    """What a memory pool did since it was made.

    Attributes
    ----------
    allocations : int
        Buffers handed out: ``hits + misses``.
    returns : int
        Buffers that came back.
    hits : int
        Requests served by a slab.
    misses : int
        Requests served by an allocation of their own.
    in_use : int
        Buffers that are out: ``allocations - returns``.
    cached : int
        Free slabs.
    peak_in_use : int
        The most that were out at a time.
    bytes_requested : int
        Bytes asked for, in total.
    bytes_allocated : int
        Capacity handed out for them, in total.
    bytes_in_use : int
        Capacity that is out now.
    peak_bytes_in_use : int
        The most capacity that was out at a time.
    bytes_reserved : int
        Address space of all slabs.
    cache_hit_rate : float
        ``hits / allocations``, 0.0 before the first.
    memory_efficiency : float
        ``bytes_requested / bytes_allocated``, 0.0 before the first.
    classes : Mapping of BufferSize to ClassStats
        By size class. Requests larger than the largest class are in the totals only.
    """

    allocations: int
    returns: int
    hits: int
    misses: int
    in_use: int
    cached: int
    peak_in_use: int
    bytes_requested: int
    bytes_allocated: int
    bytes_in_use: int
    peak_bytes_in_use: int
    bytes_reserved: int
    cache_hit_rate: float
    memory_efficiency: float
    classes: Mapping[BufferSize, ClassStats]


@dataclass(frozen=True)
class Loan:
    """Memory of a pool in debug mode that is out.

    Attributes
    ----------
    size : int
        Bytes asked for.
    place : str
        Where it was taken: ``"file:line in function"``, the first one outside the library.
    age : float
        Seconds since then.
    kind : str
        ``"buffer"`` if it was asked for by `MemoryPool.get_buffer`, ``"batch"`` if the library took
        it for records or for a result, which give it back when they die.
    """

    size: int
    place: str
    age: float
    kind: str
