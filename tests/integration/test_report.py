"""Reports of a manager: the data, the schema it follows, the page made from it, and the files."""

import copy
import errno
import importlib.util
import itertools
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest

import dataflare
from dataflare import monitor, report_plots, units
from dataflare.config import FailureRecoveryConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import PluginConfigurationError, PluginError

SCHEMA = json.loads(Path(dataflare.__file__).with_name("report.schema.json").read_text())
HOSTILE = "<script>alert('x')</script> & \x00\x1b\udc80"
HOSTILE_TEXT = "<script>alert('x')</script> & \ufffd\ufffd\\udc80"
PLOTS = ["throughput", "record-latency", "batch-latency", "batch-size", "errors", "circuit"]
VOID = {"meta", "link"}  # elements that have no end


class Page(HTMLParser):
    """What a page consists of; it must be well nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag):
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def closed_schema(schema):
    """The schema with no further field allowed anywhere."""
    if isinstance(schema, list):
        return [closed_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: closed_schema(value) for key, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def strict_json(text):
    """Parsed, without the extensions of Python's parser."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def busy(backend):
    """A manager with a chain, a plugin that fails and opens its circuit, and one without work."""
    recovery = FailureRecoveryConfig(max_retries=0, circuit_breaker_minimum=10)
    config = PluginManagerConfig(failure_recovery=recovery, monitoring_interval=math.inf)

    def fail(value):
        raise (KeyError if value == b"key" else ValueError)("as told")

    with backend.PluginManager(config) as manager:
        first = backend.map_plugin(lambda value: value[::-1], name="reverse")
        manager.register_plugin("chain", backend.Chain(backend.Contains(b"a"), first))
        manager.register_plugin(HOSTILE, backend.map_plugin(fail, name="fail"))
        manager.register_plugin("idle", backend.Upper())
        for size in (10, 100, 50):
            manager.process_batch("chain", [b"ab", b"cd"] * size)
            manager.process_batch(HOSTILE, [b"a", b"a", b"key"] * size)
            manager.take_sample()
        yield manager


def export(manager, path):
    """The text of a report."""
    manager.export_performance_report(path)
    return path.read_text(encoding="utf-8")


# ---- data


def test_the_schema_is_a_schema() -> None:
    """Of the draft that it names, and it names itself as reports do."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["properties"]["schema"]["const"] == SCHEMA["$id"]


def test_reports_follow_the_schema(backend, busy, tmp_path) -> None:
    """A busy manager's, an empty one's, one's that does not count; and no field is left out."""
    validator = jsonschema.Draft202012Validator(closed_schema(SCHEMA))
    validator.validate(strict_json(export(busy, tmp_path / "busy.json")))
    with backend.PluginManager() as manager:
        validator.validate(strict_json(export(manager, tmp_path / "empty.json")))
    pool = MemoryPoolConfig(enable_metrics=False, cleanup_interval=math.inf)
    with backend.PluginManager(PluginManagerConfig(memory_pool_config=pool)) as manager:
        manager.register_plugin("upper", backend.Upper())
        manager.process_batch("upper", [b"a"])
        validator.validate(strict_json(export(manager, tmp_path / "uncounted.json")))


def test_the_schema_has_no_field_that_reports_lack() -> None:
    """Each one it describes is required."""
    found = [SCHEMA, *SCHEMA["$defs"].values(), *SCHEMA["properties"].values()]
    described = [each for each in found if "properties" in each]
    assert len(described) > 10
    for each in described:
        assert each["required"] == list(each["properties"])


def test_every_figure_names_its_unit(backend, busy) -> None:
    """A field that is a fraction is a part of one, a size of a batch, or says what it is."""
    report = backend.report_of(busy)
    bare = {
        "batch_size", "cache_hit_rate", "circuit_breaker_threshold", "error_rate",
        "memory_efficiency", "monitoring_growth",
    }  # fmt: skip

    def fractions(value, name):
        if isinstance(value, dict):
            for key, each in value.items():
                yield from fractions(each, key)
        elif isinstance(value, list):
            for each in value:
                yield from fractions(each, name)
        elif isinstance(value, float):
            yield name

    for name in fractions(report, ""):
        assert name in bare or name.endswith(("_seconds", "_records_per_second")), name


def test_a_report_says_what_the_manager_says(backend, busy) -> None:
    """Metrics, pool, status and samples, and health as it is now."""
    report = backend.report_of(busy)
    metrics = busy.get_metrics("chain")
    told = report["metrics"]["chain"]
    assert told["total_processed"] == metrics.total_processed == 320
    assert told["p95_batch_latency_seconds"] == metrics.p95_batch_latency
    assert [stage["name"] for stage in told["stages"]] == ["Contains", "reverse"]
    assert told["stages"][1]["exclusive_time_seconds"] > 0
    assert report["versions"]["backend"] == backend.name
    assert report["versions"]["dataflare"] == dataflare.__version__
    assert report["pool"]["allocations"] == busy.get_memory_pool_stats().allocations
    assert set(report["pool"]["classes"]) == {"tiny", "small", "medium", "large", "huge"}
    assert report["config"]["failure_recovery"]["retry_interval_seconds"] == 0.1
    assert report["config"]["failure_recovery"]["batch_timeout_seconds"] is None
    assert report["config"]["monitoring_interval_seconds"] is None
    assert report["status"]["totals"]["total_processed"] == 320 + 480
    failing = next(name for name in report["metrics"] if "script" in name)
    assert report["status"]["plugins"][failing]["circuit"] == "open"
    assert report["health"]["verdict"] == "unhealthy"
    assert "circuit is open" in report["health"]["plugins"][failing]["reason"]
    assert busy.last_health.verdict.value == "unhealthy"


def test_a_report_takes_a_last_sample(backend, busy) -> None:
    """So that the figures at the end are those of the whole; the oldest is first."""
    before = len(busy.samples)
    samples = backend.report_of(busy)["samples"]
    assert len(samples) == before + 1 == len(busy.samples)
    counts = [sample["plugins"]["chain"]["total_processed"] for sample in samples]
    assert counts == [20, 220, 320, 320]
    assert samples[-1]["plugins"]["chain"]["batch_size"] == 0.0
    moments = [sample["taken_at"] for sample in samples]
    assert moments == sorted(moments)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}\+00:00", each) for each in moments)


def test_names_that_are_no_text_stay_apart(backend, tmp_path) -> None:
    """Halves of characters, as command lines may hold, are written out."""
    with backend.PluginManager() as manager:
        manager.register_plugin("a\udc80", backend.Upper())
        manager.register_plugin("a\udc81", backend.Upper())
        report = strict_json(export(manager, tmp_path / "report.json"))
    assert list(report["metrics"]) == ["a\\udc80", "a\\udc81"]


# ---- the page


def test_the_page_has_every_part(busy, tmp_path) -> None:
    """Six plots for each plugin, two of the pool, and the tables."""
    page = Page(export(busy, tmp_path / "report.html"))
    assert [each["data-plot"] for each in page.all("figure")] == PLOTS * 3 + [
        "hit-rate",
        "bytes-in-use",
    ]
    assert [each.get("id") for each in page.all("section") if "id" in each] == [
        "summary",
        "pool",
        "health",
        "config",
    ]
    for text in ("Records by outcome", "KeyError", "ValueError", "reverse", "max_tiny_buffers"):
        assert text in page.texts
    assert "No record failed." in page.texts
    labels = [each["aria-label"] for each in page.all("svg")]
    assert all(labels)
    # In place of a plot there is a note where no record failed, and of "idle" where none came.
    assert len(labels) == len(PLOTS) * 3 + 2 - 2 - 3


def test_the_page_needs_nothing_else(busy, tmp_path) -> None:
    """No script, no element or style that asks for another file; the page forbids both."""
    text = export(busy, tmp_path / "report.html")
    page = Page(text)
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"script", "iframe", "object", "embed", "img", "image", "use", "a"}
    assert not re.search(r"url\(|@import|xlink|srcset", text)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src") is None
        assert attributes.get("href", "data:,") == "data:,", tag
    policy = page.all("meta")[1]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_text_on_the_page(backend, tmp_path) -> None:
    """Of plugins, of stages and of errors, whatever they hold."""
    error = type("<b>Odd</b>", (Exception,), {})

    def fail(value):
        raise error("<i>odd</i>")

    with backend.PluginManager() as manager:
        chain = backend.Chain(backend.map_plugin(fail, name="<u>stage</u>"))
        manager.register_plugin(HOSTILE, chain)
        manager.process_batch(HOSTILE, [b"a"])
        page = Page(export(manager, tmp_path / "report.html"))
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in page.elements}
    assert page.texts.count(HOSTILE_TEXT) >= 3
    assert "<b>Odd</b>" in page.texts
    assert HOSTILE_TEXT in {each.get("data-plugin") for each in page.all("section")}


def test_a_page_without_anything(backend, tmp_path) -> None:
    """No plugin, and a pool that does not count: it says so."""
    pool = MemoryPoolConfig(enable_metrics=False)
    with backend.PluginManager(PluginManagerConfig(memory_pool_config=pool)) as manager:
        page = Page(export(manager, tmp_path / "report.html"))
    assert "No plugin is in service." in page.texts
    assert "The pool does not count: enable_metrics is off." in page.texts
    assert not page.all("figure")


def test_a_plugin_that_came_late(backend, tmp_path) -> None:
    """Samples from before it was there, and of one that is gone, do no harm."""
    with backend.PluginManager() as manager:
        manager.register_plugin("gone", backend.Upper())
        manager.process_batch("gone", [b"a"])
        manager.take_sample()
        manager.unregister_plugin("gone")
        manager.register_plugin("late", backend.Upper())
        manager.process_batch("late", [b"a"])
        page = Page(export(manager, tmp_path / "report.html"))
    assert [each["data-plugin"] for each in page.all("section") if "data-plugin" in each] == [
        "late"
    ]


def test_many_samples_stay_a_small_page(backend, busy) -> None:
    """Lines are thinned to what can be seen."""
    from dataflare.report_page import page

    report = backend.report_of(busy)
    short = len(page(report))
    sample = report["samples"][1]
    report["samples"] = [copy.deepcopy(sample) for _ in range(3000)]
    assert len(page(report)) < short + 300_000


# ---- plots


def test_thinning_keeps_what_stands_out() -> None:
    """The highest and the lowest point of each stretch, in the order of time, and gaps."""
    values = [float(number % 7) for number in range(5000)]
    values[1234], values[4321] = 1000.0, -5.0
    gap = [None] * 1000
    points = list(enumerate([*values, *gap, *values]))
    kept = report_plots._thin(points)
    assert len(kept) <= report_plots.MOST_POINTS
    assert kept == sorted(kept, key=lambda point: point[0])
    assert {(1234, 1000.0), (4321, -5.0)} <= set(kept)
    assert any(value is None for _, value in kept)
    assert report_plots._thin(points[:200]) == points[:200]


def test_a_point_between_gaps_is_seen() -> None:
    """Of few points each is a dot; of many it is a line without length that has round ends."""
    points = [(1.0, None), (2.0, 5.0), (3.0, None), (4.0, 1.0), (5.0, 2.0)]
    drawn = report_plots.plot("title", [report_plots.Line("x", points)])
    assert drawn.count("<circle") == 3
    points += [(6.0 + number, None) for number in range(100)]
    drawn = report_plots.plot("title", [report_plots.Line("x", points)])
    assert "<circle" not in drawn
    paths = re.findall(r'd="M([\d. ]+) L([\d. ]+)" class="line', drawn)
    assert len(paths) == 2
    assert paths[0][0] == paths[0][1]
    assert paths[1][0] != paths[1][1]


def test_stairs_stay_until_they_change() -> None:
    """A state does not go over into the next one slowly."""
    assert report_plots.stairs([(1.0, 0.0), (2.0, 2.0), (3.0, 2.0)]) == [
        (1.0, 0.0),
        (2.0, 0.0),
        (2.0, 2.0),
        (3.0, 2.0),
    ]


@pytest.mark.parametrize(
    ("last", "label"),
    [(0.004, "ms"), (0.9, "ms"), (90.0, "s"), (3600.0, "min"), (86400.0, "h"), (1e6, "d")],
)
def test_the_axis_of_time_has_a_fitting_unit(last, label) -> None:
    """From a moment to weeks, with a handful of marks."""
    drawn = report_plots.plot("title", [report_plots.Line("x", [(0.0, 1.0), (last, 2.0)])])
    marks = re.findall(rf"<text [^>]*>([\d.e-]+) {label}</text>", drawn)
    assert 3 <= len(marks) <= 8
    assert len(set(marks)) == len(marks)


def test_a_single_point_stands_at_the_end_of_its_axis() -> None:
    """Which begins at 0, where the manager was made."""
    drawn = report_plots.plot("title", [report_plots.Line("x", [(0.25, 1.0)])])
    assert ">0 ms</text>" in drawn
    assert "250 ms: 1" in drawn
    assert len(re.findall("<circle", drawn)) == 1


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.duration(0.0), "0 s"),
        (units.duration(3.04e-7), "304 ns"),
        (units.duration(0.00099996), "1 ms"),
        (units.duration(0.9999), "1 s"),
        (units.duration(999.7), "1,000 s"),
        (units.duration(86400.0), "86,400 s"),
        (units.size(999), "999 B"),
        (units.size(999.9), "1 kB"),
        (units.size(2.5e12), "2.5 TB"),
        (units.short(0), "0"),
        (units.short(12_500), "12.5k"),
        (units.short(999_900), "1M"),
        (units.short(-1500), "-1.5k"),
    ],
)
def test_quantities_have_three_digits_and_a_unit(written, expected) -> None:
    """Rounding does not lead to a thousand of the smaller unit."""
    assert written == expected


# ---- files


@pytest.mark.parametrize("name", ["report", "report.xml", "report.html.gz", ".json", ""])
def test_other_endings_are_refused(backend, manager, tmp_path, name) -> None:
    """Before anything is written."""
    with pytest.raises(PluginConfigurationError, match=r"ends with \.html or \.json, not"):
        manager.export_performance_report(tmp_path / name if name else name)
    assert not list(tmp_path.iterdir())


def test_endings_in_capitals(manager, tmp_path) -> None:
    """They say the same; a path may be text."""
    manager.export_performance_report(str(tmp_path / "a.JSON"))
    manager.export_performance_report(str(tmp_path / "a.HTML"))
    assert strict_json((tmp_path / "a.JSON").read_text())
    assert (tmp_path / "a.HTML").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("ending", ["json", "html"])
def test_files_that_cannot_be_written(manager, tmp_path, ending) -> None:
    """One sentence each; nothing is left behind."""
    place = tmp_path / "none" / f"report.{ending}"
    with pytest.raises(OSError, match=r"cannot write .*: there is no directory ") as missing:
        manager.export_performance_report(place)
    assert missing.value.errno == errno.ENOENT
    (tmp_path / f"a.{ending}").mkdir()
    with pytest.raises(OSError, match=r"cannot write .*: Is a directory"):
        manager.export_performance_report(tmp_path / f"a.{ending}")
    assert [each.name for each in tmp_path.iterdir()] == [f"a.{ending}"]


@pytest.mark.parametrize("ending", ["json", "html"])
def test_a_full_disk_leaves_the_old_report(manager, tmp_path, monkeypatch, ending) -> None:
    """And no half of the new one."""
    path = tmp_path / f"report.{ending}"
    path.write_text("old")
    write = os.write

    def fill_up(fd, data):
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fill_up)
        with pytest.raises(OSError, match="No space left on device"):
            manager.export_performance_report(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_replaces_the_one_before(manager, tmp_path) -> None:
    """With the permissions it had."""
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o600)
    assert strict_json(export(manager, path))["schema"] == SCHEMA["$id"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_without_its_packages(manager, tmp_path, monkeypatch) -> None:
    """A sentence says what to install; JSON needs nothing."""
    find = importlib.util.find_spec

    def lacking(name):
        return None if name == "pygal" else find(name)

    # Every backend has its own module of reports: the one that this manager uses.
    module = type(manager).export_performance_report.__globals__["_report"].load()
    monkeypatch.setattr(module, "find_spec", lacking)
    with pytest.raises(PluginConfigurationError, match=r"pip install 'dataflare\[report\]'"):
        manager.export_performance_report(tmp_path / "report.html")
    manager.export_performance_report(tmp_path / "report.json")
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_closed_manager_has_no_report(backend, tmp_path) -> None:
    """An empty one would look like a manager that did nothing."""
    manager = backend.PluginManager()
    manager.close()
    with pytest.raises(PluginError, match="the manager is closed"):
        manager.export_performance_report(tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


# ---- samples for a run of any length


class Clock:
    """Time that passes when somebody waits, up to an end."""

    def __init__(self, end):
        self.now, self.end = 0.0, end

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return self.now >= self.end


def moments(monkeypatch, end, every, growth):
    """When samples are taken in a life of that length."""
    clock, taken = Clock(end), []

    class Sampled:
        def take_sample(self):
            taken.append(clock.now)

    sampled = Sampled()
    with monkeypatch.context() as patched:
        patched.setattr(monitor, "time", clock)
        monitor._run(lambda: sampled, clock, every, math.inf, growth)
    return taken


def test_samples_grow_rare_with_age(monkeypatch) -> None:
    """A curve of a second, and a thousand samples of a day; without growth, all alike."""
    assert len(moments(monkeypatch, 1.1, 0.2, 0.01)) == 5
    day = moments(monkeypatch, 86400.0, 0.2, 0.01)
    assert 900 < len(day) < 1000
    gaps = [after - before for before, after in itertools.pairwise(day)]
    assert all(0.19 < gap < 0.0105 * at + 0.21 for gap, at in zip(gaps, day, strict=False))
    assert len(moments(monkeypatch, 100.1, 0.2, 0.0)) == pytest.approx(500, abs=1)
