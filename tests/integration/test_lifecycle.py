"""The life of a plugin in a manager: begun once, ended once, and nobody served by half of one."""

import threading

import pytest
from helpers import LIMIT, conserved, run_threads

from dataflare.config import BatchConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import (
    DuplicatePluginError,
    IncompatiblePluginError,
    PluginDisabledError,
    PluginError,
    PluginInitializationError,
    UnknownPluginError,
)
from dataflare.types import PluginInfo, PluginState

READY, RUNNING, ERROR, STOPPED = (
    PluginState.READY, PluginState.RUNNING, PluginState.ERROR, PluginState.STOPPED,
)  # fmt: skip
POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


@pytest.fixture
def make_class(backend):
    """A function that makes a class whose instances note what happens to them."""

    def make(initialize=None, cleanup=None):
        class Lives(backend.DataFlarePlugin):
            made = []  # noqa: RUF012 - of this class alone

            def __init__(self):
                self.events = []
                self.number = len(self.made)
                self.made.append(self)

            def initialize(self, config):
                self.events.append("initialize")
                if initialize:
                    initialize(self)

            def process(self, record):
                assert self.events == ["initialize"]
                return backend.PluginResult.skip()

            def cleanup(self):
                self.events.append("cleanup")
                if cleanup:
                    cleanup(self)

        return Lives

    return make


def fail_at(number, error):
    """A hook that fails at one instance."""

    def hook(plugin):
        if plugin.number == number:
            raise error

    return hook


# ---- beginnings


@pytest.mark.parametrize("error", [OSError("no disk"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("way", ["register", "replace"])
def test_the_third_instance_fails(manager, make_class, error, way) -> None:
    """Those before it are cleaned up once, it is in ERROR, and nothing else has changed."""
    first = make_class()
    if way == "replace":
        manager.register_plugin("x", first)
    broken = make_class(fail_at(2, error))
    kind = PluginInitializationError if isinstance(error, Exception) else type(error)
    call = manager.register_plugin if way == "register" else manager.replace_plugin
    with pytest.raises(kind):
        call("x", broken)
    assert [plugin.events for plugin in broken.made] == [
        ["initialize", "cleanup"], ["initialize", "cleanup"], ["initialize"],
    ]  # fmt: skip
    assert [plugin.get_state() for plugin in broken.made] == [STOPPED, STOPPED, ERROR]
    if way == "register":
        assert manager.list_plugins() == []
        manager.register_plugin("x", first)
    assert manager.process_batch("x", [b"a"]).skipped_count == 1
    assert [plugin.events for plugin in first.made] == [["initialize"]] * 4


def test_the_fallback_fails(backend, manager, make_class) -> None:
    """The plugin's instances are cleaned up, and so is what would get dead letters."""
    plugin, fallback, sink = make_class(), make_class(fail_at(0, OSError())), make_class()
    with pytest.raises(PluginInitializationError):
        manager.register_plugin("x", plugin, fallback=fallback, dead_letters=sink())
    assert [each.events for each in plugin.made] == [["initialize", "cleanup"]] * 4
    assert [each.events for each in fallback.made + sink.made] == [["initialize"], []]
    assert manager.list_plugins() == []


def test_every_instance_begins_and_ends_once(manager, make_class) -> None:
    """Those of a class, the fallback, what gets dead letters; also if the end fails."""
    plugin, fallback, sink = (
        make_class(None, fail_at(1, OSError("stuck"))),
        make_class(),
        make_class(),
    )
    manager.register_plugin("x", plugin, fallback=fallback, dead_letters=sink())
    made = plugin.made + fallback.made + sink.made
    assert [each.events for each in made] == [["initialize"]] * 6
    assert [each.get_state() for each in made] == [READY] * 6
    manager.unregister_plugin("x")
    manager.close()
    assert [each.events for each in made] == [["initialize", "cleanup"]] * 6
    assert [each.get_state() for each in made] == [STOPPED, ERROR, *[STOPPED] * 4]


def test_an_interrupt_in_a_clean_up_spares_nobody(manager, make_class) -> None:
    """The other instances are cleaned up, and it comes through; the name is free."""
    plugin = make_class(None, fail_at(1, KeyboardInterrupt()))
    manager.register_plugin("x", plugin)
    with pytest.raises(KeyboardInterrupt):
        manager.unregister_plugin("x")
    assert [each.events for each in plugin.made] == [["initialize", "cleanup"]] * 4
    assert [each.get_state() for each in plugin.made] == [STOPPED, ERROR, STOPPED, STOPPED]
    manager.register_plugin("x", make_class())


@pytest.mark.parametrize("role", ["plugin", "fallback", "dead_letters"])
def test_an_instance_has_one_place(backend, manager, make_class, role) -> None:
    """Neither twice under one name, nor under two; it is begun once, and free when it ended."""
    kind = make_class()
    single = kind()
    if role == "plugin":
        manager.register_plugin("x", single)
    else:
        manager.register_plugin("x", backend.Upper(), **{role: single})
    for arguments in (
        {"plugin": single},
        {"plugin": backend.Upper(), "fallback": single},
        {"plugin": backend.Upper(), "dead_letters": single},
    ):
        with pytest.raises(DuplicatePluginError, match="instance is registered already"):
            manager.register_plugin("y", **arguments)
    assert single.events == ["initialize"]
    manager.unregister_plugin("x")
    assert single.events == ["initialize", "cleanup"]
    both = kind()
    with pytest.raises(DuplicatePluginError):
        manager.register_plugin("y", both, fallback=both)
    assert both.events == ["initialize", "cleanup"]


def test_of_threads_that_register_one_instance_one_wins(manager, make_class) -> None:
    """Under different names: it is begun once."""
    for _ in range(20):
        plugin = make_class(lambda _: threading.Event().wait(0.001))()
        won = []

        def register(name, plugin=plugin, won=won):
            try:
                manager.register_plugin(name, plugin)
                won.append(name)
            except DuplicatePluginError:
                pass

        run_threads(*(lambda name=name: register(name) for name in "abcd"))
        assert (plugin.events, len(won)) == (["initialize"], 1)
        manager.unregister_plugin(won[0])


@pytest.mark.parametrize("whole", ["chain", "adapter", "chain in an adapter"])
@pytest.mark.parametrize("role", ["plugin", "fallback", "dead_letters"])
def test_a_member_belongs_to_its_whole(backend, manager, make_class, whole, role) -> None:
    """It is begun once, cannot be registered beside it, and has its state."""
    plugin = make_class()()
    made = {
        "chain": lambda: backend.Chain(backend.Upper(), plugin),
        "adapter": lambda: backend.BatchAdapter(plugin),
        "chain in an adapter": lambda: backend.BatchAdapter(backend.Chain(plugin)),
    }[whole]
    manager.register_plugin("x", **{"plugin": backend.Upper(), role: made()})
    assert (plugin.get_state(), plugin.events) == (PluginState.READY, ["initialize"])
    for other in (plugin, made()):
        with pytest.raises(DuplicatePluginError, match="or is part of one that is"):
            manager.register_plugin("y", other)
        with pytest.raises(DuplicatePluginError):
            manager.register_plugin("y", backend.Upper(), fallback=other)
    assert plugin.events == ["initialize"]
    manager.unregister_plugin("x")
    assert (plugin.get_state(), plugin.events) == (PluginState.STOPPED, ["initialize", "cleanup"])
    manager.register_plugin("y", plugin)
    with pytest.raises(DuplicatePluginError):
        manager.register_plugin("x", made())
    assert plugin.get_state() is PluginState.READY


def test_a_member_runs_while_its_whole_does(backend, manager) -> None:
    """And failed if that failed to begin."""
    seen = []

    class Looks(backend.DataFlarePlugin):
        def initialize(self, config):
            seen.append(self.get_state())
            if config.get("fail"):
                raise OSError("not today")

        def process(self, record):
            seen.append(self.get_state())
            return backend.PluginResult.skip()

    plugin = Looks()
    manager.register_plugin("x", backend.Chain(plugin, backend.Upper()))
    manager.process_batch("x", [b"a"])
    assert seen == [PluginState.INITIALIZING, PluginState.RUNNING]
    assert plugin.get_state() is PluginState.READY
    broken = Looks()
    with pytest.raises(PluginInitializationError):
        manager.register_plugin("y", backend.Chain(broken), {"fail": True})
    assert broken.get_state() is PluginState.ERROR
    manager.register_plugin("y", broken)


def test_plugins_that_are_equal_are_two(backend, manager) -> None:
    """A plugin may compare as it likes, and need not be hashable: each instance is one."""
    made = []

    class Equal(backend.DataFlarePlugin):
        __hash__ = None

        def __init__(self):
            self.cleaned = 0
            made.append(self)

        def __eq__(self, other):
            return True

        def process(self, record):
            return backend.PluginResult.skip()

        def cleanup(self):
            self.cleaned += 1

    manager.register_plugin("x", Equal)
    manager.register_plugin("y", Equal())
    assert manager.process_batch("x", [b"a"]).skipped_count == 1
    assert manager.get_system_status().plugins["x"].instances == 4
    assert manager.get_metrics("x").stages[0].name == "Equal"
    manager.replace_plugin("x", Equal())
    manager.close()
    assert [plugin.cleaned for plugin in made] == [1] * 6


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_api_version_is_refused_by_name(backend, manager, version) -> None:
    """The sentence has both versions; in every role, before anything is begun."""
    begun = []

    class Other(backend.DataFlarePlugin):
        def info(self):
            return PluginInfo("other", api_version=version)

        def initialize(self, config):
            begun.append(self)

    sentence = f"'other' was written for API version {version}, this DataFlare has version 1"
    for arguments in (
        {"plugin": Other},
        {"plugin": backend.Upper(), "fallback": Other},
        {"plugin": backend.Upper(), "dead_letters": Other()},
    ):
        with pytest.raises(IncompatiblePluginError, match=sentence):
            manager.register_plugin("x", **arguments)
    manager.register_plugin("x", backend.Upper())
    with pytest.raises(IncompatiblePluginError, match=sentence):
        manager.replace_plugin("x", Other())
    assert (begun, manager.process_batch("x", [b"a"]).success_count) == ([], 1)


# ---- the state


def test_the_state_of_each_instance_is_true(backend, manager) -> None:
    """RUNNING in the one that runs, READY in the others, READY in all when the last call ends."""
    inside, release = threading.Event(), threading.Event()
    made = []

    class Waits(backend.DataFlarePlugin):
        def __init__(self):
            made.append(self)

        def process(self, record):
            inside.set()
            assert release.wait(LIMIT)
            return backend.PluginResult.skip()

    manager.register_plugin("x", Waits)
    thread = threading.Thread(target=manager.process_batch, args=("x", [b"a"]))
    thread.start()
    assert inside.wait(LIMIT)
    assert sorted(each.get_state().value for each in made) == ["ready"] * 3 + ["running"]
    assert manager.get_system_status().plugins["x"].running == 1
    release.set()
    thread.join(LIMIT)
    assert [each.get_state() for each in made] == [READY] * 4


def test_a_shared_instance_is_running_until_the_last_call_ends(backend, manager) -> None:
    """Whichever ends first."""
    both, first, second = threading.Barrier(3), threading.Event(), threading.Event()

    class Waits(backend.DataFlarePlugin):
        thread_safe = True

        def process(self, record):
            both.wait(LIMIT)
            assert {b"1": first, b"2": second}[bytes(record.value)].wait(LIMIT)
            return backend.PluginResult.skip()

    plugin = Waits()
    manager.register_plugin("x", plugin)
    threads = [
        threading.Thread(target=manager.process_batch, args=("x", [value]))
        for value in (b"1", b"2")
    ]
    for thread in threads:
        thread.start()
    both.wait(LIMIT)
    for event, thread, state in ((second, threads[1], RUNNING), (first, threads[0], READY)):
        event.set()
        thread.join(LIMIT)
        assert plugin.get_state() is state


# ---- under load


@pytest.fixture
def hammered(backend):
    """A manager, and a class whose instances check that they are whole and alone in their call."""
    config = PluginManagerConfig(
        memory_pool_config=POOL, batch_config=BatchConfig(parallelism=3, default_batch_size=7)
    )

    class Checks(backend.DataFlarePlugin):
        releases_gil = True
        made = []  # noqa: RUF012 - of this class alone

        def __init__(self):
            self.begun = self.ended = self.inside = 0
            self.seen = []
            self.made.append(self)

        def initialize(self, config):
            self.begun += 1

        def process(self, record):
            self.inside += 1
            assert (self.inside, self.begun, self.ended) == (1, 1, 0)
            self.seen.append(bytes(record.value))
            self.inside -= 1
            return backend.PluginResult.skip()

        def cleanup(self):
            assert self.inside == 0
            self.ended += 1

    with backend.PluginManager(config) as manager:
        yield manager, Checks


def test_replacing_under_load(backend, hammered) -> None:
    """Records, batches, shared batches and streams: all seen once, and no caller sees an error."""
    manager, checks = hammered
    manager.register_plugin("x", checks)
    sent = []
    done = threading.Event()

    def records(sender):
        for i in range(300):
            value = b"r%d %d" % (sender, i)
            assert manager.process_record("x", backend.PluginRecord(value)).is_skip
            sent.append(value)

    def batches(sender, size, times):
        for number in range(times):
            values = [b"b%d %d %d" % (sender, number, i) for i in range(size)]
            result = manager.process_batch("x", values)
            assert result.errors == []
            assert result.output.to_pylist() == values
            sent.extend(values)

    def stream(sender):
        values = [b"s%d %d" % (sender, i) for i in range(500)]
        results = list(manager.process_stream("x", iter(values)))
        assert [v for result in results for v in result.output.to_pylist()] == values
        sent.extend(values)

    def replace():
        while not done.is_set():
            manager.replace_plugin("x", checks)
            manager.get_metrics("x")
            manager.get_system_status()

    def send():
        try:
            run_threads(
                lambda: records(1), lambda: records(2), lambda: batches(1, 9, 100),
                lambda: batches(2, 9000, 6), lambda: stream(1), lambda: stream(2),
            )  # fmt: skip
        finally:
            done.set()

    run_threads(send, replace, replace)
    seen = [value for plugin in checks.made for value in plugin.seen]
    assert len(seen) == len(set(seen)) == len(sent)
    assert set(seen) == set(sent)
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.skipped) == (len(sent), len(sent))
    manager.close()
    assert {(plugin.begun, plugin.ended) for plugin in checks.made} == {(1, 1)}


def test_disabling_under_load(backend, hammered) -> None:
    """A call is run or refused, and replacing in between loses neither switch."""
    manager, checks = hammered
    manager.register_plugin("x", checks)
    done = threading.Event()
    processed, refused = [], []

    def send(sender):
        for i in range(300):
            values = [b"%d %d %d" % (sender, i, j) for j in range(3)]
            try:
                assert manager.process_batch("x", values).skipped_count == 3
                processed.extend(values)
            except PluginDisabledError:
                refused.extend(values)

    def turn():
        while not done.is_set():
            manager.disable_plugin("x")
            manager.replace_plugin("x", checks)
            assert not manager.get_system_status().plugins["x"].enabled
            manager.enable_plugin("x")

    def send_all():
        try:
            run_threads(lambda: send(1), lambda: send(2))
        finally:
            done.set()

    run_threads(send_all, turn)
    seen = [value for plugin in checks.made for value in plugin.seen]
    assert sorted(seen) == sorted(processed)
    assert conserved(manager).total_processed == len(processed)


def test_unregistering_under_load(hammered) -> None:
    """A batch is whole or refused with a sentence; the name can be taken again."""
    manager, checks = hammered
    done = threading.Event()
    processed, refusals = [], set()

    def send(size):
        number = 0
        while not done.is_set():
            number += 1
            values = [b"%d %d %d" % (size, number, i) for i in range(size)]
            try:
                assert manager.process_batch("x", values).output.to_pylist() == values
                processed.extend(values)
            except UnknownPluginError as error:
                refusals.add(str(error))

    def turn():
        for _ in range(40):
            manager.register_plugin("x", checks)
            manager.process_batch("x", [])
            manager.unregister_plugin("x")
        done.set()

    run_threads(turn, lambda: send(5), lambda: send(5000))
    assert refusals <= {"no plugin 'x' is registered"}
    seen = [value for plugin in checks.made for value in plugin.seen]
    assert sorted(seen) == sorted(processed)
    assert {(plugin.begun, plugin.ended) for plugin in checks.made} == {(1, 1)}


def test_closing_under_load(backend, hammered) -> None:
    """Every call is whole, or says that the manager is closed; all threads of it are gone."""
    manager, checks = hammered
    manager.register_plugin("x", checks)
    begun = threading.Barrier(3)
    processed, refusals = [], []

    def send(size):
        begun.wait(LIMIT)
        for number in range(100_000):
            values = [b"%d %d %d" % (size, number, i) for i in range(size)]
            try:
                processed.extend(manager.process_batch("x", values).output.to_pylist())
            except PluginError as error:
                refusals.append((type(error), str(error)))
                return

    def close():
        begun.wait(LIMIT)
        threading.Event().wait(0.05)
        manager.close()

    run_threads(lambda: send(5), lambda: send(5000), close)
    assert refusals == [(PluginError, "the manager is closed")] * 2
    seen = [value for plugin in checks.made for value in plugin.seen]
    assert sorted(seen) == sorted(processed)
    assert {(plugin.begun, plugin.ended) for plugin in checks.made} == {(1, 1)}


def test_a_chain_begins_and_ends_each_member_once(backend, manager, make_class) -> None:
    """Also one that is in it twice, and if one behind it fails to begin."""
    kind, broken = make_class(), make_class(fail_at(0, OSError("no")))
    twice, other = kind(), kind()
    manager.register_plugin("x", backend.Chain(twice, other, twice))
    manager.unregister_plugin("x")
    assert [twice.events, other.events] == [["initialize", "cleanup"]] * 2
    first = kind()
    with pytest.raises(PluginInitializationError):
        manager.register_plugin("x", backend.Chain(first, first, broken()))
    assert first.events == ["initialize", "cleanup"]
