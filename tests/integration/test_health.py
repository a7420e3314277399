"""Health checks: a verdict for every part, whatever the part does."""

import ctypes
import gc
import threading

import pytest
from helpers import LIMIT, run_threads, threads_named, wait_until

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import PluginMemoryError, UnhealthyError
from dataflare.types import PluginState

POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


@pytest.fixture
def answering(backend):
    """A function that makes a plugin whose health check is the given function."""

    def make(answer):
        class Answers(backend.DataFlarePlugin):
            def process(self, record):
                return backend.PluginResult.skip()

            def health_check(self):
                return answer()

        return Answers()

    return make


def raising(error):
    """A function that raises."""

    def answer():
        raise error

    return answer


def verdict_of(manager, name="x", **arguments):
    """What the check says of a plugin: verdict and reason."""
    health = manager.health_check(**arguments).plugins[name]
    return health.verdict.value, health.reason


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (lambda: True, "healthy", "it is fit for work"),
        (lambda: 1, "healthy", "it is fit for work"),
        (lambda: False, "unhealthy", "its health check says that it is not fit for work"),
        (lambda: None, "unhealthy", "its health check says that it is not fit for work"),
        (raising(OSError("no disk")), "unhealthy", "its health check failed: OSError: no disk"),
        (raising(SystemExit(3)), "unhealthy", "its health check failed: SystemExit: 3"),
        (raising(ValueError()), "unhealthy", "its health check failed: ValueError"),
    ],
)
def test_what_a_plugin_answers(manager, answering, answer, verdict, reason) -> None:
    """Its verdict, and a reason; the other parts have theirs."""
    manager.register_plugin("x", answering(answer))
    manager.register_plugin("y", answering(lambda: True))
    report = manager.health_check()
    assert (report.plugins["x"].verdict.value, report.plugins["x"].reason) == (verdict, reason)
    assert report.plugins["y"].verdict.value == "healthy"
    assert report.is_healthy == (verdict == "healthy")
    assert report.parts().keys() == {"plugin x", "plugin y", "memory pool", "workers"}
    assert manager.last_health is report
    if verdict == "healthy":
        report.raise_for_status()
    else:
        with pytest.raises(UnhealthyError) as caught:
            report.raise_for_status()
        assert str(caught.value) == f"plugin x: {reason}"


def test_a_plugin_that_hangs_is_not_asked_twice(manager, answering) -> None:
    """Its verdict says for how long; when it answers at last, it is asked anew."""
    release, asked = threading.Event(), []

    def hang():
        asked.append(threading.current_thread())
        assert release.wait(LIMIT)
        return True

    manager.register_plugin("x", answering(hang))
    manager.register_plugin("y", answering(lambda: True))
    for _ in range(5):
        report = manager.health_check(timeout=0.3)
        assert report.plugins["x"].verdict.value == "unhealthy"
        assert "has not answered for" in report.plugins["x"].reason
        assert report.plugins["y"].verdict.value == "healthy"
    assert len(asked) == len(threads_named("dataflare-health")) == 1
    release.set()
    asked[0].join(LIMIT)
    assert verdict_of(manager)[0] == "healthy"
    assert len(asked) == 2


def test_checks_at_once_share_a_question(manager, answering) -> None:
    """And get the same answer."""
    release, asked, verdicts = threading.Event(), [], []

    def answer():
        asked.append(1)
        assert release.wait(LIMIT)
        return False

    def check():
        verdicts.append(verdict_of(manager, timeout=LIMIT))

    def let_go():
        wait_until(lambda: asked)
        threading.Event().wait(0.05)
        release.set()

    manager.register_plugin("x", answering(answer))
    run_threads(check, check, let_go)
    assert verdicts == [("unhealthy", "its health check says that it is not fit for work")] * 2
    assert asked == [1]


def test_a_plugin_is_asked_while_it_works(backend, manager) -> None:
    """By a thread of its own; instances and helpers are asked as well."""
    inside, release, asked = threading.Event(), threading.Event(), []

    class Works(backend.DataFlarePlugin):
        def process(self, record):
            inside.set()
            assert release.wait(LIMIT)
            return backend.PluginResult.skip()

        def health_check(self):
            asked.append(self)
            return True

    manager.register_plugin("x", Works, fallback=Works, dead_letters=Works())
    thread = threading.Thread(target=manager.process_batch, args=("x", [b"a"]))
    thread.start()
    assert inside.wait(LIMIT)
    assert manager.health_check().is_healthy
    assert len({id(plugin) for plugin in asked}) == len(asked) == 6
    release.set()
    thread.join(LIMIT)


def test_one_instance_of_several(backend, manager) -> None:
    """The reason says how many."""
    made = []

    class Some(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def __init__(self):
            self.number = len(made)
            made.append(self)

        def health_check(self):
            return self.number != 2

    manager.register_plugin("x", Some)
    verdict, reason = verdict_of(manager)
    assert verdict == "unhealthy"
    assert reason.endswith("(1 of 4 instances)")


@pytest.mark.parametrize("role", ["fallback", "dead_letters"])
def test_a_helper_that_is_not_fit(backend, manager, answering, role) -> None:
    """The plugin works, but its safety net does not."""
    manager.register_plugin("x", backend.Upper(), **{role: answering(lambda: False)})
    verdict, reason = verdict_of(manager)
    assert verdict == "degraded"
    assert "fallback or plugin for dead letters" in reason


def test_a_disabled_plugin_is_degraded(backend, manager) -> None:
    """Until it is enabled."""
    manager.register_plugin("x", backend.Upper())
    manager.disable_plugin("x")
    assert verdict_of(manager) == ("degraded", "it is disabled")
    manager.health_check().raise_for_status()
    manager.enable_plugin("x")
    assert verdict_of(manager)[0] == "healthy"


def test_an_open_circuit_is_unhealthy(backend) -> None:
    """Until the plugin works again; while it is probed it is degraded."""
    verdicts, broken = [], [True]

    class Breaks(backend.DataFlarePlugin):
        def process(self, record):
            if broken[0]:
                raise ValueError("broken")
            verdicts.append(verdict_of(manager))
            return backend.PluginResult.skip()

    recovery = FailureRecoveryConfig(circuit_breaker_recovery_time=1000)
    config = PluginManagerConfig(memory_pool_config=POOL, failure_recovery=recovery)
    with backend.PluginManager(config) as manager:
        manager.register_plugin("x", Breaks())
        manager.process_batch("x", [b"a"] * 20)
        verdict, reason = verdict_of(manager)
        assert verdict == "unhealthy"
        assert reason.startswith("its circuit is open for another ")
        assert manager.get_plugin("x").get_state() is PluginState.ERROR
        breaker = manager._services["x"].breaker
        breaker._clock = lambda: breaker._opened + 1000
        broken[0] = False
        manager.process_batch("x", [b"a"])
        assert verdicts == [("degraded", "its circuit is being probed")]
        assert verdict_of(manager)[0] == "healthy"


def test_an_empty_pool_is_degraded(backend) -> None:
    """The sentence says which slabs are out; it is well when they are back."""
    config = PluginManagerConfig(
        memory_pool_config=MemoryPoolConfig(max_tiny_buffers=2, max_huge_buffers=0)
    )
    with backend.PluginManager(config) as manager:
        assert manager.health_check().pool.verdict.value == "healthy"
        held = [manager.pool.get_buffer(1) for _ in range(2)]
        pool = manager.health_check().pool
        assert (pool.verdict.value, "TINY" in pool.reason) == ("degraded", True)
        del held
        gc.collect()
        assert manager.health_check().is_healthy
    assert manager.health_check().pool.verdict.value == "unhealthy"
    silent = PluginManagerConfig(memory_pool_config=MemoryPoolConfig(enable_metrics=False))
    with backend.PluginManager(silent) as manager:
        assert manager.health_check().is_healthy


def test_the_workers_are_counted(backend, manager) -> None:
    """Those that run, of those that there may be."""
    manager.register_plugin("x", backend.map_plugin(bytes, thread_safe=True))
    assert manager.health_check().workers.reason == "0 of at most 3 threads are running"


def test_what_is_wrong_is_logged(manager, answering, caplog) -> None:
    """A warning for each part that is not healthy, none for the others."""
    manager.register_plugin("good", answering(lambda: True))
    manager.register_plugin("bad", answering(lambda: False))
    manager.health_check()
    (message,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert message.startswith("plugin bad is unhealthy: ")


def test_a_health_check_may_close_its_manager(backend, answering) -> None:
    """Asked by the monitor, or by a caller that would wait long: nobody waits for the other."""
    for by_monitor in (True, False):
        closed = threading.Event()
        config = PluginManagerConfig(
            memory_pool_config=POOL,
            health_check_timeout=float("inf"),
            health_check_interval=0.01 if by_monitor else float("inf"),
        )
        manager = backend.PluginManager(config)

        def close(manager=manager, closed=closed):
            manager.close()
            closed.set()
            return True

        manager.register_plugin("x", answering(close))
        if not by_monitor:
            run_threads(manager.health_check)
        assert closed.wait(LIMIT)


def test_plugins_that_are_gone_are_forgotten(manager, answering) -> None:
    """Also if they never answered while they were registered."""
    release = threading.Event()
    for i in range(3):
        manager.register_plugin(f"{i}", answering(lambda: release.wait(LIMIT)))
        manager.health_check(timeout=0)
        manager.unregister_plugin(f"{i}")
    release.set()
    wait_until(lambda: not threads_named("dataflare-health"))
    manager.health_check()
    assert manager._observe()._probes._open == {}


@pytest.mark.parametrize(
    ("timeout", "error"), [("1", TypeError), (float("nan"), ValueError), (-1, ValueError)]
)
def test_a_timeout_is_a_duration(manager, timeout, error) -> None:
    """Anything else is refused with a sentence."""
    with pytest.raises(error, match="timeout must be"):
        manager.health_check(timeout=timeout)


def test_buffers_that_are_out_ever_more(backend) -> None:
    """Growth at each of ten checks counts as a leak; a single check without it does not."""
    with backend.PluginManager() as manager:
        kept = []
        for _ in range(9):
            kept.append(manager.pool.get_buffer(100))
            assert manager.health_check().pool.verdict.value == "healthy"
        kept.append(manager.pool.get_buffer(100))
        found = manager.health_check().pool
        assert found.verdict.value == "degraded"
        assert found.reason == (
            "the buffers that are out grew from 1 to 10 over the last 10 checks: "
            "somebody keeps results or buffers"
        )
        assert manager.health_check().pool.verdict.value == "healthy"
        kept.clear()


def test_debug_mode_says_what_leaks_and_what_is_wrong(backend) -> None:
    """Where the oldest buffer was taken; and violations before anything else."""
    with backend.PluginManager(PluginManagerConfig(enable_debug_mode=True)) as manager:
        kept = []
        for _ in range(10):
            kept.append(manager.pool.get_buffer(100))
            found = manager.health_check().pool
        assert f"such as the one taken at {__file__}:" in found.reason
        buffer = kept.pop()
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + 100, 1, 1)
        with pytest.raises(PluginMemoryError):
            manager.pool.return_buffer(buffer)
        found = manager.health_check().pool
        assert found.verdict.value == "degraded"
        assert found.reason.startswith("debug mode found 1 violation, at last: ")
        kept.clear()


def test_threads_that_died_or_cannot_be_had(backend, monkeypatch) -> None:
    """Batches are processed all the same."""
    config = PluginManagerConfig(batch_config=BatchConfig(parallelism=3))
    with backend.PluginManager(config) as manager:
        workers = manager._workers

        def refuse(thread):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert workers.run(len, ["a", "bc"], lambda part, error: -1) == [1, 2]
        found = manager.health_check().workers
        assert (found.verdict.value, found.reason) == (
            "degraded", "the system starts no more threads: 0 of 2 are running"
        )  # fmt: skip

        inside = threading.Barrier(3)

        def die(part):
            inside.wait(LIMIT)
            if threading.current_thread() is not threading.main_thread():
                raise SystemExit
            return part

        assert sorted(workers.run(die, [0, 0, 0], lambda part, error: 1)) == [0, 1, 1]
        wait_until(lambda: workers.alive == 0)
        found = manager.health_check().workers
        assert (found.verdict.value, found.reason) == (
            "degraded", "2 threads died; the next batch that is shared out replaces them"
        )  # fmt: skip
        workers.run(len, ["a", "bc"], lambda part, error: -1)
        assert manager.health_check().workers.verdict.value == "healthy"


def test_the_end_during_a_check(backend, answering) -> None:
    """Who was not waited for is not blamed; what was said before stands."""
    release, asked, reports = threading.Event(), threading.Event(), []

    def hang():
        asked.set()
        return release.wait(LIMIT)

    manager = backend.PluginManager()
    manager.register_plugin("unfit", answering(lambda: False))
    manager.register_plugin("slow", answering(hang))

    def end():
        assert asked.wait(LIMIT)
        wait_until(lambda: len(threads_named("dataflare-health")) == 1)  # "unfit" has answered
        manager.close()

    run_threads(lambda: reports.append(manager.health_check(timeout=LIMIT)), end)
    release.set()
    [report] = reports
    assert report.plugins["slow"].verdict.value == "healthy"
    assert report.plugins["unfit"].verdict.value == "unhealthy"
