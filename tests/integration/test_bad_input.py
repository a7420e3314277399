"""Wrong arguments: every public call refuses them with a sentence, and nothing is lost by it."""

import math
from datetime import timedelta

import pytest

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import PluginConfigurationError, PluginError

NAN, INF = math.nan, math.inf
REFUSALS = (PluginError, ValueError, TypeError)


def is_sentence(error):
    """Whether an error says something that a person can read."""
    text = str(error)
    return len(text.split()) >= 4 and "object has no attribute" not in text


# ---- configuration

DURATION = ["1", None, b"1", [1], True, NAN, -1, -0.001, timedelta(seconds=-1), 1j]
COUNT = ["1", None, 1.5, 2.0, True, NAN, -1]
POSITIVE = [*COUNT, 0]
FLAG = [0, 1, None, "yes"]
RATE = ["1", None, True, NAN, -1]

FIELDS = [
    (BatchConfig, "default_batch_size", [*POSITIVE, 1001]),
    (BatchConfig, "max_batch_size", [*POSITIVE, 99]),
    (BatchConfig, "max_batch_bytes", [wrong for wrong in POSITIVE if wrong is not None]),
    (BatchConfig, "parallelism", POSITIVE),
    (BatchConfig, "target_latency", DURATION),
    (BatchConfig, "min_throughput", RATE),
    (BatchConfig, "enable_parallel", FLAG),
    (BatchConfig, "enable_auto_optimization", FLAG),
    (FailureRecoveryConfig, "max_retries", COUNT),
    (FailureRecoveryConfig, "retry_interval", DURATION),
    (FailureRecoveryConfig, "max_retry_interval", DURATION),
    (FailureRecoveryConfig, "circuit_breaker_threshold", [*RATE, 1.001, INF]),
    (FailureRecoveryConfig, "circuit_breaker_recovery_time", DURATION),
    (FailureRecoveryConfig, "circuit_breaker_window", POSITIVE),
    (FailureRecoveryConfig, "circuit_breaker_minimum", POSITIVE),
    (FailureRecoveryConfig, "enable_fallback", FLAG),
    (FailureRecoveryConfig, "batch_timeout", [*DURATION, 0, 0.0, timedelta()]),
    (PluginManagerConfig, "memory_pool_config", [None, {}, BatchConfig(), MemoryPoolConfig]),
    (PluginManagerConfig, "batch_config", [None, {}, MemoryPoolConfig()]),
    (PluginManagerConfig, "failure_recovery", [None, {}, BatchConfig()]),
    (PluginManagerConfig, "enable_auto_optimization", FLAG),
    (PluginManagerConfig, "monitoring_interval", [*DURATION, 0]),
    (PluginManagerConfig, "monitoring_growth", RATE),
    (PluginManagerConfig, "enable_debug_mode", FLAG),
    (PluginManagerConfig, "health_check_interval", [*DURATION, 0]),
    (PluginManagerConfig, "health_check_timeout", [*DURATION, 0]),
    (PluginManagerConfig, "max_samples", POSITIVE),
    (PluginManagerConfig, "max_plugin_instances", POSITIVE),
]


@pytest.mark.parametrize(
    ("kind", "field", "wrong"),
    [(kind, field, wrong) for kind, field, values in FIELDS for wrong in values],
)
def test_a_field_of_a_configuration(kind, field, wrong) -> None:
    """Wrong types, NaN, negative, zero where it means nothing; the sentence names the field."""
    with pytest.raises((TypeError, ValueError)) as caught:
        kind(**{field: wrong})
    assert field in str(caught.value)
    assert is_sentence(caught.value)


# ---- calls

NAMES = [None, 5, b"x", 1.5, ["x"], {"x": 1}, ("x",), "", object()]
CALLS = {
    "register_plugin": lambda manager, backend, name: manager.register_plugin(
        name, backend.Upper()
    ),
    "replace_plugin": lambda manager, backend, name: manager.replace_plugin(name, backend.Upper()),
    "unregister_plugin": lambda manager, _, name: manager.unregister_plugin(name),
    "get_plugin": lambda manager, _, name: manager.get_plugin(name),
    "enable_plugin": lambda manager, _, name: manager.enable_plugin(name),
    "disable_plugin": lambda manager, _, name: manager.disable_plugin(name),
    "process_record": lambda manager, backend, name: manager.process_record(
        name, backend.PluginRecord(b"a")
    ),
    "process_batch": lambda manager, _, name: manager.process_batch(name, [b"a"]),
    "process_stream": lambda manager, _, name: manager.process_stream(name, [b"a"]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_the_name_of_a_plugin(backend, manager, call, name) -> None:
    """In every call that takes one: text, and not empty."""
    manager.register_plugin("x", backend.Upper())
    with pytest.raises((TypeError, ValueError), match="name of a plugin"):
        CALLS[call](manager, backend, name)
    assert manager.list_plugins() == ["x"]
    assert manager.get_metrics("x").total_processed == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != ""], ids=repr)
def test_the_name_of_metrics(manager, name) -> None:
    """Text as well; a name that nobody has is no error there."""
    with pytest.raises(TypeError, match="name of a plugin"):
        manager.get_metrics(name)
    with pytest.raises(TypeError, match="name of a plugin"):
        manager.get_histograms(name)
    assert manager.get_metrics("") is manager.get_histograms("") is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"plugin": None},
        {"plugin": 5},
        {"plugin": "nowhere:nothing"},
        {"plugin": "no colon"},
        {"plugin": dict},
        {"plugin": lambda value: value},
        {"config": [("a", 1)]},
        {"config": 5},
        {"fallback": 5},
        {"fallback": dict},
        {"fallback": "nowhere:nothing"},
        {"dead_letters": 5},
        {"dead_letters": b"path"},
    ],
    ids=str,
)
def test_what_a_plugin_is_registered_with(backend, manager, arguments) -> None:
    """Each argument; nothing is registered, and what was begun is ended."""
    events = []

    class Notes(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            events.append("initialize")

        def cleanup(self):
            events.append("cleanup")

    given = {"plugin": Notes, **arguments}
    with pytest.raises(REFUSALS) as caught:
        manager.register_plugin("x", given.pop("plugin"), given.pop("config", None), **given)
    assert is_sentence(caught.value)
    assert manager.list_plugins() == []
    assert events.count("initialize") == events.count("cleanup")
    manager.register_plugin("x", Notes)


@pytest.mark.parametrize(
    "records",
    [None, 5, "text", b"bytes", bytearray(b"a"), memoryview(b"a"), {b"a": 1}, [5], [b"a", None],
     [b"a", 1.5], [[b"a"]], object()],
    ids=repr,
)  # fmt: skip
def test_what_is_no_batch(backend, manager, records) -> None:
    """Neither of values nor of records; nothing is processed, and the next batch is."""
    manager.register_plugin("x", backend.Upper())
    with pytest.raises(TypeError) as caught:
        manager.process_batch("x", records)
    assert is_sentence(caught.value)
    with pytest.raises(TypeError):
        list(manager.process_stream("x", records))
    assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"A"]
    assert manager.get_metrics("x").total_processed == 1


@pytest.mark.parametrize("record", [None, b"a", "a", 5, [b"a"], object()], ids=repr)
def test_what_is_no_record(backend, manager, record) -> None:
    """Said before it is counted, also while the circuit is open."""
    manager.register_plugin("x", backend.Upper())
    for tripped in (False, True):
        manager._services["x"].runner.tripped = tripped
        with pytest.raises(TypeError, match="process_record takes a PluginRecord, not "):
            manager.process_record("x", record)
    assert manager.get_metrics("x").total_processed == 0


@pytest.mark.parametrize("wrong", [5, "config", {}, BatchConfig(), PluginManagerConfig])
def test_what_a_manager_is_made_with(backend, wrong) -> None:
    """Its configuration, and nothing else."""
    with pytest.raises(TypeError, match="must be a PluginManagerConfig"):
        backend.PluginManager(wrong)


def test_after_the_end(backend, manager) -> None:
    """Closing is possible any number of times, nothing else is; what only looks still looks."""
    manager.register_plugin("x", backend.Upper())
    result = manager.process_batch("x", [b"a"])
    stream = manager.process_stream("x", iter([b"a"] * 500))
    first = next(stream)
    for _ in range(3):
        manager.close()
    for name in CALLS:
        with pytest.raises(PluginError, match=r"^the manager is closed$"):
            CALLS[name](manager, backend, "x")
    with pytest.raises(PluginError, match=r"^the manager is closed$"):
        next(stream)
    assert (result.output.to_pylist(), first.processed_count) == ([b"A"], 100)
    assert manager.list_plugins() == []
    assert (manager.get_metrics("x"), manager.get_all_metrics()) == (None, {})
    assert manager.get_memory_pool_stats() is not None
    assert manager.get_system_status().state == "closed"
    assert manager.health_check().plugins == {}
    assert manager.take_sample().plugins == {}
    with pytest.raises(PluginError, match="closed"), manager:
        manager.register_plugin("y", backend.Upper())


NEITHER = "defines neither process nor process_batch: let it define process(self, record)"


def test_a_plugin_that_processes_nothing(backend, manager) -> None:
    """It is refused when it is put in service, in whatever place, and not at each record."""

    class Misspelt(backend.DataFlarePlugin):
        def proces(self, record):
            return backend.PluginResult.skip()

    class Whole(backend.BatchPlugin):
        def process(self, record):
            return backend.PluginResult.skip()

    sentences = {Misspelt: NEITHER, Whole: "does not define process_batch(self, records)"}
    manager.register_plugin("there", backend.Upper())
    for kind, sentence in sentences.items():
        for put in (
            lambda kind=kind: manager.register_plugin("x", kind),
            lambda kind=kind: manager.register_plugin("x", kind()),
            lambda kind=kind: manager.register_plugin("x", backend.Chain("upper", kind())),
            lambda kind=kind: manager.register_plugin("x", backend.BatchAdapter(kind())),
            lambda kind=kind: manager.register_plugin("x", "upper", fallback=kind),
            lambda kind=kind: manager.register_plugin("x", "upper", dead_letters=kind()),
            lambda kind=kind: manager.replace_plugin("there", kind),
        ):
            with pytest.raises(PluginConfigurationError) as caught:
                put()
            assert str(caught.value) == f"the plugin class {kind.__name__} {sentence}"
    assert manager.list_plugins() == ["there"]
    assert manager.process_batch("there", [b"a"]).output.to_pylist() == [b"A"]


def test_whatever_processes_something_is_taken(backend, manager) -> None:
    """A method of the instance, of a mixin, of batches alone."""

    class Mixin:
        def process(self, record):
            return backend.PluginResult.success(b"mixed in")

    class Mixed(Mixin, backend.DataFlarePlugin):
        pass

    class Batches(backend.DataFlarePlugin):
        def process_batch(self, records):
            results = [backend.PluginResult.success(b"whole") for _ in records]
            return backend.BatchResult.from_results(records, results)

    class Bare(backend.DataFlarePlugin):
        pass

    bare = Bare()
    bare.process = lambda record: backend.PluginResult.success(b"own")
    for name, plugin, output in (
        ("mixed", Mixed, b"mixed in"),
        ("batches", Batches, b"whole"),
        ("bare", bare, b"own"),
    ):
        manager.register_plugin(name, plugin)
        assert manager.process_batch(name, [b"a"]).output.to_pylist() == [output]


@pytest.mark.parametrize("size", [0, -1, None, "2"])
def test_sizes_of_what_is_inside(backend, size) -> None:
    """A runner without plugins, and a window without records, are refused."""
    with pytest.raises((TypeError, ValueError)), backend.MemoryPool() as pool:
        backend.PluginRunner([] if size in (0, -1) else size, pool)
    with pytest.raises((TypeError, ValueError)):
        backend.PluginCounters(size)


@pytest.mark.parametrize(
    "arguments",
    [
        {"plugin": None},
        {"plugin": 5},
        {"plugin": "nowhere:nothing"},
        {"plugin": "no colon"},
        {"plugin": dict},
        {"plugin": lambda value: value},
        {"config": [("a", 1)]},
        {"config": 5},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_a_plugin_is_replaced_with(backend, manager, arguments) -> None:
    """Each argument; the old plugin stays in service."""
    manager.register_plugin("x", backend.Upper())
    given = {"plugin": backend.Lower, **arguments}
    with pytest.raises(REFUSALS) as caught:
        manager.replace_plugin("x", given["plugin"], given.get("config"))
    assert is_sentence(caught.value)
    assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"A"]
