"""The manager: plugins in and out of service, records through them, and what is counted."""

import gc
import sys
import threading
from types import MappingProxyType, ModuleType

import numpy as np
import pytest
from helpers import LIMIT, run_threads

from dataflare.config import BatchConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import (
    DuplicatePluginError,
    IncompatiblePluginError,
    PluginConfigurationError,
    PluginDisabledError,
    PluginError,
    PluginInitializationError,
    PluginProcessingError,
    UnknownPluginError,
)
from dataflare.plugins import Contains
from dataflare.types import PluginInfo, PluginState

READY, STOPPED = PluginState.READY, PluginState.STOPPED
INSTANCES = 4  # of a class, with the default parallelism


# ---- registering


def test_an_instance_a_class_and_a_factory_can_be_registered(backend, manager, witness) -> None:
    """In this order they are listed, each initialised once."""
    instance = witness()
    manager.register_plugin("instance", instance, {"a": 1})
    manager.register_plugin("class", witness)
    manager.register_plugin("factory", lambda: witness())
    manager.register_plugin("function", backend.map_plugin(bytes.upper))
    assert manager.list_plugins() == ["instance", "class", "factory", "function"]
    assert manager.get_plugin("instance") is instance
    assert instance.events == [("initialize", {"a": 1})]
    assert type(manager.get_plugin("class")) is type(manager.get_plugin("factory")) is witness
    assert manager.get_plugin("class").events == [("initialize", {})]


def test_module_and_attribute_name_a_plugin(backend, manager, witness, monkeypatch) -> None:
    """An instance, a class, a factory; the attribute may be dotted."""
    module = ModuleType("plugins_of_a_test")
    module.instance, module.Witness, module.make = witness(), witness, lambda: backend.Upper()
    module.inner = ModuleType("inner")
    module.inner.lower = backend.Lower()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for attribute in ("instance", "Witness", "make", "inner.lower"):
        manager.register_plugin(attribute, f"plugins_of_a_test:{attribute}")
    assert manager.get_plugin("instance") is module.instance
    assert manager.get_plugin("inner.lower") is module.inner.lower
    assert manager.process_batch("make", [b"a"]).output.to_pylist() == [b"A"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no colon", "neither one that 'dataflare plugins' lists nor module:attribute"),
        (":upper", "does not have the form"),
        ("json:", "does not have the form"),
        ("no_such_module_anywhere:x", "neither a plugin nor a module 'no_such_module_anywhere'"),
        ("no.such.module:x", "cannot be loaded: ModuleNotFoundError"),
        ("json:no_such_attribute", "has no 'no_such_attribute'"),
        ("json:decoder.nothing", "has no 'decoder.nothing'"),
    ],
)
def test_a_bad_module_or_attribute_is_a_configuration_error(manager, spec, message) -> None:
    """The sentence says which part is wrong, and nothing is registered."""
    with pytest.raises(PluginConfigurationError, match=message):
        manager.register_plugin("x", spec)
    assert manager.list_plugins() == []


def test_a_module_that_fails_to_load_is_a_configuration_error(
    manager, tmp_path, monkeypatch
) -> None:
    """With the module's own error as the cause."""
    (tmp_path / "broken_of_a_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginConfigurationError, match="ZeroDivisionError") as caught:
        manager.register_plugin("x", "broken_of_a_test:plugin")
    assert type(caught.value.__cause__) is ZeroDivisionError


def raising():
    raise RuntimeError("no plugin today")


@pytest.mark.parametrize(
    ("plugin", "error", "message"),
    [
        (None, TypeError, "must be a plugin, a class or factory"),
        (5, TypeError, "not int"),
        ([], TypeError, "not list"),
        (lambda value: value, TypeError, "cannot be called .* decorate it with dataflare.map_"),
        (Contains, TypeError, r"Contains needs .*such as: def make\(\): return Contains\(\.\.\.\)"),
        (dict, TypeError, "dict is not derived from DataFlarePlugin"),
        (lambda: None, TypeError, "made NoneType, not a plugin"),
        (raising, PluginInitializationError, "raising failed to make a plugin: RuntimeError: no"),
        ("json:dumps", TypeError, "cannot be called without arguments"),
    ],
)
def test_what_makes_no_plugin_is_refused(manager, plugin, error, message) -> None:
    """And nothing is registered."""
    with pytest.raises(error, match=message):
        manager.register_plugin("x", plugin)
    assert manager.list_plugins() == []


@pytest.mark.parametrize(
    ("name", "error"), [(None, TypeError), (5, TypeError), (b"x", TypeError), ("", ValueError)]
)
def test_a_name_is_text(backend, manager, name, error) -> None:
    """Not empty, in every call that takes one."""
    for call in (
        lambda: manager.register_plugin(name, backend.Upper()),
        lambda: manager.replace_plugin(name, backend.Upper()),
        lambda: manager.unregister_plugin(name),
        lambda: manager.enable_plugin(name),
        lambda: manager.process_batch(name, []),
        lambda: manager.process_stream(name, []),
    ):
        with pytest.raises(error, match="name of a plugin"):
            call()


def test_a_name_and_an_instance_can_be_registered_once(backend, manager, witness) -> None:
    """The second is refused and the first stays; after unregistering both are free again."""
    plugin = witness()
    manager.register_plugin("x", plugin)
    with pytest.raises(DuplicatePluginError, match="'x' is registered already") as caught:
        manager.register_plugin("x", backend.Upper())
    assert caught.value.plugin == "x"
    with pytest.raises(DuplicatePluginError, match="instance is registered already"):
        manager.register_plugin("y", plugin)
    assert manager.get_plugin("x") is plugin
    assert plugin.events == [("initialize", {})]
    manager.unregister_plugin("x")
    manager.register_plugin("y", plugin)
    assert manager.list_plugins() == ["y"]


def test_of_threads_that_register_one_name_one_wins(manager, witness) -> None:
    """The others' plugins are cleaned up."""
    plugins = [witness() for _ in range(6)]
    barrier = threading.Barrier(6)
    losers = []

    def register(plugin):
        barrier.wait(LIMIT)
        try:
            manager.register_plugin("x", plugin)
        except DuplicatePluginError:
            losers.append(plugin)

    run_threads(*(lambda plugin=plugin: register(plugin) for plugin in plugins))
    winner = manager.get_plugin("x")
    assert len(losers) == 5
    assert winner not in losers
    assert "cleanup" not in winner.events
    for loser in losers:
        assert loser.events in ([], [("initialize", {}), "cleanup"])


def test_a_plugin_of_another_api_version_is_refused(backend, manager) -> None:
    """The sentence has both versions."""

    class Old(backend.DataFlarePlugin):
        def info(self):
            return PluginInfo("old", api_version=0)

    with pytest.raises(IncompatiblePluginError, match="'old' was written for API version 0"):
        manager.register_plugin("x", Old)
    assert manager.list_plugins() == []


def test_a_failing_info_is_an_initialization_error(backend, manager) -> None:
    """With the plugin's own error as the cause."""

    class Broken(backend.DataFlarePlugin):
        def info(self):
            raise RuntimeError("who am I")

    with pytest.raises(PluginInitializationError, match="RuntimeError: who am I") as caught:
        manager.register_plugin("x", Broken)
    assert type(caught.value.__cause__) is RuntimeError


def test_a_configuration_is_a_mapping_and_read_only(backend, manager) -> None:
    """The plugin gets it as a proxy; anything else is refused."""
    seen = []

    class Keeps(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            seen.append(config)

    manager.register_plugin("x", Keeps, {"a": 1})
    assert seen == [{"a": 1}] * INSTANCES
    assert type(seen[0]) is MappingProxyType
    for wrong in ([("a", 1)], "a", 5):
        with pytest.raises(TypeError, match="configuration must be a mapping"):
            manager.register_plugin("y", Keeps, wrong)
    assert manager.list_plugins() == ["x"]


# ---- in and out of service


def test_unknown_names_are_errors(backend, manager) -> None:
    """The sentence has the name; it is a KeyError too."""
    for call in (
        lambda: manager.unregister_plugin("x"),
        lambda: manager.replace_plugin("x", backend.Upper()),
        lambda: manager.get_plugin("x"),
        lambda: manager.enable_plugin("x"),
        lambda: manager.disable_plugin("x"),
        lambda: manager.process_record("x", backend.PluginRecord(b"")),
        lambda: manager.process_batch("x", []),
        lambda: manager.process_stream("x", []),
    ):
        with pytest.raises(UnknownPluginError, match=r"^no plugin 'x' is registered$") as caught:
            call()
        assert isinstance(caught.value, KeyError)
    assert manager.get_metrics("x") is None


def test_a_disabled_plugin_refuses_until_enabled(backend, manager, witness) -> None:
    """It stays registered, keeps its metrics, and sees nothing meanwhile."""
    manager.register_plugin("x", witness)
    manager.process_batch("x", [b"a"])
    manager.disable_plugin("x")
    manager.disable_plugin("x")
    with pytest.raises(PluginDisabledError, match="disabled"):
        manager.process_batch("x", [b"b"])
    with pytest.raises(PluginDisabledError):
        manager.process_record("x", backend.PluginRecord(b"b"))
    assert manager.list_plugins() == ["x"]
    assert manager.get_metrics("x").total_processed == 1
    manager.enable_plugin("x")
    manager.process_batch("x", [b"c"])
    assert manager.get_plugin("x").events == [("initialize", {}), b"a", b"c"]


def test_a_replaced_plugin_is_cleaned_up_and_its_metrics_go_on(manager, witness) -> None:
    """The new one is ready before the old one goes; a disabled name stays disabled."""
    old, new = witness(), witness()
    manager.register_plugin("x", old)
    manager.process_batch("x", [b"a"])
    manager.disable_plugin("x")
    manager.replace_plugin("x", new, {"b": 2})
    assert old.events == [("initialize", {}), b"a", "cleanup"]
    assert (old.get_state(), new.get_state()) == (STOPPED, READY)
    with pytest.raises(PluginDisabledError):
        manager.process_batch("x", [b"b"])
    manager.enable_plugin("x")
    manager.process_batch("x", [b"c"])
    assert new.events == [("initialize", {"b": 2}), b"c"]
    assert manager.get_metrics("x").total_processed == 2


def test_a_failing_replacement_leaves_the_old_one(backend, manager, witness) -> None:
    """Still in service, not cleaned up."""

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            raise OSError("no disk")

    plugin = witness()
    manager.register_plugin("x", plugin)
    for wrong, error in ((Fails, PluginInitializationError), (plugin, DuplicatePluginError)):
        with pytest.raises(error):
            manager.replace_plugin("x", wrong)
    manager.process_batch("x", [b"a"])
    assert plugin.events == [("initialize", {}), b"a"]


def test_no_record_is_lost_or_doubled_while_plugins_are_replaced(backend, manager) -> None:
    """Three threads send, one swaps: each record is seen once, none by a plugin cleaned up."""
    senders, batches, swaps = 3, 60, 40
    made = []

    class Collects(backend.DataFlarePlugin):
        def __init__(self):
            self.seen, self.gone, self.late = [], False, 0
            made.append(self)

        def process(self, record):
            self.late += self.gone
            self.seen.append(bytes(record.value))
            return backend.PluginResult.skip()

        def cleanup(self):
            self.gone = True

    manager.register_plugin("x", Collects)
    kept = []

    def send(sender):
        for number in range(batches):
            values = [b"%d %d %d" % (sender, number, i) for i in range(5)]
            kept.extend(manager.process_batch("x", values).output.to_pylist())
            record = backend.PluginRecord(b"%d %d single" % (sender, number))
            assert manager.process_record("x", record).is_skip

    def swap():
        for _ in range(swaps):
            manager.replace_plugin("x", Collects)

    run_threads(swap, *(lambda sender=sender: send(sender) for sender in range(senders)))
    seen = [value for plugin in made for value in plugin.seen]
    assert len(seen) == len(set(seen)) == senders * batches * 6
    assert len(kept) == len(set(kept)) == senders * batches * 5
    assert len(made) == INSTANCES * (swaps + 1)
    assert [plugin.gone for plugin in made] == [True] * INSTANCES * swaps + [False] * INSTANCES
    assert sum(plugin.late for plugin in made) == 0
    assert manager.get_metrics("x").total_processed == senders * batches * 6


def test_unregistering_waits_for_the_call_that_is_running(backend, manager) -> None:
    """Its record is finished first; who comes later finds no plugin."""
    started, release = threading.Event(), threading.Event()
    events = []

    class Slow(backend.DataFlarePlugin):
        def process(self, record):
            started.set()
            assert release.wait(LIMIT)
            events.append("processed")
            return backend.PluginResult.skip()

        def cleanup(self):
            events.append("cleanup")

    def first():
        manager.process_record("x", record)

    def late():
        assert started.wait(LIMIT)
        while True:  # until there is no plugin any more
            first()

    def unregister():
        assert started.wait(LIMIT)
        manager.unregister_plugin("x")

    def let_go():
        assert started.wait(LIMIT)
        while manager.list_plugins():
            pass
        events.append("unregistered")
        release.set()

    record = backend.PluginRecord(b"a")
    manager.register_plugin("x", Slow)
    with pytest.raises(UnknownPluginError):
        run_threads(first, unregister, let_go, late)
    assert events[0] == "unregistered"
    assert events[-1] == "cleanup"
    assert events.count("cleanup") == INSTANCES


def test_calls_of_one_plugin_from_threads_do_not_overlap(backend, manager) -> None:
    """Within a plugin only one record is processed at a time."""
    inside, overlaps = [], []

    class Alone(backend.DataFlarePlugin):
        def process(self, record):
            inside.append(1)
            for _ in range(20):
                overlaps.append(len(inside) > 1)
            inside.pop()
            return backend.PluginResult.skip()

    manager.register_plugin("x", Alone)
    send = [lambda: [manager.process_batch("x", [b"a"] * 5) for _ in range(50)]] * 4
    run_threads(*send)
    assert len(overlaps) == 4 * 50 * 5 * 20
    assert not any(overlaps)


def test_a_plugin_may_call_its_manager(backend, manager) -> None:
    """Another plugin, itself, and the registry; a plugin may even take itself out of service."""

    class Nested(backend.DataFlarePlugin):
        def process(self, record):
            depth = int(bytes(record.value))
            if depth == 0:
                manager.register_plugin("made inside", backend.Upper())
                manager.unregister_plugin("nested")
                return backend.PluginResult.success(b"bottom")
            inner = backend.PluginRecord(b"%d" % (depth - 1))
            name = "via" if depth % 2 else "nested"
            return manager.process_record(name, inner)

    class Via(backend.DataFlarePlugin):
        def process(self, record):
            return manager.process_record("nested", record)

    manager.register_plugin("nested", Nested)
    manager.register_plugin("via", Via)
    plugin = manager.get_plugin("nested")
    assert manager.process_record("nested", backend.PluginRecord(b"5")).data == b"bottom"
    assert manager.list_plugins() == ["via", "made inside"]
    assert plugin.get_state() is STOPPED


# ---- records through plugins


def test_one_record(backend, manager, witness) -> None:
    """A result, or the plugin's failure raised with its cause."""
    manager.register_plugin("x", witness)
    make = backend.PluginRecord
    assert manager.process_record("x", make(b"a")) == backend.PluginResult.success(b"seen a")
    with pytest.raises(PluginProcessingError, match=r"^ValueError: as told$") as caught:
        manager.process_record("x", make(b"raise"))
    assert type(caught.value.__cause__) is ValueError
    with pytest.raises(PluginProcessingError, match=r"^refused$") as caught:
        manager.process_record("x", make(b"error"))
    assert (caught.value.plugin, caught.value.code) == ("Witness", "E1")
    for wrong in (None, b"value", "text"):
        with pytest.raises(TypeError):
            manager.process_record("x", wrong)
    assert manager.get_metrics("x").total_processed == 3


def test_records_in_any_form(backend, manager, witness) -> None:
    """A batch, records, values, text, arrays, a generator."""
    manager.register_plugin("x", backend.Upper())
    batch = backend.RecordBatch.from_values([b"a", b"b"])
    for records in (
        batch, [b"a", b"b"], ["a", "b"], (b"a", bytearray(b"b")), list(batch), iter(batch),
        (value for value in [b"a", b"b"]), np.array([b"a", b"b"]), {b"a": 1, b"b": 2}.keys(),
        np.array([[97], [98]], np.uint8),
    ):  # fmt: skip
        result = manager.process_batch("x", records)
        assert result.output.to_pylist() == [b"A", b"B"]
    assert manager.process_batch("x", []).processed_count == 0


@pytest.mark.parametrize("records", [None, 5, b"bytes", "text", bytearray(), {b"a": 1}])
def test_what_is_no_sequence_of_records_is_refused(backend, manager, records) -> None:
    """TypeError, in a batch and in a stream, before anything is processed."""
    manager.register_plugin("x", backend.Upper())
    with pytest.raises(TypeError, match=type(records).__name__):
        manager.process_batch("x", records)
    with pytest.raises(TypeError, match=type(records).__name__):
        manager.process_stream("x", records)
    assert manager.get_metrics("x").batches == 0


def test_records_and_values_do_not_mix(backend, manager) -> None:
    """The index of the first one that differs is in the sentence."""
    manager.register_plugin("x", backend.Upper())
    record = backend.PluginRecord(b"a")
    with pytest.raises(TypeError, match="record 1 must be a PluginRecord, not bytes"):
        manager.process_batch("x", [record, b"b"])
    with pytest.raises(TypeError, match=r"value 1 must be .* not PluginRecord"):
        manager.process_batch("x", [b"b", record])


def test_a_batch_has_its_failures_in_the_result(manager, witness) -> None:
    """Nothing is raised; the time is measured."""
    manager.register_plugin("x", witness)
    result = manager.process_batch("x", [b"a", b"raise", b"error", b"b"])
    assert result.output.to_pylist() == [b"seen a", b"seen b"]
    assert [(index, str(error)) for index, error in result.errors] == [
        (1, "ValueError: as told"), (2, "refused"),
    ]  # fmt: skip
    assert result.processing_time > 0
    assert result.throughput_per_second == 4 / result.processing_time


def test_an_interrupt_ends_the_call_and_frees_the_plugin(backend, manager) -> None:
    """It is counted as failed, and the next call works, from another thread too."""

    def stop_at_stop(value):
        if value == b"stop":
            raise KeyboardInterrupt
        return value

    manager.register_plugin("x", backend.map_plugin(stop_at_stop))
    with pytest.raises(KeyboardInterrupt):
        manager.process_batch("x", [b"a", b"stop", b"b"])
    with pytest.raises(KeyboardInterrupt):
        manager.process_record("x", backend.PluginRecord(b"stop"))
    run_threads(lambda: manager.process_batch("x", [b"a"]))
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.failed, metrics.successful) == (5, 4, 1)
    assert manager.get_plugin("x").get_state() is READY


# ---- what is counted


def test_metrics_are_what_happened(backend, manager) -> None:
    """Records, outcomes, bytes and calls; the time is a sum of what was measured."""

    class Judge(backend.DataFlarePlugin):
        def process(self, record):
            make = backend.PluginResult
            return {
                b"s": lambda: make.success(b"success"), b"f": make.filtered, b"k": make.skip,
                b"e": lambda: make.error("no"), b"r": lambda: 1 // 0,
            }[bytes(record.value[:1])]()  # fmt: skip

    manager.register_plugin("x", Judge)
    empty = manager.get_metrics("x")
    assert (empty.total_processed, empty.error_rate, empty.average_latency) == (0, 0.0, 0.0)
    assert (empty.average_throughput, empty.p99_latency, empty.max_latency) == (0.0, 0.0, 0.0)
    values = [b"s", b"ff", b"kkk", b"eeee", b"rrrrr"] * 4
    batch_times = [manager.process_batch("x", values).processing_time for _ in range(3)]
    for value in values:
        try:
            manager.process_record("x", backend.PluginRecord(value))
        except PluginProcessingError:
            assert value[:1] in b"er"
    metrics = manager.get_metrics("x")
    assert metrics.total_processed == 80
    assert (metrics.successful, metrics.filtered) == (16, 16)
    assert (metrics.skipped, metrics.failed, metrics.error_rate) == (16, 32, 0.4)
    assert metrics.bytes_in == 4 * 4 * (1 + 2 + 3 + 4 + 5)
    assert metrics.bytes_out == 4 * 4 * (len(b"success") + 3)
    assert metrics.batches == 3 + 20
    assert metrics.processing_time >= sum(batch_times)
    assert metrics.average_latency == metrics.processing_time / 80
    assert metrics.average_throughput == 80 / metrics.processing_time
    assert 0 < metrics.p50_latency <= metrics.p95_latency <= metrics.p99_latency
    assert metrics.p99_latency <= metrics.max_latency <= metrics.processing_time
    assert 0 < metrics.p50_batch_latency <= metrics.p99_batch_latency <= metrics.processing_time
    assert manager.get_all_metrics() == {"x": metrics}


def test_metrics_of_threads_add_up(backend, manager) -> None:
    """No count is lost."""
    manager.register_plugin("x", backend.Contains(b"a"))
    manager.register_plugin("y", backend.Upper())

    def send():
        for _ in range(100):
            manager.process_batch("x", [b"a", b"b", b"ab"])
            manager.process_record("y", backend.PluginRecord(b"a"))

    run_threads(*[send] * 4)
    metrics = manager.get_all_metrics()
    assert (metrics["x"].total_processed, metrics["x"].batches) == (1200, 400)
    assert (metrics["x"].skipped, metrics["x"].filtered) == (800, 400)
    assert (metrics["x"].bytes_in, metrics["x"].bytes_out) == (1600, 1200)
    assert (metrics["y"].successful, metrics["y"].bytes_out) == (400, 400)


def test_pool_statistics_are_those_of_the_manager(backend, manager) -> None:
    """What a result holds is in use until the result is gone."""
    manager.register_plugin("x", backend.Upper())
    result = manager.process_batch("x", [b"a"] * 100)
    assert manager.get_memory_pool_stats() == manager.pool.get_stats()
    assert manager.get_memory_pool_stats().in_use > 0
    del result
    gc.collect()
    assert manager.get_memory_pool_stats().in_use == 0
    silent = PluginManagerConfig(memory_pool_config=MemoryPoolConfig(enable_metrics=False))
    with backend.PluginManager(silent) as other:
        assert other.get_memory_pool_stats() is None


# ---- the end


def test_closing_cleans_every_plugin_up_once(backend, witness) -> None:
    """Closing twice is fine, and afterwards nothing can be done."""
    manager = backend.PluginManager()
    plugins = [witness(), witness()]
    manager.register_plugin("a", plugins[0])
    manager.register_plugin("b", plugins[1])
    assert repr(manager) == "PluginManager(plugins: a, b)"
    manager.close()
    manager.close()
    assert [plugin.events for plugin in plugins] == [[("initialize", {}), "cleanup"]] * 2
    assert [plugin.get_state() for plugin in plugins] == [STOPPED] * 2
    assert (manager.list_plugins(), manager.get_all_metrics()) == ([], {})
    assert repr(manager) == "PluginManager(closed)"
    assert manager.pool.closed
    for call in (
        lambda: manager.register_plugin("c", witness),
        lambda: manager.replace_plugin("a", witness),
        lambda: manager.unregister_plugin("a"),
        lambda: manager.get_plugin("a"),
        lambda: manager.process_record("a", backend.PluginRecord(b"")),
        lambda: manager.process_batch("a", [b""]),
        lambda: manager.process_stream("a", [b""]),
    ):
        with pytest.raises(PluginError, match="the manager is closed"):
            call()


@pytest.mark.parametrize("way", ["unregister", "replace", "close"])
def test_a_plugin_that_ends_its_own_service_ends_its_batch_first(backend, way) -> None:
    """It is cleaned up behind the last record, once, and the result is whole."""
    cleaned = []

    class Quits(backend.DataFlarePlugin):
        def process(self, record):
            if record.value == b"quit":
                {
                    "unregister": lambda: manager.unregister_plugin("x"),
                    "replace": lambda: manager.replace_plugin("x", backend.Upper()),
                    "close": manager.close,
                }[way]()
            return backend.PluginResult.success(record.value + b"%d" % len(cleaned))

        def cleanup(self):
            cleaned.append(self)

    with backend.PluginManager() as manager:
        manager.register_plugin("x", Quits())
        plugin = manager.get_plugin("x")
        result = manager.process_batch("x", [b"a", b"quit", b"b"])
        assert result.output.to_pylist() == [b"a0", b"quit0", b"b0"]
        assert cleaned == [plugin]
        assert plugin.get_state() is STOPPED
    assert cleaned == [plugin]


def test_a_native_plugin_in_a_manager_that_its_chain_closes(backend) -> None:
    """The members behind still have memory to write to."""
    with backend.PluginManager() as manager:
        closes = backend.filter_plugin(lambda value: manager.close() is None)
        manager.register_plugin("x", backend.Chain(backend.Upper(), closes, backend.Lower()))
        result = manager.process_batch("x", [b"a" * 5000, b"b" * 100_000])
    assert result.output.to_pylist() == [b"a" * 5000, b"b" * 100_000]
    with pytest.raises(PluginError, match="closed"):
        manager.pool.get_buffer(1)


def test_an_interrupt_while_closing_spares_no_plugin(backend, witness) -> None:
    """The others are cleaned up and the pool is closed before it comes through."""

    class Interrupted(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def cleanup(self):
            raise KeyboardInterrupt

    manager = backend.PluginManager()
    last = witness()
    manager.register_plugin("first", Interrupted())
    manager.register_plugin("last", last)
    with pytest.raises(KeyboardInterrupt):
        manager.close()
    assert last.events[-1] == "cleanup"
    assert manager.pool.closed


def test_results_stay_valid_after_the_manager_is_closed(backend) -> None:
    """Values, statuses, errors, and a stream's batches."""
    with backend.PluginManager() as manager:
        manager.register_plugin("x", backend.Chain(backend.Upper(), backend.Replace("A", "aaa")))
        source = bytearray(b"".join(b"a%d\n" % i for i in range(500)))
        result = manager.process_batch("x", backend.RecordBatch.from_lines(source))
        parts = list(manager.process_stream("x", backend.RecordBatch.from_lines(source)))
    del manager
    gc.collect()
    expected = [b"aaa%d" % i for i in range(500)]
    assert result.output.to_pylist() == expected
    assert result.status.tolist() == [0] * 500
    assert [value for part in parts for value in part.output.to_pylist()] == expected
    del result, parts
    source.append(0)
    assert source[-1] == 0


def test_a_manager_takes_its_configuration_and_nothing_else(backend) -> None:
    """The default is the default configuration."""
    with backend.PluginManager() as manager:
        assert manager.config == PluginManagerConfig()
        assert manager.pool.config == MemoryPoolConfig()
        assert repr(manager) == "PluginManager(plugins: none)"
    with pytest.raises(TypeError, match="PluginManagerConfig"):
        backend.PluginManager(BatchConfig())
