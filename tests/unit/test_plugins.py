"""Plugins in Python: functions, classes, and how their failures are told."""

import gc
import weakref

import pytest

from dataflare.errors import (
    PluginConfigurationError,
    PluginError,
    PluginProcessingError,
    PluginSerializationError,
)
from dataflare.types import API_VERSION, PluginInfo, PluginState, PluginType

SUCCESS, FILTERED, SKIP, ERROR = range(4)


def run(backend, plugin, values):
    """The result of a plugin over values."""
    return backend.run_batch(plugin, backend.RecordBatch.from_values(values))


def shout(value: bytes) -> bytes:
    """Add an exclamation mark.

    And more text.
    """
    return value + b"!"


def test_a_function_becomes_a_map_plugin(backend) -> None:
    """Bare or with a name, and it is still the function."""
    plugin = backend.map_plugin(shout)
    assert isinstance(plugin, backend.MapPlugin)
    assert isinstance(plugin, backend.DataFlarePlugin)
    assert plugin(b"a") == b"a!"
    assert plugin.__wrapped__ is shout
    assert (plugin.__name__, plugin.__doc__) == (shout.__name__, shout.__doc__)
    info = plugin.info()
    assert (info.name, info.plugin_type) == ("shout", PluginType.TRANSFORMER)
    assert (info.description, info.api_version) == ("Add an exclamation mark.", API_VERSION)
    assert repr(plugin) == "map_plugin(shout)"
    named = backend.map_plugin(name="loud")(shout)
    assert (named.info().name, named(b"b")) == ("loud", b"b!")
    result = run(backend, plugin, [b"a", "b", bytearray(b"c")])
    assert result.output.to_pylist() == [b"a!", b"b!", b"c!"]
    assert result.status.tolist() == [SUCCESS] * 3


def test_a_function_becomes_a_filter_plugin(backend) -> None:
    """Its truth value decides; the record that goes on is the very same."""
    plugin = backend.filter_plugin(lambda value: value)
    assert isinstance(plugin, backend.FilterPlugin)
    assert (plugin.info().name, plugin.info().plugin_type) == ("<lambda>", PluginType.FILTER)
    assert repr(backend.filter_plugin(name="full")(len)) == "filter_plugin(full)"
    values = [b"", b"a", b"", b"b"]
    result = run(backend, plugin, values)
    assert result.status.tolist() == [FILTERED, SKIP, FILTERED, SKIP]
    assert result.output.to_pylist() == [b"a", b"b"]
    assert result.output[0].value is values[1]


@pytest.mark.parametrize("make", ["map_plugin", "filter_plugin"])
@pytest.mark.parametrize("wrong", [b"bytes", 5, "name"])
def test_only_functions_become_plugins(backend, make, wrong) -> None:
    """What cannot be called is refused."""
    with pytest.raises(TypeError, match=f"of a function, not of {type(wrong).__name__}"):
        getattr(backend, make)(wrong)


def test_any_callable_becomes_a_plugin(backend) -> None:
    """A class, a bound method, a built-in, an object with `__call__`."""

    class Call:
        def __call__(self, value):
            return value * 2

    for function, name in [(bytes, "bytes"), (b"".join, "join"), (Call(), "Call")]:
        plugin = backend.map_plugin(function)
        assert plugin.info().name == name
        assert run(backend, plugin, [b"a"]).processed_count == 1
    assert run(backend, backend.map_plugin(Call()), [b"ab"]).output.to_pylist() == [b"abab"]


@pytest.mark.parametrize("data", [bytearray(b"x"), memoryview(b"x"), type("B", (bytes,), {})(b"x")])
def test_a_map_function_may_return_what_is_like_bytes(backend, data) -> None:
    """The output is plain bytes, and a copy."""
    result = run(backend, backend.map_plugin(lambda value: data), [b"a"])
    assert result.output.to_pylist() == [b"x"]
    assert type(result.output[0].value) is type(result.results[0].data) is bytes


@pytest.mark.parametrize("data", ["text", None, 5, [b"x"], object()])
def test_a_map_function_that_returns_something_else_fails_its_record(backend, data) -> None:
    """The sentence says what it returned; the other records go on."""
    result = run(
        backend, backend.map_plugin(lambda v: data if v == b"b" else v), [b"a", b"b", b"c"]
    )
    assert result.status.tolist() == [SUCCESS, ERROR, SUCCESS]
    ((index, error),) = result.errors
    assert (index, type(error)) == (1, PluginProcessingError)
    assert str(error) == f"the function returned {type(data).__name__}, not bytes"
    assert error.plugin == "<lambda>"


def failing(value: bytes) -> bytes:
    if value.startswith(b"bad"):
        raise ValueError(f"{value.decode()} is bad")
    return value


@pytest.mark.parametrize("make", ["map_plugin", "filter_plugin"])
@pytest.mark.parametrize("bad", [set(), {0}, {4}, {0, 1}, {1, 3}, {3, 4}, {0, 1, 2, 3, 4}])
def test_a_failure_is_that_of_its_record_alone(backend, make, bad) -> None:
    """First, last, next to each other, all: index, message and cause are right every time."""
    values = [b"bad%d" % i if i in bad else b"good%d" % i for i in range(5)]
    result = run(backend, getattr(backend, make)(failing), values)
    assert [index for index, _ in result.errors] == sorted(bad)
    assert (result.error_count, result.processed_count) == (len(bad), 5)
    for index, error in result.errors:
        assert type(error) is PluginProcessingError
        assert str(error) == f"ValueError: bad{index} is bad"
        assert type(error.__cause__) is ValueError
        assert (error.plugin, error.code) == ("failing", None)
    assert result.output.to_pylist() == [value for i, value in enumerate(values) if i not in bad]


def test_a_truth_value_that_raises_fails_its_record(backend) -> None:
    """What a filter returns is asked inside the record's own guard."""

    class Undecided:
        def __bool__(self):
            raise RuntimeError("who knows")

    plugin = backend.filter_plugin(lambda value: Undecided() if value == b"b" else value)
    result = run(backend, plugin, [b"a", b"b", b"c"])
    assert result.status.tolist() == [SKIP, ERROR, SKIP]
    assert str(result.errors[0][1]) == "RuntimeError: who knows"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_of_a_record_passes_through(backend, interrupt) -> None:
    """Ctrl-C ends the call, from every kind of plugin, and nothing stays borrowed."""

    def stop(*_):
        raise interrupt

    plugin = type("P", (backend.DataFlarePlugin,), {"process": stop})()
    with backend.MemoryPool() as pool:
        batch = backend.RecordBatch.from_values([b"a"])
        plain = [backend.map_plugin(stop), backend.filter_plugin(stop), plugin]
        for each in [*plain, *map(backend.Chain, plain)]:
            with pytest.raises(interrupt):
                backend.run_batch(each, batch, pool)
            with pytest.raises(interrupt):
                backend.run_record(each, batch[0])
        gc.collect()
        assert pool.get_stats().in_use == 0


@pytest.fixture
def judge(backend):
    """A class that does what the value says."""

    class Judge(backend.DataFlarePlugin):
        """Judges records.

        At length.
        """

        def process(self, record):
            word = bytes(record.value)
            result = backend.PluginResult
            if word == b"success":
                return result.success(b"new value", {"new": True})
            if word == b"filtered":
                return result.filtered()
            if word == b"skip":
                return result.skip()
            if word == b"error":
                return result.error("as told", "E1")
            if word == b"raise":
                raise KeyError("missing")
            if word == b"silent":
                raise ValueError
            if word == b"plugin error":
                raise PluginSerializationError("no JSON", code=5)
            if word == b"named":
                raise PluginError("of another", plugin="another")
            return {b"none": None, b"bytes": b"x", b"class": result}[word]

    return Judge()


def test_a_class_decides_every_outcome(backend, judge) -> None:
    """Success with metadata, filtered, skip and error."""
    result = run(backend, judge, [b"success", b"filtered", b"skip", b"error"])
    assert result.status.tolist() == [SUCCESS, FILTERED, SKIP, ERROR]
    make = backend.PluginRecord
    assert list(result.output) == [make(b"new value", metadata={"new": True}), make(b"skip")]
    make = backend.PluginResult
    assert list(result.results) == [
        make.success(b"new value", {"new": True}), make.filtered(), make.skip(),
        make.error("as told", "E1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "kind", "message", "cause", "plugin", "code"),
    [
        (b"raise", PluginProcessingError, "KeyError: 'missing'", KeyError, "Judge", None),
        (b"silent", PluginProcessingError, "ValueError", ValueError, "Judge", None),
        (b"plugin error", PluginSerializationError, "no JSON", None, "Judge", 5),
        (b"named", PluginError, "of another", None, "another", None),
        (b"error", PluginProcessingError, "as told", None, "Judge", "E1"),
        (
            b"none", PluginProcessingError,
            "the plugin returned NoneType, not a PluginResult", None, "Judge", None,
        ),
        (
            b"bytes", PluginProcessingError,
            "the plugin returned bytes, not a PluginResult", None, "Judge", None,
        ),
        (
            b"class", PluginProcessingError,
            "the plugin returned type, not a PluginResult", None, "Judge", None,
        ),
    ],
)  # fmt: skip
def test_failures_of_a_class(backend, judge, word, kind, message, cause, plugin, code) -> None:
    """Class, sentence, cause, plugin and code, in a batch and of one record."""
    result = run(backend, judge, [b"skip", word, b"skip"])
    assert result.status.tolist() == [SKIP, ERROR, SKIP]
    ((index, error),) = result.errors
    errors = [error]
    if word != b"error":  # as an outcome it comes back from a single record
        with pytest.raises(kind) as caught:
            backend.run_record(judge, backend.PluginRecord(word))
        errors.append(caught.value)
    assert index == 1
    for error in errors:
        assert type(error) is kind
        assert (str(error), error.plugin, error.code) == (message, plugin, code)
        assert error.__cause__ is None if cause is None else type(error.__cause__) is cause


def test_one_record_gives_the_outcome_itself(backend, judge) -> None:
    """An error outcome too: raising it is the manager's part."""
    make = backend.PluginRecord
    for word in (b"success", b"filtered", b"skip", b"error"):
        assert backend.run_record(judge, make(word)) == run(backend, judge, [word]).results[0]
    with pytest.raises(TypeError):
        backend.run_record(judge, b"value")


def test_a_class_sees_the_whole_record(backend) -> None:
    """Key, metadata and numbers as well as the value."""
    seen = []

    class Look(backend.DataFlarePlugin):
        def process(self, record):
            seen.append(record)
            return backend.PluginResult.skip()

    batch = backend.RecordBatch.from_values(
        ["a", "b"], ["k", None], timestamps=[1, 2], metadata=[None, {"a": 1}]
    )
    assert list(backend.run_batch(Look(), batch).output) == list(batch) == seen


def test_the_defaults_of_a_plugin(backend) -> None:
    """Only `process` is required, and without it the record's error says so."""

    class Nothing(backend.DataFlarePlugin):
        """Does nothing.

        At all.
        """

    plugin = Nothing()
    info = plugin.info()
    assert (info.name, info.description) == ("Nothing", "Does nothing.")
    assert (info.version, info.plugin_type) == ("0.0.0", PluginType.CUSTOM)
    assert plugin.get_state() is PluginState.UNINITIALIZED
    assert plugin.health_check() is True
    assert plugin.initialize({}) is None
    assert plugin.cleanup() is None
    ((_, error),) = run(backend, plugin, [b"a"]).errors
    assert type(error) is PluginConfigurationError
    assert (str(error), error.plugin) == ("Nothing does not define process(record)", "Nothing")


def test_a_plugin_may_have_a_constructor_and_attributes_of_its_own(backend) -> None:
    """Also without calling the base's, and with names such as `state` and `name`."""

    class Own(backend.DataFlarePlugin):
        def __init__(self, state, *, name):
            self.state, self.name = state, name

        def process(self, record):
            return backend.PluginResult.success(f"{self.state}{self.name}".encode())

    plugin = Own("s", name="n")
    assert run(backend, plugin, [b""]).output.to_pylist() == [b"sn"]
    assert plugin.get_state() is PluginState.UNINITIALIZED


def test_a_broken_info_does_not_hide_the_error(backend) -> None:
    """The class's name takes the place of the one that `info` fails to give."""

    class Broken(backend.DataFlarePlugin):
        def info(self):
            raise RuntimeError("no info")

        def process(self, record):
            raise ValueError("the real problem")

    ((_, error),) = run(backend, Broken(), [b"a"]).errors
    assert (str(error), error.plugin) == ("ValueError: the real problem", "Broken")


def odd_exceptions():
    """Exceptions whose authors made something else of them, and what is said of each."""

    class SilentError(Exception):
        def __str__(self):
            raise RuntimeError("nothing to say")

    class NotedError(Exception):
        pass

    class UntrueError(Exception):
        def __bool__(self):
            raise RuntimeError("neither")

    class OwnError(PluginError):
        def __init__(self, number):
            self.number = number

    noted, caused = NotedError("n"), ValueError("v")
    noted.__notes__ = "one"
    caused.__cause__ = UntrueError()
    return {
        "SilentError": SilentError(),
        "NotedError: n": noted,
        "ValueError: v": caused,
        "UntrueError": UntrueError(),
        "5": OwnError(5),
        "v": PluginError(ValueError("v")),
    }


@pytest.mark.parametrize("text", odd_exceptions())
@pytest.mark.parametrize("kind", ["map", "filter", "class"])
def test_odd_exceptions_fail_their_record_alone(backend, kind, text) -> None:
    """Whatever their authors made of them, the other records are there."""

    def check(value):
        if value == b"bad":
            raise odd_exceptions()[text]
        return value

    class Checks(backend.DataFlarePlugin):
        def process(self, record):
            check(record.value)
            return backend.PluginResult.skip()

    plugin = {
        "map": lambda: backend.map_plugin(check),
        "filter": lambda: backend.filter_plugin(check),
        "class": Checks,
    }[kind]()
    result = run(backend, plugin, [b"a", b"bad", b"b"])
    assert result.output.to_pylist() == [b"a", b"b"]
    ((index, error),) = result.errors
    assert (index, str(error)) == (1, text)
    assert result.results[1].is_error


def test_a_name_that_is_odd_text_is_a_name(backend) -> None:
    """A subclass of str whose text is itself."""

    class Text(str):
        def __str__(self):
            return self

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            raise ValueError

        def info(self):
            return PluginInfo(name=Text("odd"))

    assert run(backend, Fails(), [b"a"]).errors[0][1].plugin == "odd"


def test_a_shared_error_object_is_the_error_of_each_record(backend) -> None:
    """A plugin may raise the very same exception twice."""
    shared = ValueError("same")

    def fail(value):
        raise shared

    result = run(backend, backend.map_plugin(fail), [b"a", b"b"])
    assert [index for index, _ in result.errors] == [0, 1]
    assert all(error.__cause__ is shared for _, error in result.errors)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda backend, batch: None, "process_batch returned NoneType, not a BatchResult"),
        (lambda backend, batch: [], "process_batch returned list, not a BatchResult"),
        (
            lambda backend, batch: run(backend, backend.Upper(), [b"one"]),
            "process_batch returned 1 results for 2 records",
        ),
        (lambda backend, batch: 1 // 0, "ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_a_batch_plugin_that_returns_nonsense_fails_as_a_whole(backend, returned, message) -> None:
    """No record has an outcome: every one of them fails."""

    class Whole(backend.BatchPlugin):
        def process_batch(self, records):
            return returned(backend, records)

    result = run(backend, Whole(), [b"a", b"b"])
    assert [index for index, _ in result.errors] == [0, 1]
    for _, error in result.errors:
        assert (type(error), str(error), error.plugin) == (PluginProcessingError, message, "Whole")
    assert len(result.output) == 0


def test_a_result_that_was_never_filled_is_none(backend) -> None:
    """Made without its functions, it has no output."""

    class Whole(backend.BatchPlugin):
        def process_batch(self, records):
            return backend.BatchResult.__new__(backend.BatchResult)

    with backend.PluginManager() as manager:
        manager.register_plugin("x", Whole())
        ((_, error),) = manager.process_batch("x", [b"a"]).errors
        assert "not a BatchResult" in str(error)


def test_a_map_function_finds_nothing_unfinished(backend) -> None:
    """It may look at every object that the garbage collector knows."""

    def look(value):
        for item in gc.get_objects():
            if type(item) is tuple and len(item) == 41:
                assert len(list(item)) == 41
        return value

    values = [b"%d" % i for i in range(41)]
    assert run(backend, backend.map_plugin(look), values).output.to_pylist() == values


def test_a_batch_plugin_decides_for_all_records(backend) -> None:
    """Its result is the result; one record is a batch of one."""

    class Numbered(backend.BatchPlugin):
        def process_batch(self, records):
            make = backend.PluginResult
            return backend.BatchResult.from_results(
                records,
                [
                    ValueError("empty") if not record.value else make.success(b"%d" % index)
                    for index, record in enumerate(records)
                ],
            )

    result = run(backend, Numbered(), [b"a", b"", b"c"])
    assert result.output.to_pylist() == [b"0", b"2"]
    assert result.errors[0][0] == 1
    record = backend.PluginRecord(b"x")
    assert backend.run_record(Numbered(), record) == backend.PluginResult.success(b"0")
    with pytest.raises(PluginProcessingError, match="ValueError: empty"):
        backend.run_record(Numbered(), backend.PluginRecord(b""))


def test_a_failed_batch_keeps_nothing_alive(backend) -> None:
    """The traceback of a record's error does not hold the batch or the frames around it."""

    class Witness:
        pass

    def fail(value):
        raise ValueError("no")

    def caller():
        witness = Witness()
        reference = weakref.ref(witness)
        return run(backend, backend.map_plugin(fail), [b"a"]).errors, reference

    errors, reference = caller()
    assert len(errors) == 1
    assert reference() is None


def test_a_function_plugin_leaks_nothing(backend) -> None:
    """The function is gone with its plugin."""

    def function(value):
        return value

    reference = weakref.ref(function)
    plugin = backend.map_plugin(function)
    assert run(backend, plugin, [b"a"]).success_count == 1
    del function, plugin
    gc.collect()
    assert reference() is None


def test_a_native_plugin_in_python_says_what_it_lacks(backend) -> None:
    """In pure Python it cannot exist; in the compiled backend it has no `c_process`."""
    if backend.name == "python":
        with pytest.raises(PluginConfigurationError, match="needs the compiled backend"):
            backend.NativePlugin()
        return
    ((_, error),) = run(backend, backend.NativePlugin(), [b"a"]).errors
    assert "does not define c_process" in str(error)


def test_the_engine_takes_batches_and_records_alone(backend) -> None:
    """Anything else is a TypeError, not a crash."""
    for wrong in (None, [b"a"], b"a"):
        with pytest.raises(TypeError):
            backend.run_batch(backend.Upper(), wrong)
        with pytest.raises(TypeError):
            backend.run_record(backend.Upper(), wrong)


def test_a_filter_that_returns_nothing(backend) -> None:
    """Has forgotten to; anything else is true or false."""
    plugin = backend.filter_plugin(lambda value: None if value == b"b" else value)
    result = run(backend, plugin, [b"a", b"b", b""])
    assert result.status.tolist() == [2, 3, 1]
    assert str(result.errors[0][1]) == "the function returned NoneType, not bool"
    with pytest.raises(PluginError, match=r"^the function returned NoneType, not bool$"):
        backend.run_record(plugin, backend.PluginRecord(b"b"))


@pytest.mark.filterwarnings("error")
def test_a_coroutine_is_refused(backend) -> None:
    """By one sentence; nothing warns that nobody awaits it."""

    class Plugin(backend.DataFlarePlugin):
        async def process(self, record):
            return backend.PluginResult.skip()

    class Whole(backend.BatchPlugin):
        async def process_batch(self, records):
            return None

    async def function(value):
        return value

    for plugin, what in (
        (Plugin(), "process"),
        (Whole(), "process_batch"),
        (backend.map_plugin(function), "the function"),
        (backend.filter_plugin(function), "the function"),
    ):
        sentence = f"{what} is a coroutine: it must be a plain function"
        result = run(backend, plugin, [b"a", b"b"])
        assert [str(error) for _, error in result.errors] == [sentence] * 2
        with pytest.raises(PluginError, match=f"^{sentence}$"):
            backend.run_record(plugin, backend.PluginRecord(b"b"))
        gc.collect()
