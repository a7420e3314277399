"""How a plugin treats what it is given, and those who run it."""

from __future__ import annotations

import gc
import itertools
import re
from collections.abc import Sequence

from dataflare._backend import (
    DataFlarePlugin,
    MemoryPool,
    PluginRecord,
    RecordBatch,
    run_batch,
    run_record,
)
from dataflare.errors import PluginError, sentence_of
from dataflare.testing.memory import MIDDLE, GuardedBatch, guarded_lines, parts, small_pool
from dataflare.testing.properties import BrokenError, brief, prop
from dataflare.testing.subject import (
    EscapedError,
    Row,
    Subject,
    count,
    fresh,
    row,
    run_all,
    run_one,
)

__all__ = ["PROPERTIES"]

_STOPS = "that stops the whole batch"
# What the library says of a record when the plugin's answer was none.
_NO_ANSWER = re.compile(
    r"the plugin (returned|committed|forwarded|reserved|left|does not define|gave no reason)\b"
    r"|(process|process_batch|the function) is a coroutine"
    r"|the function returned |process_batch returned |MemoryError: no room for -"
    r"|\w+ does not define "
)


@prop("Nothing but an Exception leaves the plugin.")
def failures_are_exceptions(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        for index, record in enumerate(subject.copies(records)):
            try:
                run_one(plugin, record)
            except EscapedError as escaped:
                raise BrokenError(f"it raises {escaped}: {_STOPS}", index) from None
        try:
            run_all(plugin, subject.batch(records))
        except EscapedError as escaped:
            raise BrokenError(f"it raises {escaped}: {_STOPS}") from None


@prop("Every record gets an answer that the library understands.")
def answers_are_valid(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        try:
            errors = list(run_batch(plugin, subject.batch(records)).errors)
            for index, record in enumerate(subject.copies(records)):
                try:
                    run_record(plugin, record)
                except PluginError as error:
                    errors.append((index, error))
        except KeyboardInterrupt:
            raise
        except BaseException as escaped:
            raise EscapedError(sentence_of(escaped)) from escaped
    for index, failure in errors:
        if _NO_ANSWER.match(str(failure)):
            raise BrokenError(str(failure), index)


@prop(
    "There are records at which it does not fail.",
    together=True,
    hint=": give records that the plugin is made for, by records=",
)
def some_records_work(subject: Subject, records: Sequence[PluginRecord]) -> None:
    counts, why = count(subject, records)
    if counts.failed and counts.failed == counts.all:
        raise BrokenError(f"every record failed, the first with {why}", 0)


@prop(
    "The records that come in are left as they are.",
    crash="the pages of values and keys can only be read",
)
def input_is_unchanged(subject: Subject, records: Sequence[PluginRecord]) -> None:
    for views in (True, False):
        given = [fresh(record, views=views or subject.is_native) for record in records]
        before = [row(record) for record in given]
        with subject.ready() as plugin:
            run_all(plugin, RecordBatch.from_records(given))
            _compare_input(before, given, "in a batch")
            for record in given:
                run_one(plugin, record)
            _compare_input(before, given, "alone")
    if subject.is_native:
        _run_sealed(subject, records)


def _run_sealed(subject: Subject, records: Sequence[PluginRecord]) -> None:
    """A plugin that writes to a record does not come back, even if it puts back what was there."""
    block, lines = guarded_lines(records, MIDDLE)
    block.seal()
    kept = []  # they stay where they are
    with subject.ready(subject.make()) as plugin:
        for part in parts(records):
            guarded = GuardedBatch(part, MIDDLE)
            guarded.seal()
            kept.append(guarded)
            run_all(plugin, guarded.batch)
            for record in guarded.records:
                run_one(plugin, record)
            guarded.release()
        run_all(plugin, lines)


def _compare_input(before: list[Row], given: list[PluginRecord], how: str) -> None:
    for index, (old, record) in enumerate(zip(before, given, strict=True)):
        try:
            new = row(record)
        except ValueError:
            raise BrokenError(f"{how}, the views of the record are released", index) from None
        for name, was, found in zip(("value", "key", "metadata"), old, new, strict=False):
            if was != found:
                raise BrokenError(
                    f"{how}, the {name} {brief(repr(was))} is changed to {brief(repr(found))}",
                    index,
                )


@prop("Memory of the pool goes back.")
def no_buffer_is_leaked(subject: Subject, records: Sequence[PluginRecord]) -> None:
    lines = b"\n".join(bytes(record.value).replace(b"\n", b"") for record in records)
    plugin = subject.make()
    with small_pool() as pool:
        with subject.ready(plugin):
            watched = [pool, *_pools_of(subject, plugin)]
            at_first = _held(watched)
            counts = []
            for _ in range(4):
                run_all(plugin, subject.batch(records), pool)
                run_all(plugin, RecordBatch.from_lines(lines, pool=pool), pool)
                counts.append(_held(watched))
            if all(now > before for before, now in itertools.pairwise(counts)):
                gc.collect()
                if _held(watched) == counts[-1]:
                    raise BrokenError(
                        f"with every batch more buffers are out: {', '.join(map(str, counts))}"
                    )
        if _held(watched) > at_first:
            gc.collect()
        held = _held(watched)
        if held > at_first:
            loans = [loan for each in watched for loan in each.outstanding() or ()]
            size = f", of {loans[-1].size} bytes the last" if loans else ""
            raise BrokenError(f"after its clean-up {held - at_first} buffers are out{size}")


def _held(pools: list[MemoryPool]) -> int:
    total = 0
    for pool in pools:
        stats = pool.get_stats()
        total += len(pool.outstanding() or ()) if stats is None else stats.in_use
    return total


def _pools_of(subject: Subject, plugin: DataFlarePlugin) -> list[MemoryPool]:
    """The pools that a plugin has, or was given."""
    values = [*getattr(plugin, "__dict__", {}).values(), *subject.config.values()]
    return list(dict.fromkeys(value for value in values if isinstance(value, MemoryPool)))


PROPERTIES = (
    failures_are_exceptions,
    answers_are_valid,
    some_records_work,
    input_is_unchanged,
    no_buffer_is_leaked,
)
