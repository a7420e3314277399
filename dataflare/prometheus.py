"""A manager as Prometheus sees it; needs the extra ``prometheus``."""

from __future__ import annotations

import json
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from dataflare._backend import Histogram, backend, simd_level
from dataflare._build_info import VERSION
from dataflare.figures import FIGURES, Figure, Kind, Reading, labels, points
from dataflare.health import HealthReport, Verdict
from dataflare.manager import PluginManager

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "dataflare.prometheus needs the package prometheus_client: "
        "pip install 'dataflare[prometheus]'"
    ) from error

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["ManagerCollector", "MetricsServer", "serve_metrics"]

_logger = logging.getLogger("dataflare.prometheus")

_UNITS = {"s": "seconds", "By": "bytes"}
_ENDLESS = (1 << 63) - 1  # nanoseconds, the most that a histogram holds
_IDLE = 10.0  # seconds until a client that sends nothing is left

_STEPS = [step * 10**power // 2 for power in range(1, 11) for step in (2, 5, 10)]
"""Nanoseconds: 10, 25, 50, 100 and so on."""
RECORD_BOUNDS = [bound for bound in _STEPS if 10 <= bound <= 10**9]
BATCH_BOUNDS = [bound for bound in _STEPS if 10**3 <= bound <= 10**10]


class ManagerCollector(Collector):
    """Shows a manager to a registry of prometheus_client.

    Nothing is counted for it: what the manager counts anyway is read at every scrape. The manager
    is not kept alive. Once it is closed, ``dataflare_up`` is 0 and nothing else is shown; once it
    is gone, nothing is.

    Parameters
    ----------
    manager : PluginManager

    Notes
    -----
    A registry takes one collector of this kind, because all of them use the same names; a second
    manager gets a registry of its own.
    """

    def __init__(self, manager: PluginManager) -> None:
        self._manager = reference(manager)

    def describe(self) -> list[Metric]:
        """The names of all metrics, for the registry to compare; reads nothing.

        Returns
        -------
        list of prometheus_client.Metric
        """
        return [*map(_family, filter(_is_shown, FIGURES)), *_histogram_families(), _info()]

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment.

        Returns
        -------
        iterator of prometheus_client.Metric
        """
        manager = self._manager()
        if manager is None:
            return
        reading = Reading(manager)
        for figure in filter(_is_shown, FIGURES):
            family = _family(figure)
            for values, value in points(figure, reading):
                family.add_metric(values, value)
            if family.samples:
                yield family
        if reading.is_open:
            yield from _histograms(manager)
            yield _info()


def reference(manager: PluginManager) -> Callable[[], PluginManager | None]:
    """A weak reference to a manager.

    Raises
    ------
    TypeError
        It is none.
    """
    if not isinstance(manager, PluginManager):
        raise TypeError(f"manager must be a PluginManager, not {type(manager).__name__}")
    return weakref.ref(manager)


def _is_shown(figure: Figure) -> bool:
    return bool(figure.prometheus)


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if figure.kind is Kind.COUNTER else GaugeMetricFamily
    unit = _UNITS.get(figure.unit, "")
    return kind(figure.prometheus, figure.description, labels=figure.labels, unit=unit)


def _info() -> InfoMetricFamily:
    facts = {"version": VERSION, "backend": backend, "simd": simd_level()}
    return InfoMetricFamily("dataflare", "What runs.", facts)


def _histogram_families() -> tuple[HistogramMetricFamily, HistogramMetricFamily]:
    return (
        HistogramMetricFamily(
            "dataflare_batch_duration_seconds",
            "Time of a batch, waiting between attempts excluded; a single record is one of one.",
            labels=("plugin",),
            unit="seconds",
        ),
        HistogramMetricFamily(
            "dataflare_record_duration_seconds",
            "Time of a record; that of a batch counts in equal parts for its records.",
            labels=("plugin",),
            unit="seconds",
        ),
    )


def _histograms(manager: PluginManager) -> Iterable[Metric]:
    batches, records = _histogram_families()
    names = manager.list_plugins()
    for name, label in zip(names, labels(names), strict=True):
        taken = manager.get_histograms(name)
        if taken is not None:  # unregistered meanwhile
            _add(batches, label, taken.batch_latency, BATCH_BOUNDS)
            _add(records, label, taken.latency, RECORD_BOUNDS)
    return [family for family in (batches, records) if family.samples]


def _add(
    family: HistogramMetricFamily, label: str, histogram: Histogram, bounds: Sequence[int]
) -> None:
    counts = histogram.cumulative([*bounds, _ENDLESS])
    limits = [*(repr(bound / 1e9) for bound in bounds), "+Inf"]
    family.add_metric(
        [label], list(zip(limits, counts, strict=True)), sum_value=histogram.sum / 1e9
    )


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request; none of them keeps the process, or `close`, waiting."""

    daemon_threads = True

    def __init__(self, address: str, port: int, application: WSGIApplication) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, *_, where = found[0]
        super().__init__(where[:2], _Handler)  # type: ignore[arg-type]
        self.set_app(application)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or sent nothing, is no news."""
        _logger.debug("a request failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = _IDLE

    def log_message(self, format: str, *args: Any) -> None:
        _logger.debug(format, *args)


class MetricsServer:
    """Serves the metrics and the health of a manager; `serve_metrics` makes it.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, server: WSGIServer, address: str) -> None:
        self.address = address
        self._server = server
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="dataflare-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """int: Where it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """str: Where the metrics are."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Free the port; closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MetricsServer({'closed' if self._closed else self.url})"


def serve_metrics(manager: PluginManager, port: int, address: str = "127.0.0.1") -> MetricsServer:
    """Serve ``/metrics`` for Prometheus, and ``/healthz`` for what asks whether all is well.

    ``/metrics`` has the manager's metrics and those of the process (memory, CPU time, files).
    ``/healthz`` checks the health, and answers with 503 if a part is unhealthy, else with 200; the
    body is JSON with a verdict and the reason for each part.

    Parameters
    ----------
    manager : PluginManager
        It is not kept alive, nor does the server end with it.
    port : int
        0 for any free one.
    address : str
        Where to listen; ``"0.0.0.0"`` or ``"::"`` for every network, which lets everybody read.

    Returns
    -------
    MetricsServer
        It works in threads of its own until it is closed.

    Raises
    ------
    OSError
        The port is in use, or the address is not one of this machine.
    ValueError
        The port is not between 0 and 65535.
    """
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be an integer, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be between 0 and 65535, not {port}")
    registry = CollectorRegistry()
    registry.register(ManagerCollector(manager))
    ProcessCollector(registry=registry)
    try:
        server = _Server(address, port, _application(reference(manager), registry))
    except OSError as error:
        why = str(error.strerror or error).lower()
        raise OSError(
            error.errno, f"metrics cannot be served at {address}, port {port}: {why}"
        ) from error
    return MetricsServer(server, address)


def _application(
    manager: Callable[[], PluginManager | None], registry: CollectorRegistry
) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
            if path == "/healthz":
                return _answer(environ, start, *_health(manager()))
        except Exception as error:  # a scrape that fails must be seen
            _logger.exception("%s failed", path)
            return _answer(
                environ, start, HTTPStatus.INTERNAL_SERVER_ERROR,
                {"error": f"{type(error).__name__}: {error}"},
            )  # fmt: skip
        return _answer(
            environ, start, HTTPStatus.NOT_FOUND, {"error": "there are /metrics and /healthz"}
        )

    return application


def _answer(
    environ: WSGIEnvironment, start: StartResponse, status: HTTPStatus, body: object
) -> Iterable[bytes]:
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    method = environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD"):
        status, body = HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{method} is not allowed"}
        headers.append(("Allow", "GET, HEAD"))
    text = json.dumps(body, indent=2).encode() + b"\n"
    start(f"{status.value} {status.phrase}", [*headers, ("Content-Length", str(len(text)))])
    return [] if method == "HEAD" else [text]


def _health(manager: PluginManager | None) -> tuple[HTTPStatus, object]:
    if manager is None:
        gone = {"verdict": Verdict.UNHEALTHY.value, "reason": "the manager does not exist any more"}
        return HTTPStatus.SERVICE_UNAVAILABLE, gone
    report = manager.health_check()
    healthy = report.verdict is not Verdict.UNHEALTHY
    return HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, _as_json(report)


def _as_json(report: HealthReport) -> object:
    return {
        "verdict": report.verdict.value,
        "checked_at": report.checked_at,
        "parts": {
            name: {"verdict": part.verdict.value, "reason": part.reason}
            for name, part in report.parts().items()
        },
    }
