"""Whether a plugin gives the same results, however its records come to it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from dataflare._backend import (
    Chain,
    Contains,
    DataFlarePlugin,
    PluginRecord,
    RecordBatch,
    Replace,
    Upper,
    run_batch,
)
from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import PluginError, sentence_of
from dataflare.manager import PluginManager
from dataflare.testing.properties import compare, native, on_one_thread, on_whole_batches, prop
from dataflare.testing.subject import (
    EscapedError,
    NotReadyError,
    Outcome,
    Ran,
    Subject,
    fresh,
    ran,
    row,
    run_all,
    run_one,
)

__all__ = ["PROPERTIES"]


@prop(
    "The same records give the same results again.",
    compares=True,
    hint="; if it is meant to: stateful=True, or deterministic=False",
)
def deterministic(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        first = run_all(plugin, subject.batch(records))
        if not subject.claims.stateful:
            compare(first, run_all(plugin, subject.batch(records)), "at first", "the second time")
    if subject.claims.stateful:
        compare(first, subject.run(records), "at first", "the second time")


@prop("A batch gives what its records give one by one.", compares=True, unless=on_whole_batches)
def batch_is_its_records(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        alone = [run_one(plugin, record) for record in subject.copies(records)]
    whole = subject.run(records)
    compare(Ran(alone, whole.output), whole, "alone", "in a batch")


@prop("How records are cut into batches changes nothing.", compares=True, unless=on_whole_batches)
def batch_size_does_not_matter(subject: Subject, records: Sequence[PluginRecord]) -> None:
    whole = subject.run(records)
    for bounds in _cuts(len(records)):
        parts = Ran([], [])
        with subject.ready() as plugin:
            for start, stop in itertools.pairwise(bounds):
                part = run_all(plugin, subject.batch(records[start:stop]))
                parts.outcomes.extend(part.outcomes)
                parts.output.extend(part.output)
        compare(whole, parts, "in one batch", f"in batches that begin at {bounds[:-1]}")


def _cuts(length: int) -> Iterator[list[int]]:
    """Ways to cut a batch: where each part begins, and where the last one ends."""
    sizes = [size for size in (1, 2, 3, 7, 100) if size < length]
    yield from ([*range(0, length, size), length] for size in sizes)
    places = range(1, length) if length <= 12 else (1, length // 3, length // 2, length - 1)
    yield from ([0, place, length] for place in places)


@prop("How many threads share a batch changes nothing.", compares=True, unless=on_one_thread)
def workers_do_not_matter(subject: Subject, records: Sequence[PluginRecord]) -> None:
    if len(records) < 2:  # nothing to share
        return
    alone = subject.run(records)
    subject.rest()  # if there is but one instance, others start it now
    halves = _in_threads(subject, records)
    compare(alone, halves, "on one thread", "with an instance for each half")
    for count in (2, 3):
        with PluginManager(_parallel(count)) as manager:
            try:
                manager.register_plugin("plugin", subject.source, subject.config)
            except PluginError as error:
                raise NotReadyError(sentence_of(error)) from error
            # A batch that is too small to be worth it is shared out as well.
            service = manager._services["plugin"]
            try:
                result = service.large_batch(service.runner, subject.batch(records), 0)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise EscapedError(sentence_of(error)) from error
            shared = ran(result.results, dict(result.errors), result.output)
        compare(alone, shared, "on one thread", f"shared among {count} threads")


def _in_threads(subject: Subject, records: Sequence[PluginRecord]) -> Ran:
    """Each half on a thread with an instance of its own, as far as there are several.

    Which thread of a manager takes which part is a matter of chance.
    """
    halves = [records[: len(records) // 2], records[len(records) // 2 :]]
    outcomes: list[Ran | BaseException] = [Ran([], [])] * len(halves)

    def work(place: int, plugin: DataFlarePlugin) -> None:
        try:
            outcomes[place] = run_all(plugin, subject.batch(halves[place]))
        except BaseException as error:
            outcomes[place] = error

    with ExitStack() as stack:
        plugins = [stack.enter_context(subject.ready(subject.make()))]
        shared = plugins[0].thread_safe or not subject.makes_new
        other = plugins[0] if shared else stack.enter_context(subject.ready(subject.make()))
        plugins.append(other)
        threads = [
            threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(plugins)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    whole = Ran([], [])
    for each in outcomes:
        if isinstance(each, BaseException):
            raise each
        whole.outcomes.extend(each.outcomes)
        whole.output.extend(each.output)
    return whole


def _parallel(count: int) -> PluginManagerConfig:
    return PluginManagerConfig(
        memory_pool_config=MemoryPoolConfig(
            max_tiny_buffers=8,
            max_small_buffers=8,
            max_medium_buffers=8,
            max_large_buffers=2,
            max_huge_buffers=2,
            cleanup_interval=float("inf"),
        ),
        batch_config=BatchConfig(enable_parallel=True, parallelism=count),
        failure_recovery=FailureRecoveryConfig(max_retries=0, circuit_breaker_threshold=1.0),
        max_plugin_instances=count,
        monitoring_interval=float("inf"),
        health_check_interval=float("inf"),
    )


@prop("A chain gives what its plugins give one after the other.", compares=True)
def chaining_does_not_matter(subject: Subject, records: Sequence[PluginRecord]) -> None:
    neighbours: list[tuple[list[DataFlarePlugin], list[DataFlarePlugin]]] = [
        ([], [Upper(), Contains("")]),
        ([Contains(""), Replace("a", "bb")], [Replace("B", "")]),
    ]
    for before, behind in neighbours:
        with subject.ready() as plugin:
            apart = _one_after_the_other([*before, plugin, *behind], subject.batch(records))
        with subject.ready() as plugin:
            chained = run_all(Chain(*before, plugin, *behind), subject.batch(records))
        compare(apart, chained, "apart", "in a chain")


def _one_after_the_other(members: list[DataFlarePlugin], batch: RecordBatch) -> Ran:
    """What a chain should do: each member on what the one before it let through."""
    outcomes: list[Outcome] = [("skip",)] * len(batch)
    origin = list(range(len(batch)))  # of the records that are left, in the input
    output = [row(record) for record in batch]
    for member in members:
        try:
            result = run_batch(member, batch)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise EscapedError(sentence_of(error)) from error
        found = ran(result.results, dict(result.errors), result.output)
        left = []
        for place, outcome in zip(origin, found.outcomes, strict=True):
            if outcome[0] == "success" and outcomes[place][0] == "success":
                # Metadata that a member before gave stay, if this one gives none.
                given = outcome[2] if outcome[2] is not None else outcomes[place][2]
                outcomes[place] = ("success", outcome[1], given)
            elif outcome[0] != "skip":
                outcomes[place] = outcome
            if outcome[0] in ("success", "skip"):
                left.append(place)
        origin, batch, output = left, result.output, found.output
    return Ran(outcomes, output)


@prop("A value is treated alike as bytes and as a view.", compares=True, unless=native)
def views_are_values(subject: Subject, records: Sequence[PluginRecord]) -> None:
    found = []
    for views in (False, True):
        with subject.ready() as plugin:
            alone = [run_one(plugin, fresh(record, views=views)) for record in records]
            found.append(Ran(alone, []))
    compare(found[0], found[1], "as bytes", "as memoryview")


PROPERTIES = (
    deterministic,
    batch_is_its_records,
    batch_size_does_not_matter,
    workers_do_not_matter,
    chaining_does_not_matter,
    views_are_values,
)
