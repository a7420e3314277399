"""What has to hold for anything else to be told: the plugin survives, and keeps to its memory.

Each check starts a plugin anew, keeps what it gave to it, and leaves room around what the others
are about, so that of several faults each is found by the check that is meant for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataflare._backend import Chain, PluginRecord, Upper
from dataflare.testing.memory import (
    BEHIND,
    IN_FRONT,
    MIDDLE,
    GuardedBatch,
    WatchedPool,
    fenced_pool,
    guarded_lines,
    parts,
)
from dataflare.testing.properties import BrokenError, in_python, mixed, not_isolated, prop
from dataflare.testing.subject import Subject, run_all, run_one

__all__ = ["PROPERTIES"]


@prop("No record ends the process, or keeps it for ever.", unless=not_isolated)
def process_survives(subject: Subject, records: Sequence[PluginRecord]) -> None:
    given = [subject.batch(records), *(subject.batch([record]) for record in records)]
    with WatchedPool(records) as watched, subject.ready(subject.make()) as plugin:
        for batch in given:
            run_all(plugin, batch, watched.pool)


@prop("Nothing but what was reserved is written.", unless=in_python)
def output_is_not_overrun(subject: Subject, records: Sequence[PluginRecord]) -> None:
    batch = subject.batch(records)
    with WatchedPool(records) as watched:
        with subject.ready(subject.make()) as plugin:
            run_all(plugin, batch, watched.pool)
        with subject.ready(subject.make()) as plugin:  # its output is the input of the next one
            run_all(Chain(plugin, Upper()), batch, watched.pool)
    if watched.faults:
        raise BrokenError(watched.faults[0])


@prop(
    "Nothing around what was reserved is read or written.",
    unless=in_python,
    crash="the pages around what is reserved and the output of earlier calls are forbidden",
)
def nothing_around_output_is_touched(subject: Subject, records: Sequence[PluginRecord]) -> None:
    kept = []
    for part in parts(records):
        for side in (BEHIND, IN_FRONT):
            kept.append(subject.batch(part))
            with fenced_pool(side) as pool, subject.ready(subject.make()) as plugin:
                for _ in range(2):
                    run_all(plugin, kept[-1], pool)
                run_all(Chain(plugin, Upper()), kept[-1], pool)


@prop(
    "Nothing of a record is used after the call.",
    unless=mixed,
    crash="the records of earlier calls are forbidden",
)
def no_pointer_is_kept(subject: Subject, records: Sequence[PluginRecord]) -> None:
    forbidden = []  # they stay where they are
    with WatchedPool(records) as watched, subject.ready(subject.make()) as plugin:
        for record in [*records, *records[:1]]:
            one = GuardedBatch([record], MIDDLE)
            run_all(plugin, one.batch, watched.pool)
            one.forbid()
            forbidden.append(one)


@prop(
    "Nothing behind a value or key is read or written.",
    unless=in_python,
    crash="the page behind each value and key is forbidden",
)
def nothing_behind_is_touched(subject: Subject, records: Sequence[PluginRecord]) -> None:
    _run_guarded(subject, records, BEHIND)


@prop(
    "Nothing in front of a value or key is read or written.",
    unless=in_python,
    crash="the page in front of each value and key is forbidden",
)
def nothing_in_front_is_touched(subject: Subject, records: Sequence[PluginRecord]) -> None:
    _run_guarded(subject, records, IN_FRONT)


def _run_guarded(subject: Subject, records: Sequence[PluginRecord], side: str) -> None:
    """A plugin that touches what it must not does not come back from here."""
    block, lines = guarded_lines(records, side)
    kept = []  # they stay where they are
    with WatchedPool(records) as watched, subject.ready(subject.make()) as plugin:
        for part in parts(records):
            guarded = GuardedBatch(part, side)
            kept.append(guarded)
            run_all(plugin, guarded.batch, watched.pool)
            for record in guarded.records:
                run_one(plugin, record)
            guarded.release()
        run_all(plugin, lines, watched.pool)
        block.release()


PROPERTIES = (
    process_survives,
    output_is_not_overrun,
    nothing_around_output_is_touched,
    no_pointer_is_kept,
    nothing_behind_is_touched,
    nothing_in_front_is_touched,
)
