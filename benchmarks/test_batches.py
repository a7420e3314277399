"""How large batches become by themselves: P10."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from statistics import median
from time import process_time as clock

import pytest

from benchmarks.peers import has_needle
from benchmarks.targets import FIXED_SIZES, fixed
from benchmarks.workload import NEEDLE
from dataflare import (
    BatchConfig,
    BatchResult,
    DataFlarePlugin,
    PluginManager,
    PluginManagerConfig,
    filter_plugin,
)
from dataflare.plugins import Contains

REACHED = 30
"""Batches within which the size must be found."""

JOBS = {
    "native F": (lambda: Contains(NEEDLE), 0.05, 1_000_000),
    "Python F": (lambda: filter_plugin(has_needle), 0.05, 200_000),
    "Python F in 2 ms": (lambda: filter_plugin(has_needle), 0.002, 200_000),
}
"""By name: the plugin, the target latency in seconds, the lines of a turn."""


class Stream:
    """A stream without end, and what its batches took."""

    def __init__(self, manager: PluginManager, lines: list[bytes]) -> None:
        self.results: Iterator[BatchResult] = manager.process_stream("plugin", cycle(lines))
        self.sizes: list[int] = []
        self.latencies: list[float] = []
        self.best = float("inf")

    def advance(self) -> int:
        started = clock()
        size = next(self.results).processed_count
        self.latencies.append(clock() - started)
        self.sizes.append(size)
        return size

    def turn(self, count: int) -> None:
        """At least so many lines; the fastest turn counts."""
        done, started = 0, clock()
        while done < count:
            done += self.advance()
        self.best = min(self.best, (clock() - started) / done)

    def p95(self, start: int = 0) -> float:
        latencies = sorted(self.latencies[start:])
        return latencies[int(0.95 * len(latencies))]


def manager_of(plugin: DataFlarePlugin, **config: float | bool) -> PluginManager:
    manager = PluginManager(PluginManagerConfig(batch_config=BatchConfig(**config)))
    manager.register_plugin("plugin", plugin)
    manager.pool.warmup()
    return manager


def batches_to_settle(manager: PluginManager, lines: list[bytes]) -> int:
    """Until the size stays within a tenth of what it is after twice the batches allowed."""
    stream = Stream(manager, lines)
    for _ in range(2 * REACHED):
        stream.advance()
    last = stream.sizes[-1]
    far = [i for i, size in enumerate(stream.sizes) if not 0.9 * last <= size <= 1.1 * last]
    return far[-1] + 1 if far else 0


@pytest.mark.parametrize("job", JOBS)
def test_p10(job, benchmark, lines, quick):
    make, target, count = JOBS[job]
    most = FIXED_SIZES[-1]
    sizes = [size for size in FIXED_SIZES if not quick or size <= 1600]
    with ExitStack() as stack:

        def stream(**config: float | bool) -> Stream:
            manager = stack.enter_context(manager_of(make(), target_latency=target, **config))
            return Stream(manager, lines)

        ours = stream(max_batch_size=most)
        by_size = {
            size: stream(
                default_batch_size=size, max_batch_size=size, enable_auto_optimization=False
            )
            for size in sizes
        }
        for _ in range(REACHED):
            ours.advance()

        def turn() -> None:
            for each in (ours, *by_size.values()):
                each.turn(len(lines) // 10 if quick else count)

        benchmark.group = f"P10 {job}"
        benchmark.pedantic(turn, rounds=1 if quick else 15, warmup_rounds=0 if quick else 1)
        manager = stack.enter_context(
            manager_of(make(), target_latency=target, max_batch_size=most)
        )
        settled = median(batches_to_settle(manager, lines) for _ in range(1 if quick else 9))
    keeps = {size: each for size, each in by_size.items() if each.p95() <= target}
    benchmark.extra_info["rows"] = [
        ("P10", job, "DataFlare", ours.best * 1e9),
        *(("P10", job, fixed(size), each.best * 1e9) for size, each in keeps.items()),
        ("P10 settled", job, "DataFlare", settled),
        ("P10 latency", job, "DataFlare", ours.p95(REACHED) * 1e3),
    ]
    benchmark.extra_info["size"] = ours.sizes[-1]
    with manager_of(make(), max_batch_size=most) as manager:
        found = []
        for result in manager.process_stream("plugin", iter(lines)):
            found += result.output.to_pylist()
        assert found == [line for line in lines if NEEDLE in line]
    assert all(1 <= size <= most for size in islice(ours.sizes, 1, None))
