"""What DataFlare does, with figures measured on the spot: the pool, batches, the manager.

    python examples/performance_demo.py [--quick]

Every figure is the best of a few rounds. It needs the extra `cli`, for the tables.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import dataflare
from dataflare import (
    BatchConfig,
    BufferSize,
    FailureRecoveryConfig,
    MemoryPool,
    MemoryPoolConfig,
    PluginManager,
    PluginManagerConfig,
    PluginRecord,
    RecordBatch,
)
from dataflare.plugins import Chain, Contains, Upper

ROUNDS = 5
PAGE = 4096
console = Console()


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest round."""
    return min(timed(work) for _ in range(rounds))


def timed(work: Callable[[], object]) -> float:
    """Seconds of one round; what the work made is dropped outside the clock."""
    began = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - began
    del made
    return seconds


def table(title: str, *heads: str) -> Table:
    """Print a title; give a table whose columns behind the first hold figures."""
    console.print(f"\n[bold]{title}[/bold]")
    made = Table(box=SIMPLE_HEAD)
    for number, head in enumerate(heads):
        made.add_column(head, justify="right" if number else "left")
    return made


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def log_lines(count: int) -> bytes:
    """Lines of a log, of which one in ten is an error; the same ones each time."""
    draw = random.Random(1)
    levels = ("ERROR", "INFO ", "DEBUG", "WARN ")
    return b"".join(
        b"2026-11-23 12:00:00.%03d %s worker-%d request %d done\n"
        % (i % 1000, draw.choices(levels, (1, 6, 2, 1))[0].encode(), i % 8, draw.randrange(10**7))
        for i in range(count)
    )


# The pool


def show_pool(rounds: int) -> None:
    """What buffers cost, and what warming them up saves."""
    console.rule("Memory pool")
    pairs = table("A buffer taken and given back", "size", "pool", "bytearray")
    with MemoryPool() as pool:
        pool.warmup()
        for size in BufferSize:
            repeats = range(max(rounds * 256 // size, 50))

            def pair(size: int = size, repeats: range = repeats) -> None:
                for _ in repeats:
                    pool.return_buffer(pool.get_buffer(size))

            def allocated(size: int = size, repeats: range = repeats) -> None:
                for _ in repeats:
                    bytearray(size)

            pairs.add_row(
                size.name,
                duration(best(pair) / len(repeats)),
                duration(best(allocated) / len(repeats)),
            )
    console.print(pairs)

    touched = table("First write to every page of 20 MiB", "pool", "time", "per page")
    for name, warm in (("cold", False), ("after warmup()", True)):
        seconds = min(first_touch(warm) for _ in range(ROUNDS))
        touched.add_row(name, duration(seconds), duration(seconds * PAGE / (20 << 20)))
    console.print(touched)

    with MemoryPool(MemoryPoolConfig(max_medium_buffers=40)) as pool:
        draw = random.Random(1)
        held = []
        for _ in range(rounds):
            held.append(pool.get_buffer(draw.choice((100, 3_000, 50_000, 200_000, 5_000_000))))
            if len(held) > 50:
                del held[draw.randrange(len(held))]
        stats = pool.get_stats()
        assert stats is not None
        counts = table("Buffers of five sizes, fifty of them held at a time", "what", "figure")
        counts.add_row("requests", f"{stats.allocations:,}")
        counts.add_row("served by a slab (hit rate)", f"{stats.cache_hit_rate:.1%}")
        counts.add_row("bytes asked for / handed out", f"{stats.memory_efficiency:.1%}")
        counts.add_row("most out at a time", f"{stats.peak_in_use:,}")
        del held
        counts.add_row("given back by trim()", f"{pool.trim(0) / 2**20:,.1f} MiB")
    console.print(counts)


def first_touch(warm: bool) -> float:
    """Seconds that the first write to each page of twenty large buffers takes."""
    with MemoryPool(MemoryPoolConfig(max_large_buffers=20)) as pool:
        if warm:
            pool.warmup()
        views = [memoryview(pool.get_buffer(BufferSize.LARGE)) for _ in range(20)]

        def touch() -> None:
            for view in views:
                view[::PAGE] = bytes(len(view) // PAGE)

        seconds = timed(touch)
        views.clear()
    return seconds


# Batches


@dataflare.map_plugin
def upper(value: bytes) -> bytes:
    """The same as `Upper`, in Python."""
    return value.upper()


class UpperClass(dataflare.DataFlarePlugin):
    """The same once more, as a class."""

    def process(self, record: PluginRecord) -> dataflare.PluginResult:
        return dataflare.PluginResult.success(bytes(record.value).upper())


def show_batches(count: int) -> None:
    """The same lines through plugins of every kind."""
    console.rule("Batches")
    text = log_lines(count)
    lines = RecordBatch.from_lines(text)
    serial = PluginManagerConfig(batch_config=BatchConfig(enable_parallel=False))
    kinds = table(f"{count:,} lines, {len(text) / 2**20:.1f} MiB, one thread", "plugin",
                  "time", "per record", "records/s", "out")  # fmt: skip
    with PluginManager(serial) as manager:
        for name, plugin in (
            ("native: contains ERROR", Contains("ERROR")),
            ("native: upper-case", Upper()),
            ("native, fused: both", Chain(Contains("ERROR"), Upper())),
            ("Python function: upper-case", upper),
            ("Python class: upper-case", UpperClass()),
            ("both: native filter, then Python", Chain(Contains("ERROR"), upper)),
        ):
            manager.register_plugin(name, plugin)
            seconds = best(lambda name=name: manager.process_batch(name, lines))
            kept = len(manager.process_batch(name, lines).output)
            manager.unregister_plugin(name)  # `upper` can be in one place at a time
            kinds.add_row(name, duration(seconds), duration(seconds / count),
                          f"{count / seconds:,.0f}", f"{kept:,}")  # fmt: skip
    console.print(kinds)
    show_threads(lines)
    show_stream(lines)


class Ask(dataflare.DataFlarePlugin):
    """Waits for a service that takes a millisecond."""

    thread_safe = True
    releases_gil = True

    def process(self, record: PluginRecord) -> dataflare.PluginResult:
        time.sleep(0.001)
        return dataflare.PluginResult.skip()


def show_threads(lines: RecordBatch) -> None:
    """Batches that are shared out, by how many threads work on them."""
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    shared = table(f"Shared out among threads ({processors} processors here)", "threads",
                   "upper-case", "waits 1 ms, 40 records")  # fmt: skip
    for threads in (1, 2, 4):
        batches = BatchConfig(parallelism=threads)
        with PluginManager(PluginManagerConfig(batch_config=batches)) as manager:
            manager.register_plugin("upper", Upper())
            manager.register_plugin("ask", Ask())
            manager.process_batch("ask", lines[:2])  # shows what a record takes
            shared.add_row(
                str(threads),
                duration(best(lambda: manager.process_batch("upper", lines))),
                duration(best(lambda: manager.process_batch("ask", lines[:40]), 2)),
            )
    console.print(shared)


def show_stream(lines: RecordBatch) -> None:
    """A stream, with batches of fixed sizes and with the size that it finds."""
    values = lines.to_pylist()
    sizes = table("A stream of values through the Python function", "batch size", "batches",
                  "last size", "records/s")  # fmt: skip
    for name, automatic, size in (
        ("10, fixed", False, 10),
        ("1,000, fixed", False, 1000),
        ("found, from 10 on", True, 10),
    ):
        batches = BatchConfig(default_batch_size=size, max_batch_size=100_000,
                              enable_auto_optimization=automatic)  # fmt: skip
        with PluginManager(PluginManagerConfig(batch_config=batches)) as manager:
            manager.register_plugin("upper", upper)
            began = time.perf_counter()
            taken = [result.processed_count for result in manager.process_stream("upper", values)]
            rate = len(values) / (time.perf_counter() - began)
        # The last batch is what was left of the stream.
        sizes.add_row(name, f"{len(taken):,}", f"{taken[-2:][0]:,}", f"{rate:,.0f}")
    console.print(sizes)


# The manager


class Flaky(dataflare.DataFlarePlugin):
    """A service that refuses one call in five, and never takes some records."""

    retryable_errors = (ConnectionError,)

    def __init__(self) -> None:
        self.calls = 0
        self.works = True

    def process(self, record: PluginRecord) -> dataflare.PluginResult:
        self.calls += 1
        if not self.works:
            raise RuntimeError("the service is down")
        if self.calls % 5 == 0:
            raise ConnectionResetError("the service hung up")
        if bytes(record.value).endswith(b"7"):
            raise ValueError("a record that nobody takes")
        return dataflare.PluginResult.skip()


def show_manager(count: int) -> None:
    """Single records, failures and what becomes of them, health, metrics."""
    console.rule("Manager")
    recovery = FailureRecoveryConfig(
        retry_interval=0.001,
        circuit_breaker_minimum=100,
        circuit_breaker_window=100,
        circuit_breaker_recovery_time=0.05,
    )
    letters: list[dataflare.DeadLetter] = []
    flaky = Flaky()
    with PluginManager(PluginManagerConfig(failure_recovery=recovery)) as manager:
        manager.register_plugin("native", Upper())
        manager.register_plugin("function", upper)
        manager.register_plugin("flaky", flaky, dead_letters=letters.append)
        record = PluginRecord(b"a record")
        single = table("One record at a time", "plugin", "per record")
        for name in ("native", "function"):

            def records(name: str = name) -> None:
                for _ in range(count):
                    manager.process_record(name, record)

            single.add_row(name, duration(best(records) / count))
        console.print(single)

        story = table("A plugin that fails", "step", "records", "failed", "circuit")

        def step(what: str, size: int) -> None:
            result = manager.process_batch("flaky", [b"record %d" % i for i in range(size)])
            circuit = manager.get_system_status().plugins["flaky"].circuit
            story.add_row(what, f"{size:,}", f"{result.error_count:,}", circuit.value)

        step("one call in five is refused, and tried again", 200)
        flaky.works = False
        step("the service is down", 200)
        step("records are refused without a call", 200)
        flaky.works, flaky.calls = True, 0
        time.sleep(recovery.circuit_breaker_recovery_time)
        step("it works again, and a probe shows it", 200)
        console.print(story)
        console.print(f"{len(letters):,} dead letters, the first: {letters[0].to_json()}")
        show_metrics(manager)


def show_metrics(manager: PluginManager) -> None:
    """What the manager counted meanwhile."""
    counted = table("Metrics", "plugin", "records", "errors", "retries", "dead", "p50", "p99",
                    "records/s")  # fmt: skip
    for name, metrics in manager.get_all_metrics().items():
        counted.add_row(
            name,
            f"{metrics.total_processed:,}",
            f"{metrics.error_rate:.1%}",
            f"{metrics.retries:,}",
            f"{metrics.dead_lettered:,}",
            duration(metrics.p50_latency),
            duration(metrics.p99_latency),
            f"{metrics.average_throughput:,.0f}",
        )
    console.print(counted)
    health = table("Health", "part", "verdict", "reason")
    health.columns[2].justify = "left"
    for part, found in manager.health_check().parts().items():
        health.add_row(part, found.verdict.value, found.reason)
    console.print(health)


def main() -> None:
    """Show all of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="little input: figures mean little")
    quick = parser.parse_args().quick
    console.print(f"DataFlare {dataflare.__version__}, backend {dataflare.backend}")
    show_pool(2_000 if quick else 50_000)
    show_batches(5_000 if quick else 200_000)
    show_manager(500 if quick else 20_000)


if __name__ == "__main__":
    main()
