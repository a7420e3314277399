"""What Prometheus sees of a manager, and the server that shows it."""

import errno
import gc
import gzip
import http.client
import json
import math
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from types import SimpleNamespace

import observed
import pytest
from observed import CHAIN, FRAGILE, run_threads
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from dataflare.config import MemoryPoolConfig, PluginManagerConfig
from dataflare.types import CircuitState

ODD_LABEL = 'odd "name"\n\\udcff'
PLUGIN, CLASS = {"plugin"}, {"class"}
# Name without suffixes: type, unit, labels.
METRICS = {
    "dataflare_up": ("gauge", "", set()),
    "dataflare_records": ("counter", "", {"plugin", "outcome"}),
    "dataflare_bytes": ("counter", "bytes", {"plugin", "direction"}),
    "dataflare_retries": ("counter", "", PLUGIN),
    "dataflare_fallbacks": ("counter", "", PLUGIN),
    "dataflare_batch_duration_seconds": ("histogram", "seconds", PLUGIN),
    "dataflare_record_duration_seconds": ("histogram", "seconds", PLUGIN),
    "dataflare_stage_seconds": ("counter", "seconds", {"plugin", "stage"}),
    "dataflare_circuit_state": ("gauge", "", {"plugin", "state"}),
    "dataflare_circuit_opened": ("counter", "", PLUGIN),
    "dataflare_plugin_up": ("gauge", "", PLUGIN),
    "dataflare_plugin_enabled": ("gauge", "", PLUGIN),
    "dataflare_plugin_instances": ("gauge", "", PLUGIN),
    "dataflare_calls_running": ("gauge", "", PLUGIN),
    "dataflare_pool_buffers": ("gauge", "", {"class", "state"}),
    "dataflare_pool_slabs": ("gauge", "", CLASS),
    "dataflare_pool_peak_buffers": ("gauge", "", CLASS),
    "dataflare_pool_requests": ("counter", "", {"class", "result"}),
    "dataflare_pool_returns": ("counter", "", CLASS),
    "dataflare_pool_requested_bytes": ("counter", "bytes", set()),
    "dataflare_pool_allocated_bytes": ("counter", "bytes", set()),
    "dataflare_pool_in_use_bytes": ("gauge", "bytes", set()),
    "dataflare_pool_peak_in_use_bytes": ("gauge", "bytes", set()),
    "dataflare_pool_reserved_bytes": ("gauge", "bytes", set()),
    "dataflare_workers": ("gauge", "", set()),
    "dataflare_workers_limit": ("gauge", "", set()),
    "dataflare_manager_uptime_seconds": ("gauge", "seconds", set()),
    "dataflare": ("info", "", {"version", "backend", "simd"}),
}
COUNTED = ("_total", "_bucket", "_count", "_sum")  # suffixes of what never falls


@pytest.fixture
def manager(backend):
    """A manager whose plugins have done something of everything."""
    with backend.PluginManager(observed.CONFIG) as manager:
        observed.fill(backend, manager)
        yield manager


@pytest.fixture
def server(backend, manager):
    """A server of it, on a free port."""
    with backend.serve_metrics(manager, 0) as server:
        yield server


def registry_of(backend, manager):
    """A registry with nothing but a manager."""
    registry = CollectorRegistry()
    registry.register(backend.ManagerCollector(manager))
    return registry


def scrape(registry):
    """Every sample, by name and labels; no two are the same."""
    samples = {}
    for family in parse(generate_latest(registry).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


def select(samples, wanted, label, **labels):
    """The samples of a name and some labels, by the value of another label."""
    return {
        dict(of)[label]: found
        for (name, of), found in samples.items()
        if name == wanted and labels.items() <= dict(of).items()
    }


def check_histograms(samples):
    """Buckets are cumulative, and the last one is the count."""
    series = {}
    for (name, of), count in samples.items():
        if name.endswith("_bucket"):
            labels = dict(of)
            bound = float(labels.pop("le"))
            series.setdefault((name, frozenset(labels.items())), []).append((bound, count))
    for (name, of), buckets in series.items():
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)
        assert max(buckets)[0] == math.inf
        assert counts[-1] == samples[name.replace("_bucket", "_count"), of]
        assert samples[name.replace("_bucket", "_sum"), of] >= 0
    return len(series)


# ---- figures


def test_every_metric_has_its_name_type_unit_and_labels(backend, manager) -> None:
    """As OpenMetrics, whose parser is strict; each with a help text, and no other metric."""
    text = openmetrics.generate_latest(registry_of(backend, manager)).decode()
    families = {family.name: family for family in parse_openmetrics(text)}
    found = {
        name: (family.type, family.unit, set().union(*(s.labels for s in family.samples)) - {"le"})
        for name, family in families.items()
    }
    assert found == METRICS
    assert all(family.documentation.endswith(".") for family in families.values())


def test_outcomes_are_disjoint_and_complete(backend, manager) -> None:
    """They sum up to the records that came in; what led to them is counted apart."""
    samples = scrape(registry_of(backend, manager))
    assert select(samples, "dataflare_records_total", "outcome", plugin=FRAGILE) == {
        "success": 23, "filtered": 1, "skipped": 1, "failed": 1, "dead_lettered": 1,
    }  # fmt: skip
    assert value(samples, "dataflare_retries_total", plugin=FRAGILE) == 2
    assert value(samples, "dataflare_fallbacks_total", plugin=FRAGILE) == 1
    for name, metrics in manager.get_all_metrics().items():
        label = ODD_LABEL if name == observed.ODD else name
        outcomes = select(samples, "dataflare_records_total", "outcome", plugin=label)
        assert sum(outcomes.values()) == metrics.total_processed
        assert select(samples, "dataflare_bytes_total", "direction", plugin=label) == {
            "in": metrics.bytes_in, "out": metrics.bytes_out,
        }  # fmt: skip


def test_histograms_are_those_of_the_manager(backend, manager) -> None:
    """Counts of records and batches, cumulative up to their bounds; sums in seconds."""
    samples = scrape(registry_of(backend, manager))
    assert check_histograms(samples) == 6
    for name, metrics in manager.get_all_metrics().items():
        label = ODD_LABEL if name == observed.ODD else name
        taken = manager.get_histograms(name)
        for metric, histogram, count in (
            ("dataflare_batch_duration_seconds", taken.batch_latency, metrics.batches),
            ("dataflare_record_duration_seconds", taken.latency, metrics.total_processed),
        ):
            assert value(samples, f"{metric}_count", plugin=label) == histogram.count == count
            assert value(samples, f"{metric}_sum", plugin=label) == histogram.sum / 1e9
            for bound, below in select(samples, f"{metric}_bucket", "le", plugin=label).items():
                if bound != "+Inf":
                    assert histogram.cumulative([round(float(bound) * 1e9)]) == [below]


def test_histograms_are_copies(backend, manager) -> None:
    """What the plugin does later does not change them; there is none of an unknown plugin."""
    taken = manager.get_histograms(CHAIN)
    before = taken.latency.count, taken.batch_latency.count
    manager.process_batch(CHAIN, [b"a"] * 10)
    assert (taken.latency.count, taken.batch_latency.count) == before == (3000, 1)
    assert manager.get_histograms(CHAIN).latency.count == 3010
    assert manager.get_histograms("nobody") is None


def test_members_of_a_chain_are_told_apart(backend, manager) -> None:
    """A name that comes again has a number; their times are those of the metrics."""
    samples = scrape(registry_of(backend, manager))
    stages = select(samples, "dataflare_stage_seconds_total", "stage", plugin=CHAIN)
    assert [*stages] == ["Contains", "Upper", "Upper (2)", "lower"]
    assert sum(stages.values()) == pytest.approx(
        sum(stage.exclusive_time for stage in manager.get_metrics(CHAIN).stages)
    )


def test_labels_are_unique_whatever_the_names(backend) -> None:
    """Names that look like numbered ones, and names that are not UTF-8."""
    pieces = ["x", "x", "x (2)", "x", "\udcff", "\\udcff"]
    chain = backend.Chain(*[backend.map_plugin(bytes, name=name) for name in pieces])
    with backend.PluginManager(observed.CONFIG) as manager:
        manager.register_plugin("\udcff", chain)
        manager.register_plugin("\\udcff", backend.Upper())
        samples = scrape(registry_of(backend, manager))
        stages = select(samples, "dataflare_stage_seconds_total", "stage", plugin="\\udcff")
        assert [*stages] == ["x", "x (2)", "x (2) (2)", "x (3)", "\\udcff", "\\udcff (2)"]
        assert [*select(samples, "dataflare_plugin_up", "plugin")] == ["\\udcff", "\\udcff (2)"]


def test_circuit_and_availability(backend, manager) -> None:
    """One state is 1; a plugin that is disabled, or whose circuit is open, is not up."""
    registry = registry_of(backend, manager)
    samples = scrape(registry)
    states = select(samples, "dataflare_circuit_state", "state", plugin=FRAGILE)
    assert states == {"closed": 1, "open": 0, "half_open": 0}
    assert select(samples, "dataflare_plugin_up", "plugin") == {CHAIN: 1, FRAGILE: 1, ODD_LABEL: 0}
    observed.break_circuit(manager)
    samples = scrape(registry)
    states = select(samples, "dataflare_circuit_state", "state", plugin=FRAGILE)
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert len(states) == len(CircuitState)
    assert value(samples, "dataflare_circuit_opened_total", plugin=FRAGILE) == 1
    assert select(samples, "dataflare_plugin_up", "plugin") == {CHAIN: 1, FRAGILE: 0, ODD_LABEL: 0}
    enabled = select(samples, "dataflare_plugin_enabled", "plugin")
    assert enabled == {CHAIN: 1, FRAGILE: 1, ODD_LABEL: 0}


def test_running_calls_are_seen_from_within(backend) -> None:
    """A scrape needs no slot of the plugin, nor waits for it."""
    seen = []
    with backend.PluginManager(observed.CONFIG) as manager:
        registry = registry_of(backend, manager)

        def look(value):
            seen.append(globals()["value"](scrape(registry), "dataflare_calls_running", plugin="x"))
            return value

        manager.register_plugin("x", backend.map_plugin(look))
        manager.process_batch("x", [b"a"])
        seen.append(value(scrape(registry), "dataflare_calls_running", plugin="x"))
    assert seen == [1, 0]


def test_pool_figures_are_those_of_the_pool(backend, manager) -> None:
    """By class, with what is too large for any in a class of its own."""
    registry = registry_of(backend, manager)
    held = [manager.pool.get_buffer(size) for size in (10, 300, 5 << 20, 5 << 20)]
    stats, samples = manager.get_memory_pool_stats(), scrape(registry)
    in_use = select(samples, "dataflare_pool_buffers", "class", state="in_use")
    assert in_use == {
        **{size.name.lower(): of.in_use for size, of in stats.classes.items()}, "oversize": 2,
    }  # fmt: skip
    assert sum(in_use.values()) == stats.in_use
    cached = select(samples, "dataflare_pool_buffers", "class", state="cached")
    assert sum(cached.values()) == stats.cached
    for result, total in (("hit", stats.hits), ("miss", stats.misses)):
        by_class = select(samples, "dataflare_pool_requests_total", "class", result=result)
        assert sum(by_class.values()) == total
    returns = select(samples, "dataflare_pool_returns_total", "class")
    assert sum(returns.values()) == stats.returns
    for name, field in (
        ("requested_bytes_total", "bytes_requested"),
        ("allocated_bytes_total", "bytes_allocated"),
        ("in_use_bytes", "bytes_in_use"),
        ("peak_in_use_bytes", "peak_bytes_in_use"),
        ("reserved_bytes", "bytes_reserved"),
    ):
        assert value(samples, f"dataflare_pool_{name}") == getattr(stats, field)
    del held


def test_a_pool_that_does_not_count_shows_nothing(backend) -> None:
    """Instead of zeros."""
    config = PluginManagerConfig(memory_pool_config=MemoryPoolConfig(enable_metrics=False))
    with backend.PluginManager(config) as manager:
        names = {name for name, _ in scrape(registry_of(backend, manager))}
    assert "dataflare_workers" in names
    assert not [name for name in names if name.startswith("dataflare_pool")]


def test_counters_never_fall(backend) -> None:
    """Looked at from the plugin, from the sink of dead letters and from between the batches."""
    with backend.PluginManager(observed.CONFIG) as manager:
        registry = registry_of(backend, manager)
        before = {}
        scrapes = 0

        def look(_=None):
            nonlocal before, scrapes
            now = scrape(registry)
            for key, count in before.items():
                assert not key[0].endswith(COUNTED) or now[key] >= count, key
            check_histograms(now)
            before = now
            scrapes += 1

        def spying(value):
            look()
            return value

        manager.register_plugin("spy", backend.map_plugin(spying))
        observed.fill(backend, manager, dead_letters=look)
        for _ in range(3):
            look()
            manager.process_batch("spy", [b"x"] * 3)
            manager.process_batch(CHAIN, [b"a" * 1000] * 200)
            manager.process_batch(CHAIN, [b"b" * 1000] * 200)
            observed.break_circuit(manager)
        look()
        assert value(before, "dataflare_circuit_opened_total", plugin=FRAGILE) == 1
        lost = select(before, "dataflare_records_total", "outcome", plugin=FRAGILE)
        assert (lost["dead_lettered"], lost["failed"]) == (122, 0)
    assert scrapes > 130


def test_scrapes_while_plugins_come_and_go(backend) -> None:
    """Each is whole; what is shown of a plugin is gone with it."""
    with backend.PluginManager(observed.CONFIG) as manager:
        registry = registry_of(backend, manager)
        done = threading.Event()

        def work(name):
            for _ in range(30):
                manager.register_plugin(name, backend.Chain(backend.Upper(), backend.Lower()))
                manager.process_batch(name, [b"a"] * 10)
                manager.replace_plugin(name, backend.Lower())
                manager.process_batch(name, [b"a"] * 10)
                manager.unregister_plugin(name)

        def work_all():
            try:
                run_threads(lambda: work("one"), lambda: work("two"))
            finally:
                done.set()

        def look():
            while not done.is_set():
                check_histograms(scrape(registry))

        run_threads(work_all, look, look)
        assert not [labels for _, labels in scrape(registry) if "plugin" in dict(labels)]


def test_a_closed_manager_shows_that_it_is_down(backend) -> None:
    """And nothing else: what it counted is gone with its plugins."""
    manager = backend.PluginManager(observed.CONFIG)
    observed.fill(backend, manager)
    registry = registry_of(backend, manager)
    assert value(scrape(registry), "dataflare_up") == 1
    manager.close()
    assert scrape(registry) == {("dataflare_up", frozenset()): 0}


def test_a_manager_is_not_kept_alive(backend) -> None:
    """A registry that is left behind shows nothing."""
    manager = backend.PluginManager(observed.CONFIG)
    manager.register_plugin("x", backend.Upper())
    registry = registry_of(backend, manager)
    manager.close()
    del manager
    gc.collect()
    assert scrape(registry) == {}


def test_a_registry_takes_one_manager(backend, manager) -> None:
    """The names of a second one would be the same; after `unregister` there is room."""
    registry = CollectorRegistry()
    first = backend.ManagerCollector(manager)
    registry.register(first)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(backend.ManagerCollector(manager))
    registry.unregister(first)
    assert scrape(registry) == {}
    registry.register(backend.ManagerCollector(manager))
    assert value(scrape(registry), "dataflare_up") == 1
    with pytest.raises(TypeError, match="must be a PluginManager, not str"):
        backend.ManagerCollector("manager")


# ---- the server


def get(url, method="GET", **headers):
    """Status, headers and body of an answer."""
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return SimpleNamespace(status=answer.status, headers=answer.headers, body=answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return SimpleNamespace(status=error.code, headers=error.headers, body=error.read())


def health_of(server):
    """Status and body of a health check."""
    answer = get(server.url.replace("/metrics", "/healthz"))
    assert answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(answer.body)


def test_metrics_are_served_as_they_are_asked_for(server) -> None:
    """As text, as OpenMetrics, compressed, and of some names alone."""
    plain = get(server.url)
    assert plain.status == 200
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    assert METRICS.keys() <= {family.name for family in parse(plain.body.decode())} | {"dataflare"}
    assert b"process_resident_memory_bytes " in plain.body
    strict = get(server.url, Accept="application/openmetrics-text; version=1.0.0")
    assert strict.headers["Content-Type"].startswith("application/openmetrics-text")
    assert METRICS.keys() <= {family.name for family in parse_openmetrics(strict.body.decode())}
    packed = get(server.url, Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"dataflare_up 1.0" in gzip.decompress(packed.body)
    one = get(f"{server.url}?name[]=dataflare_up")
    assert [family.name for family in parse(one.body.decode())] == ["dataflare_up"]


def test_health_is_a_status_and_a_report(backend, manager, server) -> None:
    """Degraded is not a reason to restart anything; unhealthy is."""
    status, report = health_of(server)
    assert (status, report["verdict"]) == (200, "degraded")
    odd = f"plugin {observed.ODD}"
    assert report["parts"][odd] == {"verdict": "degraded", "reason": "it is disabled"}
    assert report["checked_at"] == manager.last_health.checked_at
    manager.enable_plugin(observed.ODD)
    status, report = health_of(server)
    assert (status, report["verdict"]) == (200, "healthy")
    assert {"plugin chain", "plugin fragile", odd, "memory pool", "workers"} == {*report["parts"]}
    manager.get_plugin(FRAGILE).healthy = False
    status, report = health_of(server)
    assert (status, report["verdict"]) == (503, "unhealthy")
    assert report["parts"]["plugin fragile"] == {
        "verdict": "unhealthy",
        "reason": "its health check says that it is not fit for work",
    }


def test_checks_at_the_same_time_share_the_answer(backend) -> None:
    """A plugin that is being asked is not asked again, and what it says counts for both."""
    asked, other_asked = threading.Event(), threading.Semaphore(0)

    class Slow(backend.DataFlarePlugin):
        calls = 0

        def process(self, record):
            return backend.PluginResult.skip()

        def health_check(self):
            Slow.calls += 1
            asked.set()
            return not (other_asked.acquire(timeout=60) and other_asked.acquire(timeout=60))

    class Other(Slow):
        def health_check(self):
            other_asked.release()
            return True

    verdicts = []

    def check(wait):
        if wait:
            assert asked.wait(60)
        verdicts.append(manager.health_check(60).plugins["slow"].verdict.value)

    with backend.PluginManager(observed.CONFIG) as manager:
        manager.register_plugin("slow", Slow())
        manager.register_plugin("other", Other())
        run_threads(lambda: check(False), lambda: check(True))
    assert verdicts == ["unhealthy"] * 2
    assert Slow.calls == 1


def test_a_manager_that_is_closed_or_gone_is_unhealthy(backend) -> None:
    """The server outlives it, and says so."""
    manager = backend.PluginManager(observed.CONFIG)
    with backend.serve_metrics(manager, 0) as server:
        assert health_of(server)[0] == 200
        manager.close()
        status, report = health_of(server)
        assert status == 503
        assert report["parts"]["memory pool"] == {"verdict": "unhealthy", "reason": "it is closed"}
        assert b"\ndataflare_up 0.0\n" in get(server.url).body
        del manager
        gc.collect()
        assert health_of(server) == (
            503, {"verdict": "unhealthy", "reason": "the manager does not exist any more"},
        )  # fmt: skip
        assert b"dataflare" not in get(server.url).body


def test_what_there_is_not(server) -> None:
    """Other paths are not found, and nothing can be written; HEAD has no body."""
    root = server.url.removesuffix("/metrics")
    for path in ("", "/", "/metric", "/metrics/", "/healthz/x"):
        answer = get(root + path)
        assert answer.status == 404
        assert json.loads(answer.body) == {"error": "there are /metrics and /healthz"}
    for path in ("/metrics", "/healthz"):
        for method in ("POST", "PUT", "DELETE"):
            answer = get(root + path, method)
            assert (answer.status, "GET" in answer.headers["Allow"]) == (405, True)
    answer = get(f"{root}/healthz", "HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_a_scrape_that_fails_says_why(manager, server, caplog, monkeypatch) -> None:
    """Status 500 with the error, which is logged as well; the next scrape is fine again."""

    def broken():
        raise ValueError("no status today")

    with monkeypatch.context() as patch:
        patch.setattr(manager, "get_system_status", broken)
        answer = get(server.url)
    assert answer.status == 500
    assert json.loads(answer.body) == {"error": "ValueError: no status today"}
    assert "/metrics failed" in caplog.text
    assert get(server.url).status == 200


def test_a_port_that_cannot_be_had_is_one_sentence(backend, manager, server) -> None:
    """It says which, and why."""
    with pytest.raises(OSError, match=r"metrics cannot be served at 127\.0\.0\.1, port") as caught:
        backend.serve_metrics(manager, server.port)
    assert caught.value.errno == errno.EADDRINUSE
    assert caught.value.strerror.endswith(f"port {server.port}: address already in use")
    with pytest.raises(OSError, match=r"no-such-host\.invalid, port 0: "):
        backend.serve_metrics(manager, 0, "no-such-host.invalid")
    for port, error in (
        (-1, ValueError),
        (65536, ValueError),
        ("80", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="port must be"):
            backend.serve_metrics(manager, port)
    with pytest.raises(TypeError, match="must be a PluginManager"):
        backend.serve_metrics(None, 0)


def test_closing_frees_the_port(backend, manager) -> None:
    """At once and for good; a client that says nothing does not hold it up."""
    with backend.serve_metrics(manager, 0) as server:
        port = server.port
        assert repr(server) == f"MetricsServer(http://127.0.0.1:{port}/metrics)"
        silent = socket.create_connection(("127.0.0.1", port))
        assert get(server.url).status == 200
    server.close()
    assert repr(server) == "MetricsServer(closed)"
    with pytest.raises(ConnectionError):
        http.client.HTTPConnection("127.0.0.1", port).connect()
    with backend.serve_metrics(manager, port) as again:
        assert again.port == port
        assert get(again.url).status == 200
    silent.close()


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_ipv6(backend, manager) -> None:
    """The address stands in brackets; a machine without IPv6 gets a sentence."""
    if has_ipv6():
        with backend.serve_metrics(manager, 0, "::1") as server:
            assert server.url == f"http://[::1]:{server.port}/metrics"
            assert get(server.url).status == 200
    else:
        with pytest.raises(OSError, match="metrics cannot be served at ::1, port 0"):
            backend.serve_metrics(manager, 0, "::1")


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("otel", "opentelemetry-api", "otel"),
    ],
)
def test_a_missing_extra_is_one_sentence(tmp_path, module, package, extra) -> None:
    """It says what to install; the library itself needs neither."""
    code = (
        "import sys; sys.modules['prometheus_client'] = sys.modules['opentelemetry.metrics'] = None"
        f"\nimport dataflare\nimport dataflare.{module}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: dataflare.{module} needs the package {package}: "
        f"pip install 'dataflare[{extra}]'"
    )
