"""Native plugins of others: built against the installed package, used, and refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import EXAMPLE, build, build_module

import dataflare
from dataflare.errors import PluginConfigurationError, PluginError
from dataflare.plugins import Chain, Contains, Upper

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The plugins of hostile.pyx."""
    return build_module(HERE / "hostile.pyx", tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def manager():
    """A manager, closed after the test."""
    with dataflare.PluginManager() as manager:
        yield manager


def run(manager, plugin, values):
    """Run a plugin once over some values."""
    manager.register_plugin("plugin", plugin)
    return manager.process_batch("plugin", values)


def test_example_forwards(manager, logfields):
    """The example's Word extracts, and fails where there is none."""
    result = run(manager, logfields.Word(1), [b"GET /index 200", b"PUT /cart 201", b"x"])
    assert result.output.to_pylist() == [b"/index", b"/cart"]
    [(index, error)] = result.errors
    assert (index, str(error), error.code, error.plugin) == (
        2, "the line has too few words", 1, "Word")  # fmt: skip


def test_example_in_a_fused_chain(manager, logfields):
    """Plugins of the example and of the library run as one stage."""
    chain = Chain(logfields.Prefix(b">> "), Contains("cart"), logfields.Word(2), Upper())
    assert len(chain.stages) == 1
    result = run(manager, chain, [b"GET /index 200", b"PUT /cart 201", b"cart"])
    assert result.output.to_pylist() == [b"/CART"]
    assert [(i, e.plugin) for i, e in result.errors] == [(2, "Word")]


def test_example_by_name(logfields):
    """The names in the example's metadata; arguments are converted as they are annotated."""

    site = {"PYTHONPATH": str(Path(logfields.__file__).parents[1])}

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "dataflare.cli", *arguments],
            input="GET /index 200\n",
            cwd=Path(logfields.__file__).parent,
            env={**os.environ, **site, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("run", "-p", "log-word:1", "-p", "log-prefix:a:b ").stdout == "a:b /index\n"
    refused = run("run", "-p", "log-word:1", DATAFLARE_PURE_PYTHON="1").stderr
    assert refused.startswith(
        "dataflare: the plugin 'log-word:1' cannot be used: a native plugin needs the compiled "
        "backend: unset DATAFLARE_PURE_PYTHON"
    )
    listing = json.loads(run("plugins", "--json").stdout)
    listed = {plugin["name"]: plugin for plugin in listing["plugins"]}
    word = listed["log-word"]
    assert (word["native"], word["package"], word["version"]) == (True, "logfields", "1.0")
    assert word["written"] == "log-word:NUMBER"


def test_single_record(manager, logfields):
    """A native plugin processes a single record too."""
    manager.register_plugin("prefix", logfields.Prefix(b"-"))
    record = dataflare.PluginRecord(b"x" * 100_000)
    assert manager.process_record("prefix", record).data == b"-" + b"x" * 100_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"u", "the plugin returned the unknown status 42"),
        (b"m", "the plugin returned the unknown status -1"),
        (b"s", "the plugin returned SUCCESS without committing a value"),
        (b"c", "the plugin committed a size that it had not reserved"),
        (b"n", "the plugin committed a size that it had not reserved"),
        (b"r", "MemoryError: no room for -7 bytes of output"),
        (b"h", f"MemoryError: no room for {1 << 60} bytes of output"),
        (b"o", "the plugin committed a size that it had not reserved"),
        (b"f", "the plugin forwarded bytes that are not in the record"),
        (b"g", "the plugin forwarded bytes that are not in the record"),
        (b"e", "the plugin gave no reason"),
        (b"x", "a reason"),
        (b"p", "LookupError: raised"),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_nonsense_is_the_records_error(manager, hostile, value, message, fused):
    """What a plugin must not do fails its record, with a sentence; the others go on."""
    plugin = Chain(hostile.Odd(), Upper()) if fused else hostile.Odd()
    result = run(manager, plugin, [b"a", value, b"d", value, b"b"])
    assert [(i, str(e), e.plugin) for i, e in result.errors] == [
        (1, message, "Odd"), (3, message, "Odd")]  # fmt: skip
    assert result.output.to_pylist() == ([b"A", b"B"] if fused else [b"a", b"b"])
    with pytest.raises(dataflare.PluginError, match=message.replace("(", r"\(")):
        manager.process_record("plugin", dataflare.PluginRecord(value))


def test_a_record_stays_in_place_while_it_is_processed(hostile):
    """Also when its views are released meanwhile."""
    value, key = bytearray(b"value"), bytearray(b"key")
    record = dataflare.PluginRecord(value, key=key)

    def release():
        for view, source in ((record.value, value), (record.key, key)):
            view.release()
            with pytest.raises(BufferError):
                source.clear()

    assert hostile.Calls(release).process(record).data == b"valuekey"
    value.clear()
    key.clear()


def test_keyboard_interrupt_is_no_records_error(manager, hostile):
    """What is no Exception stops the batch."""
    with pytest.raises(KeyboardInterrupt):
        run(manager, hostile.Odd(), [b"a", b"k"])
    assert manager.get_plugin("plugin").get_state() is dataflare.PluginState.READY
    assert manager.get_memory_pool_stats().in_use == 0


def test_undefined_c_process(manager, hostile):
    """A plugin without c_process is not put in service, alone or in a chain; it would fail."""
    for plugin in (hostile.Nothing(), Chain(Upper(), hostile.Nothing())):
        with pytest.raises(PluginConfigurationError) as caught:
            manager.register_plugin("plugin", plugin)
        assert str(caught.value) == (
            "the plugin class Nothing defines neither c_process nor c_process_batch: let it define "
            "c_process in Cython; a plugin in Python is derived from DataFlarePlugin"
        )
    with pytest.raises(PluginError, match=r"^the plugin does not define c_process$"):
        hostile.Nothing().process(dataflare.PluginRecord(b"a"))


def test_output_grows_over_pool_buffers(manager, hostile):
    """Values of any size, larger than the largest slab too, come out whole."""
    sizes = [0, 1, 300, 5_000, 70_000, 2_000_000, 5_000_000, 10, 9_000_000, 3]
    result = run(manager, hostile.Repeat(), [b"%dx" % size for size in sizes])
    assert [len(value) for value in result.output.to_pylist()] == sizes
    assert all(set(value) <= {ord("x")} for value in result.output.to_pylist())
    assert manager.get_memory_pool_stats().in_use > 0
    del result
    assert manager.get_memory_pool_stats().in_use == 0


def test_chain_compacts_large_intermediate_values(manager, hostile):
    """Every stage of a fused chain may need a block of its own."""
    chain = Chain(hostile.Repeat(), Upper(), Upper(), Contains("X"))
    sizes = [3, 5_000_000, 100_000, 7, 6_000_000]
    result = run(manager, chain, [b"%dx" % size for size in sizes])
    assert [len(value) for value in result.output.to_pylist()] == sizes
    assert all(set(value) == {ord("X")} for value in result.output.to_pylist())


def test_record_fields_reach_the_plugin(manager, hostile):
    """Key and numbers of each record are what the batch has."""
    batch = dataflare.RecordBatch.from_values(
        [b"a", b"b"], [b"k", None], timestamps=[1, 2], partitions=[3, 4], offsets=[5, 6]
    )
    want = [b"(b'k', 1, 3, 5)", b"(None, 2, 4, 6)"]
    for plugin in (hostile.ShowRecord(), Chain(hostile.ShowRecord(), Contains("("))):
        assert dataflare._backend.run_batch(plugin, batch).output.to_pylist() == want
    single = hostile.ShowRecord().process(batch[0])
    assert single.data == want[0]


def test_batch_hook(manager, hostile):
    """A batch hook decides every record in order."""
    result = run(manager, hostile.BatchHook("good"), [b"%d" % i for i in range(7)])
    assert result.status.tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert result.output.to_pylist() == [b"1", b"new", b"4", b"new"]


def test_batch_hook_that_stops_early(manager, hostile):
    """Records that a batch hook leaves out are failures."""
    result = run(manager, hostile.BatchHook("short"), [b"a", b"b", b"c"])
    assert [(i, str(e)) for i, e in result.errors] == [
        (2, "the plugin left the record undecided")]  # fmt: skip


def test_batch_hook_that_goes_on_too_long(manager, hostile):
    """A batch hook cannot write behind the end."""
    result = run(manager, hostile.BatchHook("long"), [b"a", b"b"])
    assert result.output.to_pylist() == [b"a", b"b"]


def test_batch_hook_that_raises(manager, hostile):
    """An exception is the failure of the record at which the hook stood."""
    result = run(manager, hostile.BatchHook("raise"), [b"a", b"b", b"c", b"d"])
    assert [(i, str(e)) for i, e in result.errors] == [
        (1, "ValueError: at 1"), (3, "ValueError: at 3")]  # fmt: skip
    assert result.output.to_pylist() == [b"new"]


@pytest.fixture
def watching():
    """A manager in debug mode, closed after the test."""
    config = dataflare.PluginManagerConfig(enable_debug_mode=True)
    with dataflare.PluginManager(config) as manager:
        yield manager


@pytest.mark.parametrize("way", ["alone", "first", "last"])
@pytest.mark.parametrize("value", [b"!", b"!" * 100, b"!" * 256, b"!" * 4096, b"!" * 5_000_000])
def test_debug_mode_names_the_plugin_that_writes_too_far(watching, hostile, caplog, way, value):
    """One byte past what was reserved, of any size, alone or in a fused chain."""
    overrun = hostile.Overrun()
    plugin = {"alone": overrun, "first": Chain(overrun, Upper()), "last": Chain(Upper(), overrun)}
    watching.register_plugin("plugin", plugin[way])
    result = watching.process_batch("plugin", [b"fine", b"?less", value, b"also fine", b""] * 2)
    line = sys._getframe().f_lineno - 1
    assert len(result.output) == 10
    assert watching.pool.violations == ()
    del result
    size = len(value)
    sentence = (
        f"a buffer of {size} byte{'' if size == 1 else 's'} for output of the plugin 'Overrun' was "
        f"written past its end, first at offset {size}; it was taken at {__file__}:{line} in "
        "test_debug_mode_names_the_plugin_that_writes_too_far"
    )
    assert watching.pool.violations == (sentence, sentence)
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [sentence] * 2
    assert watching.get_memory_pool_stats().in_use == 0


@pytest.mark.parametrize("way", ["alone", "fused", "mixed"])
def test_debug_mode_watches_single_records(watching, hostile, way):
    """The output of `process_record` is guarded like that of a batch."""

    @dataflare.map_plugin
    def same(value):
        return value

    plugins = {"fused": (hostile.Overrun(), Upper()), "mixed": (hostile.Overrun(), same)}
    plugin = hostile.Overrun() if way == "alone" else Chain(*plugins[way])
    watching.register_plugin("plugin", plugin)
    for value in (b"fine", b"?", b"", b"x" * 1000):
        watching.process_record("plugin", dataflare.PluginRecord(value))
    assert watching.pool.violations == ()
    result = watching.process_record("plugin", dataflare.PluginRecord(b"!bad"))
    assert result.data.upper() == b"!BAD"
    (sentence,) = watching.pool.violations
    assert "a buffer of 4 bytes for output of the plugin 'Overrun'" in sentence
    assert f"{__file__}:" in sentence


def test_debug_mode_changes_no_result(watching, manager, hostile):
    """Every plugin here gives the same with and without it, failures and large values too."""
    values = [b"a", b"u", b"m", b"s", b"c", b"n", b"r", b"h", b"f", b"g", b"e", b"x", b"p", b"d"]
    sizes = [0, 1, 300, 5_000, 70_000, 2_000_000, 5_000_000, 10]
    runs = {
        "odd": (hostile.Odd, values),
        "chain": (lambda: Chain(hostile.Odd(), Upper(), Contains("A")), values),
        "repeat": (hostile.Repeat, [b"%dx" % size for size in sizes]),
        "large": (
            lambda: Chain(hostile.Repeat(), Upper(), Upper(), Contains("X")),
            [b"%dx" % size for size in sizes],
        ),
        "hook": (lambda: hostile.BatchHook("good"), [b"%d" % i for i in range(30)]),
        "long": (lambda: hostile.BatchHook("long"), [b"a", b"b"]),
    }
    for name, (make, records) in runs.items():
        outcomes = []
        for one in (manager, watching):
            one.register_plugin(name, make())
            result = one.process_batch(name, records)
            outcomes.append((result.status.tolist(), result.output.to_pylist(), str(result.errors)))
        assert outcomes[0] == outcomes[1], name
    del result
    assert watching.get_memory_pool_stats().in_use == 0
    assert watching.pool.violations == ()


def config_of(**recovery):
    """A configuration in which threads share batches and no circuit opens."""
    return dataflare.PluginManagerConfig(
        batch_config=dataflare.BatchConfig(parallelism=3),
        failure_recovery=dataflare.FailureRecoveryConfig(circuit_breaker_threshold=1, **recovery),
    )


@pytest.mark.parametrize("way", ["instance", "class"])
def test_native_plugins_run_at_the_same_time(hostile, way):
    """Threads that wait for each other without the GIL are all there: a batch is really shared."""
    values = [b"%d" % i for i in range(30_000)]
    for part in range(3):
        values[part * 10_000] = b"meet"
    single = hostile.ThreadSafeMeets(3)
    with dataflare.PluginManager(config_of()) as manager:
        manager.register_plugin("x", single if way == "instance" else lambda: single)
        result = manager.process_batch("x", values)
        assert result.errors == []
        assert result.output.to_pylist() == values


def test_a_native_instance_that_is_not_thread_safe_is_not_shared(hostile):
    """It runs on the thread of its caller."""
    with dataflare.PluginManager(config_of()) as manager:
        manager.register_plugin("x", hostile.Meets(1))
        assert manager.process_batch("x", [b"meet"] * 30_000).errors == []
        assert manager.get_system_status().workers == 0


@pytest.mark.parametrize("fast", [0, 100_000])
@pytest.mark.parametrize("kind", ["loop", "hook", "fused", "chain"])
def test_a_deadline_ends_a_native_batch(hostile, kind, fast):
    """Also after many fast records: a few slow ones more at most, and the output is whole."""
    plugin = {
        "loop": hostile.Sleeps,
        "hook": lambda: hostile.Sleeps(True),
        "fused": lambda: Chain(hostile.Sleeps(), Upper()),
        "chain": lambda: Chain(hostile.Sleeps(), dataflare.map_plugin(bytes.upper)),
    }[kind]()
    fast = fast // 50 if kind == "chain" else fast
    values = [b"q%d" % i for i in range(fast)] + [b"s%d" % i for i in range(1000)]
    with dataflare.PluginManager(config_of(batch_timeout=0.4)) as manager:
        manager.register_plugin("x", plugin)
        result = manager.process_batch("x", values)
        done = len(values) - result.error_count
        assert fast <= done <= fast + 20 + 16
        assert [i for i, _ in result.errors] == list(range(done, len(values)))
        assert {type(error) for _, error in result.errors} == {dataflare.PluginTimeoutError}
        kept = [v.upper() for v in values[:done]] if kind in ("fused", "chain") else values[:done]
        assert result.output.to_pylist() == kept
        assert manager.get_metrics("x").total_processed == len(values)


def test_failures_before_a_deadline_keep_their_reason(hostile):
    """Those behind it have that of the deadline."""
    values = [b"f", b"s", b"f"] + [b"s"] * 500
    with dataflare.PluginManager(config_of(batch_timeout=0.3)) as manager:
        manager.register_plugin("x", hostile.Sleeps())
        errors = dict(manager.process_batch("x", values).errors)
    assert str(errors[0]) == str(errors[2]) == "told to"
    assert type(errors[502]) is dataflare.PluginTimeoutError


@pytest.mark.parametrize("mode", ["good", "long", "raise"])
def test_a_batch_hook_sees_a_growing_batch_until_a_deadline(hostile, mode):
    """One that goes by out.position gives the same as without a deadline."""
    batch = dataflare.RecordBatch.from_values([b"%d" % i for i in range(200)])
    plain = dataflare._backend.run_batch(hostile.BatchHook(mode), batch)
    timed = dataflare._backend.run_batch(hostile.BatchHook(mode), batch, None, 1000)
    assert timed.status.tolist() == plain.status.tolist()
    assert timed.output.to_pylist() == plain.output.to_pylist()
    assert list(map(str, timed.errors)) == list(map(str, plain.errors))


def test_plugin_of_another_abi_is_refused(tmp_path):
    """A plugin built against another native ABI is refused with a sentence, before any call."""
    package = Path(dataflare.__file__).parent
    other = tmp_path / "other" / "dataflare"
    shutil.copytree(package, other)
    for name in ("__init__.pxd", "_compiled/plugin.pxd"):
        text = (other / name).read_text().replace("NativePluginABI1", "NativePluginABI7")
        (other / name).write_text(text)
    target = tmp_path / "target"
    done = build(EXAMPLE, target, other.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    code = (
        f"import sys, dataflare; sys.path.insert(0, {str(target)!r})\n"
        "dataflare.PluginManager().register_plugin('w', 'logfields:Word')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "the plugin was built for DataFlare's native ABI 7, this DataFlare has ABI 1: "
        "build the plugin again with the DataFlare it runs with"
    )
