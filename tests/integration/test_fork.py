"""A process that is forked: the child can go on where the parent was."""

import pytest
from helpers import run_script

BEGIN = '''
import faulthandler, os, signal, threading, time
import dataflare.plugins
from dataflare import BatchConfig, FailureRecoveryConfig, PluginManager, PluginManagerConfig

faulthandler.register(signal.SIGALRM, chain=True)

def manager_of(**recovery):
    return PluginManager(PluginManagerConfig(
        batch_config=BatchConfig(parallelism=3),
        failure_recovery=FailureRecoveryConfig(retry_interval=0, **recovery),
    ))

def in_child(check):
    """Fork, and let the child check something, in half a minute at most."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            check()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0

VALUES = [b"%d" % i for i in range(10_000)]

class Slow(dataflare.DataFlarePlugin):
    """Shared; waits at b'wait' until it is told to go on."""
    releases_gil = True
    begun, release = threading.Event(), threading.Event()

    def process(self, record):
        if record.value == b"wait":
            self.begun.set()
            assert self.release.wait(30)
        return dataflare.PluginResult.success(record.value + b"!")
'''


@pytest.fixture
def run(backend):
    """A function that runs a script on this backend."""
    return lambda code: run_script(backend.name, BEGIN + code)


def test_the_child_shares_batches_with_threads_of_its_own(run) -> None:
    """Those of the parent are not there, and it goes on undisturbed."""
    run("""
with manager_of() as manager:
    manager.register_plugin("x", dataflare.plugins.Upper())
    manager.register_plugin("y", Slow)

    def check():
        assert manager.get_system_status().workers == 0
        for _ in range(3):
            assert manager.process_batch("x", VALUES).output.to_pylist() == VALUES
            result = manager.process_batch("y", VALUES)
            assert result.output.to_pylist() == [value + b"!" for value in VALUES]
        assert manager.get_system_status().workers == 2
        assert manager.get_metrics("y").total_processed == 4 * len(VALUES)
        assert manager.health_check().is_healthy
        manager.close()

    manager.process_batch("x", VALUES)
    manager.process_batch("y", VALUES)
    in_child(check)
    in_child(lambda: in_child(check))
    assert manager.process_batch("y", VALUES).success_count == len(VALUES)
""")


def test_calls_of_other_threads_are_gone_in_the_child(run) -> None:
    """Their instances are free, in the right state, and can be taken out of service."""
    run("""
with manager_of() as manager:
    manager.register_plugin("shared", Slow)
    manager.register_plugin("single", Slow())

    def check():
        for name in ("shared", "single"):
            assert manager.get_plugin(name).get_state() is dataflare.PluginState.READY
            assert manager.get_system_status().plugins[name].running == 0
            for _ in range(5):
                assert manager.process_batch(name, VALUES).success_count == len(VALUES)
            record = dataflare.PluginRecord(b"a")
            assert manager.process_record(name, record).data == b"a!"
            manager.replace_plugin(name, Slow)
            manager.unregister_plugin(name)
        manager.close()

    waiting = [b"wait", *VALUES, b"wait"]
    threads = [
        threading.Thread(target=manager.process_batch, args=(name, waiting))
        for name in ("shared", "single", "single")
    ]
    for thread in threads:
        thread.start()
    assert Slow.begun.wait(30)
    time.sleep(0.05)
    in_child(check)
    Slow.release.set()
    for thread in threads:
        thread.join()
    for name, calls in (("shared", 1), ("single", 2)):
        assert manager.get_metrics(name).successful == calls * len(waiting)
""")


def test_a_fork_at_any_moment(run) -> None:
    """Threads that send, fail, retry and probe are cut off wherever they are."""
    run("""
import random

class Fails(dataflare.DataFlarePlugin):
    releases_gil = True

    def process(self, record):
        if random.random() < 0.2:
            raise dataflare.PluginError("at random", retryable=True)
        return dataflare.PluginResult.skip()

letters = []
with manager_of(circuit_breaker_recovery_time=0, circuit_breaker_threshold=0.1) as manager:
    manager.register_plugin(
        "x", Fails, fallback=dataflare.plugins.Upper(), dead_letters=letters.append
    )
    stop = threading.Event()

    def send():
        record = dataflare.PluginRecord(b"a")
        while not stop.is_set():
            manager.process_batch("x", VALUES[:50])
            manager.process_record("x", record)
            manager.take_sample()

    def check():
        for _ in range(20):
            manager.process_batch("x", VALUES[:100])
        manager.take_sample()
        assert manager.health_check().plugins.keys() == {"x"}
        manager.close()

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(25):
        in_child(check)
    stop.set()
    for thread in threads:
        thread.join()
""")


def test_the_caller_of_a_batch_may_fork(run) -> None:
    """Inside its plugin: the child has an error for what others were at, and ends its batch."""
    run("""
class Forks(dataflare.DataFlarePlugin):
    releases_gil = True
    parent = os.getpid()
    children = []

    def process(self, record):
        if record.value == b"fork" and threading.current_thread() is threading.main_thread():
            child = os.fork()
            if child:
                self.children.append(child)
        return dataflare.PluginResult.skip()

with manager_of(circuit_breaker_threshold=1) as manager:
    manager.register_plugin("x", Forks)
    result = manager.process_batch("x", [b"fork", *VALUES])
    assert len(result) == 1 + len(VALUES)
    if os.getpid() != Forks.parent:
        again = manager.process_batch("x", VALUES)
        os._exit(0 if again.skipped_count == len(VALUES) else 1)
    assert result.skipped_count == 1 + len(VALUES)
    assert Forks.children
    for child in Forks.children:
        assert os.waitpid(child, 0)[1] == 0
""")


def test_dead_letters_are_written_once(run, tmp_path) -> None:
    """By the parent or by the child, never by both; lines do not mix."""
    run(f"""
path = {str(tmp_path / "dead.jsonl")!r}

@dataflare.map_plugin
def fails(value):
    raise ValueError("no")

with manager_of(circuit_breaker_threshold=1) as manager:
    manager.register_plugin("x", fails, dead_letters=path)
    manager.process_batch("x", VALUES[:10])

    def check():
        manager.process_batch("x", VALUES[10:20])
        manager.close()

    in_child(check)
    manager.process_batch("x", VALUES[20:30])

import json
records = [json.loads(line)["record"] for line in open(path)]
assert records == [str(i) for i in range(30)], records
""")


def test_the_monitor_goes_on_in_the_child(run) -> None:
    """With a thread of its own, that ends with its manager."""
    run("""
config = PluginManagerConfig(monitoring_interval=0.01)
with PluginManager(config) as manager:
    manager.register_plugin("x", dataflare.plugins.Upper())

    def check():
        before = len(manager.samples)
        while len(manager.samples) < before + 3:
            time.sleep(0.001)
        manager.close()
        assert [thread.name for thread in threading.enumerate()
                if thread.name == "dataflare-monitor"] == []

    in_child(check)
""")


FILES = {
    # Each is a plugin's file that was written for a plain import, where it works.
    "a thread that uses the library": """
def use():
    with dataflare.PluginManager() as manager:
        manager.register_plugin("p", p)
        manager.get_metrics("p")
thread = threading.Thread(target=use)
thread.start()
thread.join()
""",
    "a thread that forks": """
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
thread = threading.Thread(target=fork)
thread.start()
thread.join()
""",
    "a pool that renews its processes": """
import math
import multiprocessing
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    pool.map(math.sqrt, range(3), chunksize=1)
""",
    "threads while another thread forks": """
from concurrent.futures import ThreadPoolExecutor
__main__.loading.set()
time.sleep(0.1)
with ThreadPoolExecutor(2) as pool:
    list(pool.map(abs, range(4)))
""",
    "a module that uses the library, and that another thread imports": """
__main__.loading.set()
time.sleep(0.05)
import module_beside
""",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_does_while_it_is_loaded(run, tmp_path, kind) -> None:
    """What it likes: no lock is held that another thread, or a fork, has to wait for."""
    (tmp_path / "file.py").write_text(f"""
import os, threading, time, __main__, dataflare

@dataflare.map_plugin
def p(value):
    return value + b"!"
{FILES[kind]}""")
    (tmp_path / "module_beside.py").write_text("""
import time, dataflare
time.sleep(0.1)
with dataflare.PluginManager() as manager:
    manager.get_all_metrics()
""")
    run(f"""
import sys

loading = threading.Event()
faulthandler.dump_traceback_later(30, exit=True)
sys.path.append({str(tmp_path)!r})

def disturb():
    assert loading.wait(30)
    in_child(lambda: None)
    import module_beside

thread = threading.Thread(target=disturb)
thread.start()
with PluginManager() as manager:
    manager.register_plugin("x", {str(tmp_path / "file.py:p")!r})
    assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"a!"]
loading.set()
thread.join()
""")


def test_a_fork_while_another_thread_loads_a_file(run, tmp_path) -> None:
    """The child has half a module of it, and loads it anew."""
    (tmp_path / "slow.py").write_text("""
import __main__, dataflare
__main__.loading.set()
assert __main__.may_go_on.wait(30)

@dataflare.map_plugin
def p(value):
    return value + b"!"
""")
    run(f"""
loading, may_go_on = threading.Event(), threading.Event()

def load():
    with PluginManager() as manager:
        manager.register_plugin("x", {str(tmp_path / "slow.py:p")!r})
        assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"a!"]

def load_in_child():
    may_go_on.set()
    load()

thread = threading.Thread(target=load)
thread.start()
assert loading.wait(30)
in_child(load_in_child)
may_go_on.set()
thread.join()
""")
