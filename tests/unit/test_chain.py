"""Chains: order, fusing, whose error it is, and what goes on."""

import re
import sys
from types import ModuleType

import pytest

from dataflare.errors import PluginConfigurationError, PluginProcessingError
from dataflare.types import PluginState

SUCCESS, FILTERED, SKIP, ERROR = range(4)
LOG = [b"GET /a 200", b"get /b error", b"POST /c ERROR", b"", b"GET /d ERROR 500", b"ERROR"]


def run(backend, plugin, values):
    """The result of a plugin over values."""
    return backend.run_batch(plugin, backend.RecordBatch.from_values(values))


def failing(value: bytes) -> bytes:
    if b"/c" in value:
        raise ValueError("no c")
    return value


def test_members_run_in_order(backend) -> None:
    """The second sees what the first made."""
    first = backend.Chain(backend.Replace("GET", "PUT"), backend.Contains("GET"))
    second = backend.Chain(backend.Contains("GET"), backend.Replace("GET", "PUT"))
    assert run(backend, first, LOG).output.to_pylist() == []
    assert run(backend, second, LOG).output.to_pylist() == [b"PUT /a 200", b"PUT /d ERROR 500"]


def test_native_and_python_members_mix(backend) -> None:
    """Statuses and indices are those of the input, whatever was dropped on the way."""
    chain = backend.Chain(
        backend.Contains("/"),
        backend.Upper(),
        backend.map_plugin(failing),
        backend.filter_plugin(lambda value: b"/A" not in value),
        backend.Replace("ERROR", "E"),
        backend.map_plugin(lambda value: value + b"."),
    )
    values = [*LOG, b"/c", b"/c x"]
    lower = backend.Chain(backend.Lower(), chain.plugins[2])
    result = run(backend, chain, values)
    assert result.status.tolist() == [
        FILTERED, SUCCESS, SUCCESS, FILTERED, SUCCESS, FILTERED, SUCCESS, SUCCESS,
    ]  # fmt: skip
    assert result.output.to_pylist() == [
        b"GET /B E.", b"POST /C E.", b"GET /D E 500.", b"/C.", b"/C X.",
    ]  # fmt: skip
    result = run(backend, lower, values)
    assert [index for index, _ in result.errors] == [2, 6, 7]
    assert result.output.to_pylist() == [value.lower() for value in values if b"/c" not in value]


def test_a_member_may_be_named(backend, monkeypatch) -> None:
    """As everywhere else: with arguments or as a place, and of a named chain its members."""
    module = ModuleType("some_chains")
    module.both = lambda: backend.Chain(backend.Upper(), backend.Replace("GET", "PUT"))
    monkeypatch.setitem(sys.modules, "some_chains", module)
    chain = backend.Chain("contains:ERROR", backend.Lower(), "replace:/d:/e", "some_chains:both")
    kinds = ["Contains", "Lower", "Replace", "Upper", "Replace"]
    assert [type(plugin).__name__ for plugin in chain.plugins] == kinds
    assert all(type(plugin).__module__ == backend.Upper.__module__ for plugin in chain.plugins)
    assert run(backend, chain, LOG).output.to_pylist()[1] == b"PUT /E ERROR 500"


@pytest.mark.parametrize("spec", ["uper", "upper:x", "replace:a", "", "nowhere:nothing"])
def test_a_name_that_no_plugin_has(backend, spec) -> None:
    """In a chain and in an adapter, the sentence is that of a registration."""
    with backend.PluginManager() as manager, pytest.raises(PluginConfigurationError) as wanted:
        manager.register_plugin("x", spec)
    assert str(wanted.value).startswith(f"the plugin {spec!r} cannot be used: ")
    for make in (lambda: backend.Chain("lower", spec), lambda: backend.BatchAdapter(spec)):
        with pytest.raises(PluginConfigurationError) as caught:
            make()
        assert str(caught.value) == str(wanted.value)


@pytest.mark.parametrize("fused", [True, False])
def test_an_error_has_the_name_of_its_member(backend, fused) -> None:
    """Not that of the chain; in a batch and of one record, by rising index."""
    between = [] if fused else [backend.map_plugin(bytes)]
    chain = backend.Chain(
        backend.JsonField("a"), *between, backend.JsonField("b"), *between, backend.JsonField("c")
    )
    values = [b'{"a": {"b": {}}}', b"{}", b'{"a": {"b": {"c": 1}}}', b"[", b'{"a": {"c": 1}}']
    result = run(backend, chain, values)
    assert [(index, str(error)) for index, error in result.errors if index != 3] == [
        (0, "the object has no field 'c'"),
        (1, "the object has no field 'a'"),
        (4, "the object has no field 'b'"),
    ]
    assert [index for index, _ in result.errors] == [0, 1, 3, 4]
    assert {error.plugin for _, error in result.errors} == {"JsonField"}
    assert result.output.to_pylist() == [b"1"]
    mixed = backend.Chain(backend.Upper(), backend.map_plugin(failing), backend.Lower())
    ((_, error),) = run(backend, backend.Chain(backend.Lower(), *mixed.plugins[1:]), LOG).errors
    assert (error.plugin, str(error)) == ("failing", "ValueError: no c")
    for index, error in result.errors:
        with pytest.raises(PluginProcessingError) as caught:
            backend.run_record(chain, backend.PluginRecord(values[index]))
        assert (str(caught.value), caught.value.plugin) == (str(error), error.plugin)


def test_a_record_that_nobody_changed_is_skipped(backend) -> None:
    """The very same value goes on; one that anybody changed is a success."""
    chain = backend.Chain(
        backend.Contains("ERROR"), backend.Replace("/d", "/x"), backend.filter_plugin(bool)
    )
    result = run(backend, chain, LOG)
    assert result.status.tolist() == [FILTERED, FILTERED, SKIP, FILTERED, SUCCESS, SKIP]
    assert result.output[0].value == LOG[2]
    assert list(result.results)[2:5] == [
        backend.PluginResult.skip(),
        backend.PluginResult.filtered(),
        backend.PluginResult.success(b"GET /x ERROR 500"),
    ]


def test_other_columns_follow_their_record(backend) -> None:
    """Through fused and Python members, past records that were dropped."""
    batch = backend.RecordBatch.from_values(
        LOG,
        [b"k%d" % i for i in range(6)],
        timestamps=range(6),
        metadata=[{"i": i} for i in range(6)],
    )
    for members in (
        [backend.Contains("ERROR"), backend.Lower()],
        [backend.Contains("ERROR"), backend.map_plugin(bytes.lower)],
        [backend.filter_plugin(lambda value: b"ERROR" in value), backend.Lower()],
    ):
        output = backend.run_batch(backend.Chain(*members), batch).output
        assert list(output) == [
            backend.PluginRecord(LOG[i].lower(), key=b"k%d" % i, timestamp=i, metadata={"i": i})
            for i in (2, 4, 5)
        ]


def test_new_metadata_reaches_the_next_member_and_the_result(backend) -> None:
    """The last that was given wins; who gave none leaves it."""

    class Note(backend.DataFlarePlugin):
        def __init__(self, name):
            self.name = name

        def process(self, record):
            before = dict(record.metadata or {})
            if record.value.startswith(self.name):
                before[self.name.decode()] = len(before)
                return backend.PluginResult.success(record.value, before)
            return backend.PluginResult.skip()

    members = [
        Note(b"a"),
        backend.Upper(),
        backend.Lower(),
        Note(b"ab"),
        backend.filter_plugin(bool),
    ]
    chain = backend.Chain(*members)
    batch = backend.RecordBatch.from_values(
        [b"abc", b"axx", b"xyz", b"none"], metadata=[{"own": 0}, None, {"own": 0}, None]
    )
    result = backend.run_batch(chain, batch)
    assert result.output.metadata == [
        {"own": 0, "a": 1, "ab": 2}, {"a": 0}, {"own": 0}, None,
    ]  # fmt: skip
    late = backend.Chain(backend.Lower(), members[0])
    assert backend.run_batch(late, batch).output.metadata[0] == {"own": 0, "a": 1}
    for each in (chain, late):
        outcomes = backend.run_batch(each, batch).results
        assert [backend.run_record(each, record) for record in batch] == list(outcomes)


def test_nested_chains_are_taken_apart(backend) -> None:
    """And so are fused across the border."""
    upper, lower, contains = backend.Upper(), backend.Lower(), backend.Contains("a")
    chain = backend.Chain(backend.Chain(upper, backend.Chain(lower)), contains)
    assert chain.plugins == (upper, lower, contains)
    assert repr(chain) == "Chain(Upper(), Lower(), Contains(b'a'))"
    assert chain.info().name == "Upper | Lower | Contains"
    assert run(backend, chain, [b"A", b"B"]).output.to_pylist() == [b"a"]


def test_a_chain_of_one_is_its_member(backend) -> None:
    """Same outcomes, same errors."""
    for plugin in (backend.Contains("ERROR"), backend.map_plugin(failing)):
        alone, chained = (run(backend, each, LOG) for each in (plugin, backend.Chain(plugin)))
        assert alone.status.tolist() == chained.status.tolist()
        assert [(i, str(e), e.plugin) for i, e in alone.errors] == [
            (i, str(e), e.plugin) for i, e in chained.errors
        ]


def test_the_same_member_may_stand_twice(backend) -> None:
    """It runs twice."""
    twice = backend.Replace("a", "aa")
    assert run(backend, backend.Chain(twice, twice), [b"a"]).output.to_pylist() == [b"aaaa"]


def test_a_chain_passes_its_life_on(backend) -> None:
    """Initialise, clean up and health check reach every member."""
    calls = []

    class Member(backend.DataFlarePlugin):
        def __init__(self, name, healthy=True):
            self.name, self.healthy = name, healthy

        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            calls.append((self.name, dict(config)))

        def cleanup(self):
            calls.append((self.name, "cleanup"))

        def health_check(self):
            return self.healthy

    chain = backend.Chain(Member("a"), backend.Upper(), Member("b"))
    assert chain.get_state() is PluginState.UNINITIALIZED
    chain.initialize({"x": 1})
    chain.cleanup()
    assert calls == [("a", {"x": 1}), ("b", {"x": 1}), ("a", "cleanup"), ("b", "cleanup")]
    assert chain.health_check() is True
    assert backend.Chain(Member("a"), Member("b", False)).health_check() is False


def test_a_member_that_fails_to_begin_or_end_spares_no_other(backend) -> None:
    """Who was initialized is cleaned up, whatever the others raise."""
    events = []

    class Member(backend.DataFlarePlugin):
        def __init__(self, name, wrong=""):
            self.name = name
            self.wrong = wrong

        def note(self, what):
            events.append((what, self.name))
            if self.wrong == what:
                raise ValueError(f"{self.name} cannot {what}")

        def initialize(self, config):
            self.note("begin")

        def cleanup(self):
            self.note("end")

    with pytest.raises(ValueError, match="b cannot begin"):
        backend.Chain(Member("a"), Member("b", "begin"), Member("c")).initialize({})
    assert events == [("begin", "a"), ("begin", "b"), ("end", "a")]
    events.clear()
    with pytest.raises(ValueError, match="a cannot end"):
        backend.Chain(Member("a", "end"), Member("b")).cleanup()
    assert events == [("end", "a"), ("end", "b")]


def test_a_member_that_returns_nonsense_fails_its_record(backend) -> None:
    """In the middle of a chain as anywhere."""

    class Nonsense(backend.DataFlarePlugin):
        def process(self, record):
            return "text" if record.value == b"B" else backend.PluginResult.skip()

    chain = backend.Chain(backend.Upper(), Nonsense(), backend.Lower())
    result = run(backend, chain, [b"a", b"b", b"c"])
    assert result.output.to_pylist() == [b"a", b"c"]
    ((index, error),) = result.errors
    assert (index, error.plugin) == (1, "Nonsense")
    assert str(error) == "the plugin returned str, not a PluginResult"
    with pytest.raises(PluginProcessingError, match="returned str"):
        backend.run_record(chain, backend.PluginRecord(b"b"))


@pytest.mark.parametrize("record", [None, b"a", 5])
def test_a_chain_takes_records_alone(backend, record) -> None:
    """Also if its members do not look at them."""

    class Constant(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.success(b"a")

    with pytest.raises(TypeError, match="must be a PluginRecord"):
        backend.Chain(Constant(), Constant()).process(record)


@pytest.mark.parametrize("index", [-1, 2, 10**12])
def test_an_error_of_no_record_is_the_members_failure(backend, index) -> None:
    """The list of errors is in the hands of a member that makes results itself: all fail."""

    class Invents(backend.BatchPlugin):
        def process_batch(self, records):
            skip = backend.PluginResult.skip()
            result = backend.BatchResult.from_results(records, [skip] * len(records))
            result.errors.append((index, PluginProcessingError("invented")))
            return result

    chain = backend.Chain(Invents(), backend.map_plugin(bytes))
    for plugin in (chain, Invents()):
        result = run(backend, plugin, [b"a", b"b"])
        assert [(i, str(error), error.plugin) for i, error in result.errors] == [
            (i, "process_batch returned errors that do not fit its results", "Invents")
            for i in range(2)
        ]


def test_an_error_outcome_of_a_member_ends_the_record(backend) -> None:
    """The members behind it do not see the record."""
    seen = []

    class Refuse(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.error("refused", 4)

    chain = backend.Chain(backend.Upper(), Refuse(), backend.map_plugin(seen.append))
    result = run(backend, chain, [b"a"])
    ((index, error),) = result.errors
    assert (index, str(error), error.code, error.plugin) == (0, "refused", 4, "Refuse")
    assert seen == []
    assert backend.run_record(chain, backend.PluginRecord(b"a")).message == "refused"


def test_a_long_fused_chain_over_many_records(backend) -> None:
    """More output than a block holds, in every step, with and without a pool."""
    members = [backend.Replace("a", "bb"), backend.Replace("b", "ab"), backend.Upper()] * 3
    values = [b"a" * (i % 400) for i in range(2000)]
    expected = values
    for _ in range(3):
        expected = [v.replace(b"a", b"bb").replace(b"b", b"ab").upper() for v in expected]
    chain = backend.Chain(*members, backend.Lower(), backend.Replace("b", ""))
    expected = [v.lower().replace(b"b", b"") for v in expected]
    with backend.MemoryPool() as pool:
        batch = backend.RecordBatch.from_values(values)
        for given in (None, pool):
            assert backend.run_batch(chain, batch, given).output.to_pylist() == expected
        assert pool.get_stats().in_use == 0


def test_empty_values_before_the_first_block_of_output(backend) -> None:
    """An output that begins with an empty value is searched value by value, not as a block."""
    values = [b"", b"", b"ab" * 700]
    upper = backend.run_batch(backend.Upper(), backend.RecordBatch.from_values(values))
    kept = backend.run_batch(backend.Contains(b"BA"), upper.output)
    assert kept.status.tolist() == [1, 1, 2]
    lowered = backend.run_batch(backend.Lower(), upper.output)
    assert lowered.output.to_pylist() == values


def test_the_time_of_a_member_never_falls(backend) -> None:
    """Also when samples show that a member takes a smaller part of it; the sum stays exact."""
    chain = backend.Chain(backend.Contains("x"), backend.Upper(), backend.Lower())
    batches = [backend.RecordBatch.from_values([each * 500] * 150) for each in (b"x", b"y")]
    before = [0.0] * 3
    for number in range(60):
        backend.run_batch(chain, batches[number % 2])
        now = [elapsed for _, elapsed in chain.exclusive_times()]
        assert all(earlier <= later for earlier, later in zip(before, now, strict=True))
        before = now
    assert sum(before) > 0


def test_what_is_no_plugin_is_refused(backend) -> None:
    """A class, and the plugins as one list, are what is given by mistake."""
    for given, sentence in (
        (backend.Upper, "Upper is a class: give an instance, Upper()"),
        ([backend.Upper()], "give the plugins one by one: Chain(*plugins)"),
        (1, "a chain is made of plugins, not of int"),
        (int, "a chain is made of plugins, not of type"),
    ):
        with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
            backend.Chain(given)
