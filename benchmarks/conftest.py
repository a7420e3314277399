"""One CPU for everybody, the lines, and the function that measures."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import copy
from sysconfig import get_config_var, get_path
from time import process_time
from types import ModuleType
from typing import Any

import pytest

import dataflare
from benchmarks.workload import JOBS, LINES, PLUGINS, answer, log_lines
from dataflare import BatchConfig, MemoryPoolConfig, PluginManager, PluginManagerConfig
from dataflare._backend import simd_level

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
# Read when polars, pyarrow and daft are loaded: one thread each, and nothing is reported home.
os.environ.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1", DAFT_ANALYTICS_ENABLED="0")

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="every benchmark once, on little input")


def pytest_configure() -> None:
    if dataflare.backend != "cython":
        raise pytest.UsageError("the benchmarks measure the compiled backend: install that one")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["dataflare"] = f"{dataflare.__version__} with {simd_level()} kernels"


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture(scope="session")
def lines(quick: bool) -> list[bytes]:
    return log_lines(20_000 if quick else LINES)


@pytest.fixture(scope="session")
def answers(lines: list[bytes]) -> dict[str, list[bytes]]:
    """What must come out, by job."""
    return {job: answer(job, lines) for job in JOBS}


@pytest.fixture(scope="module")
def manager() -> Iterator[PluginManager]:
    # Slabs enough for the output of a million records at once.
    config = PluginManagerConfig(
        memory_pool_config=MemoryPoolConfig(max_huge_buffers=40),
        batch_config=BatchConfig(enable_parallel=False),
    )
    with PluginManager(config) as manager:
        manager.pool.warmup()
        for job, plugin in PLUGINS.items():
            manager.register_plugin(job, plugin)
        yield manager


@pytest.fixture(scope="module")
def loaded(lines: list[bytes]) -> Callable[[str], Any]:
    """The lines in the form that a peer likes best."""
    from benchmarks.peers import PEERS  # reads the variables above

    forms: dict[str, Any] = {}

    def load(who: str) -> Any:
        if who not in forms:
            forms[who] = PEERS[who].load(lines)
        return forms[who]

    return load


@pytest.fixture
def measure(benchmark: Any, quick: bool) -> Callable[..., Any]:
    """Measure a function that does something `count` times, and return its answer.

    The answer of the round before is dropped before the clock starts, for everybody alike.
    """

    def run(
        target: str, job: str, who: str, function: Callable[[], Any], count: int, rounds: int = 9
    ) -> Any:
        kept: list[Any] = []
        benchmark.group = f"{target} {job}"
        benchmark.extra_info.update(target=target, job=job, who=who, count=count)
        benchmark.pedantic(
            lambda: kept.append(function()),
            setup=kept.clear,
            rounds=1 if quick else rounds,
            warmup_rounds=0 if quick else 1,
        )
        return kept.pop()

    return run


@pytest.fixture
def compare(benchmark: Any, quick: bool) -> Callable[..., dict[str, Any]]:
    """Measure functions in turn, for targets that are narrow ratios; return their answers.

    What disturbs the machine for longer than a turn then disturbs all of them alike. `prepare` is
    called before each of them, outside the clock.
    """

    def run(
        target: str,
        job: str,
        functions: dict[str, Callable[[], Any]],
        count: int,
        rounds: int,
        clock: Callable[[], float] = process_time,
        prepare: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        seconds: dict[str, list[float]] = {who: [] for who in functions}
        answers: dict[str, Any] = {}

        def turn() -> None:
            for who, function in functions.items():
                answers.pop(who, None)
                prepare()
                started = clock()
                answers[who] = function()
                seconds[who].append(clock() - started)

        benchmark.group = f"{target} {job}"
        benchmark.pedantic(turn, rounds=1 if quick else rounds, warmup_rounds=0 if quick else 1)
        benchmark.extra_info["rows"] = [
            (target, job, who, min(taken) * 1e9 / count) for who, taken in seconds.items()
        ]
        return answers

    return run


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """Builds a .pyx of this folder against the dataflare that is installed, and imports it."""

    def build(name: str) -> ModuleType:
        folder = tmp_path_factory.mktemp(name)
        copy(HERE / f"{name}.pyx", folder)
        module = folder / f"{name}{EXTENSION_SUFFIXES[0]}"
        subprocess.run(
            [sys.executable, "-P", "-m", "cython", "-3", f"{name}.pyx"], cwd=folder, check=True
        )
        subprocess.run(
            [
                *shlex.split(get_config_var("LDSHARED")),
                *("-O2", "-fPIC", "-I", get_path("include"), "-I", dataflare.get_include()),
                *(f"{name}.c", "-o", module),
            ],
            cwd=folder,
            check=True,
        )
        spec = spec_from_file_location(name, module)
        loaded = module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    return cache(build)
