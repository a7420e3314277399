"""Reports: all that a manager knows of itself, in one file for machines or for people.

Design
------
a. A report is plain data (`report_of`), written as JSON. Its schema is the file
   ``report.schema.json`` beside this one.
b. The page (`dataflare.report_page`) is made from that data alone and shows nothing else.
c. Fields have the names they have in Python, and their unit behind it where that is not in the
   name already. What is endless, such as an interval for never, is null: JSON has no infinity.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from dataflare._backend import backend, simd_level
from dataflare._build_info import VERSION
from dataflare.config import PluginManagerConfig
from dataflare.errors import PluginConfigurationError
from dataflare.files import OutputFile
from dataflare.health import HealthReport
from dataflare.metrics import PluginMetrics
from dataflare.observer import SystemStatus
from dataflare.samples import Sample
from dataflare.types import PoolStats

__all__ = ["SCHEMA", "ReportFile", "report_of"]

SCHEMA = "urn:dataflare:report:1"
"""What every report names as its schema. The number grows when a field goes or means another
thing, not when one is added."""

_UNITS = {
    "_seconds": """
        average_latency p50_latency p95_latency p99_latency max_latency processing_time
        p50_batch_latency p95_batch_latency p99_batch_latency max_batch_latency exclusive_time
        uptime cleanup_interval max_idle_time target_latency retry_interval max_retry_interval
        circuit_breaker_recovery_time batch_timeout monitoring_interval health_check_interval
        health_check_timeout
    """,
    "_records_per_second": "throughput average_throughput recent_throughput min_throughput",
}
_SUFFIXES = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_MOMENTS = {"taken_at", "checked_at"}


class _Manager(Protocol):
    """What a report is made of."""

    @property
    def config(self) -> PluginManagerConfig: ...
    @property
    def samples(self) -> list[Sample]: ...
    def take_sample(self) -> object: ...
    def health_check(self) -> HealthReport: ...
    def get_all_metrics(self) -> dict[str, PluginMetrics]: ...
    def get_memory_pool_stats(self) -> PoolStats | None: ...
    def get_system_status(self) -> SystemStatus: ...


def report_of(manager: _Manager) -> dict[str, Any]:
    """All that a manager knows of itself, after a last sample and a health check.

    Parameters
    ----------
    manager : PluginManager

    Returns
    -------
    dict
        Strict JSON; ``report.schema.json`` describes it.
    """
    manager.take_sample()
    health = manager.health_check()
    return {
        "schema": SCHEMA,
        "generated_at": _moment(datetime.now(UTC).timestamp()),
        "versions": {
            "dataflare": VERSION,
            "backend": backend,
            "simd_level": simd_level() or None,
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "numpy": np.__version__,
            "platform": platform.platform(),
        },
        "config": _plain(manager.config),
        "status": _plain(manager.get_system_status()),
        "metrics": _plain(manager.get_all_metrics()),
        "pool": _plain(manager.get_memory_pool_stats()),
        "health": {"verdict": health.verdict.value, **_plain(health)},
        "samples": _plain(manager.samples),
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if dataclasses.is_dataclass(value):
        return dict(_field(f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, enum.Enum):
        return value.name.lower() if isinstance(value, int) else value.value
    if isinstance(value, Mapping):
        return {_text(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value) if isinstance(value, str) else value


def _field(name: str, value: Any) -> tuple[str, Any]:
    if name in _MOMENTS:
        return name, _moment(value)
    return name + _SUFFIXES.get(name, ""), _plain(value)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _text(text: str) -> str:
    """Text that every encoding of Unicode can hold: names may have halves of characters in them."""
    return text.encode(errors="backslashreplace").decode()


def _as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def _as_html(report: dict[str, Any]) -> str:
    from dataflare.report_page import page

    return page(report)


_FORMS: dict[str, Callable[[dict[str, Any]], str]] = {".json": _as_json, ".html": _as_html}


class ReportFile:
    """A file that will hold a report; it appears, or replaces the one before, when it is complete.

    Use it as a context manager. Left without a report, or with half of one, it leaves nothing.

    Parameters
    ----------
    path : str or path-like
        Ends with ``.json`` or ``.html``.

    Attributes
    ----------
    file : OutputFile

    Raises
    ------
    PluginConfigurationError
        The path has another ending, or a page needs a package that is not installed.
    OSError
        The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        ending = os.path.splitext(name)[1].lower()
        if ending not in _FORMS:
            raise PluginConfigurationError(
                f"a report is a file that ends with .html or .json, not {name}"
            )
        if ending == ".html" and not all(map(find_spec, ("jinja2", "pygal"))):
            raise PluginConfigurationError(
                "a report as a page needs an extra: pip install 'dataflare[report]'"
            )
        self._form = _FORMS[ending]
        self._written = False
        self.file = OutputFile(name)

    def write(self, manager: _Manager) -> None:
        """Write the report of a manager, once.

        Raises
        ------
        OSError
            The device is full, ...
        """
        self.file.write(self._form(report_of(manager)).encode())
        self._written = True

    def __enter__(self) -> ReportFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        unwritten = None if self._written else error or InterruptedError("there is no report")
        try:
            self.file.__exit__(None if unwritten is None else type(unwritten), unwritten, traceback)
        finally:
            if self.file.kept is not None:
                with suppress(OSError):
                    os.unlink(self.file.kept)
