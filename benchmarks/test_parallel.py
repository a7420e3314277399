"""A batch shared out among threads: P7."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import pytest

from benchmarks.workload import as_block
from dataflare import BatchConfig, PluginManager, PluginManagerConfig, RecordBatch

pytestmark = pytest.mark.benchmark(timer=perf_counter)

ALL = os.sched_getaffinity(os.getppid()) if hasattr(os, "sched_getaffinity") else set()


@contextmanager
def every_processor() -> Iterator[None]:
    """The other benchmarks are bound to one."""
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def manager_of(threads: int) -> PluginManager:
    batches = BatchConfig(enable_parallel=threads > 1, parallelism=threads)
    return PluginManager(PluginManagerConfig(batch_config=batches))


def test_p7(compare, native, lines, quick):
    batch = RecordBatch.from_lines(as_block(lines))
    plugin = native("checksum").Checksum
    with every_processor(), manager_of(2) as two, manager_of(1) as one:
        for manager in (two, one):
            manager.pool.warmup()
            manager.register_plugin("checksum", plugin())
        functions = {
            "DataFlare": lambda: two.process_batch("checksum", batch),
            "one thread": lambda: one.process_batch("checksum", batch),
        }
        found = compare("P7", "checksum", functions, len(lines), rounds=9, clock=perf_counter)
        # Threads that were shared out in the first round are there in all others.
        assert two.get_system_status().workers == (1 if len(lines) >= 4096 else 0)
    assert found["DataFlare"].output.to_pylist() == found["one thread"].output.to_pylist()
