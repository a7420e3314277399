"""The properties of a right plugin, each with the check that it holds for some records.

A check gets the plugin and a batch of records, and raises `BrokenError` if the property does not
hold for them. It draws nothing by chance, so that the records alone make it fail again.
"""

from __future__ import annotations

import gc
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from dataflare._backend import (
    BatchResult,
    Chain,
    Contains,
    DataFlarePlugin,
    MemoryPool,
    PluginRecord,
    RecordBatch,
    Replace,
    Upper,
    run_batch,
    run_record,
)
from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import PluginError, sentence_of
from dataflare.manager import PluginManager
from dataflare.testing.memory import BEHIND, IN_FRONT, GuardedBatch, GuardedBytes
from dataflare.testing.strategies import AWKWARD
from dataflare.testing.subject import (
    EscapedError,
    NotReadyError,
    Ran,
    Subject,
    fresh,
    natives,
    ran,
    row,
    run_all,
    run_one,
    small_pool,
)
from dataflare.types import API_VERSION, PluginInfo, PluginType

__all__ = ["PROPERTIES", "BrokenError", "Property"]

ERROR, FILTERED, SKIP = 3, 1, 2  # in BatchResult.status
# What the library says of a record when the plugin's answer was none.
_NO_ANSWER = re.compile(
    r"the plugin (returned|committed|forwarded|reserved|left|does not define|gave no reason)\b"
    r"|the function returned |process_batch returned |MemoryError: no room for -"
    r"|\w+ does not define "
)


class BrokenError(Exception):
    """A property does not hold.

    Parameters
    ----------
    sentence : str
    index : int, optional
        The record that shows it.
    """

    def __init__(self, sentence: str, index: int | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.index = index


def _always(subject: Subject) -> str | None:
    return None


@dataclass(frozen=True)
class Property:
    """What a right plugin does.

    Attributes
    ----------
    name : str
    sentence : str
        What it says.
    check : callable
    with_records : bool
        Whether it is about records; if not, it is checked once.
    not_applicable : callable
        Says of a plugin why the property does not apply, or None.
    crash : str
        What a crash means.
    """

    name: str
    sentence: str
    check: Callable[[Subject, Sequence[PluginRecord]], None]
    with_records: bool
    not_applicable: Callable[[Subject], str | None]
    crash: str


PROPERTIES: dict[str, Property] = {}

_Check = Callable[[Subject, Sequence[PluginRecord]], None]


def _property(
    sentence: str,
    *,
    compares: bool = False,
    with_records: bool = True,
    unless: Callable[[Subject], str | None] = _always,
    crash: str = "",
) -> Callable[[_Check], _Check]:
    """Enter a check into `PROPERTIES`; one that compares needs a plugin that is deterministic."""

    def not_applicable(subject: Subject) -> str | None:
        if compares and not subject.claims.deterministic:
            return "its results may differ from run to run"
        return unless(subject)

    def enter(check: _Check) -> _Check:
        name = check.__name__
        PROPERTIES[name] = Property(name, sentence, check, with_records, not_applicable, crash)
        return check

    return enter


def _if_python(subject: Subject) -> str | None:
    return None if subject.is_native else "only native plugins touch memory themselves"


def _if_mixed(subject: Subject) -> str | None:
    members = subject.first.plugins if isinstance(subject.first, Chain) else (subject.first,)
    if subject.is_native and len(natives(subject.first)) < len(members):
        return "members in Python may keep records"
    return _if_python(subject)


def _if_native(subject: Subject) -> str | None:
    return "a native plugin gets the address of a value either way" if subject.is_native else None


def _if_one_thread(subject: Subject) -> str | None:
    if subject.claims.stateful:
        return "its results depend on the records before"
    if subject.first.thread_safe or subject.makes_new:
        return None
    return (
        "one instance that is not thread-safe has one thread at a time: "
        "give its class, or what makes it, to check more"
    )


def _if_at_home(subject: Subject) -> str | None:
    wanted = subject.claims.distributed
    if wanted is None:
        wanted = bool(getattr(subject.first, "distributed", False))
    return None if wanted else "nobody says that it can be sent to other processes"


# What comes out


@_property("The same records give the same results again.", compares=True)
def deterministic(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        first = run_all(plugin, subject.batch(records))
        if not subject.claims.stateful:
            _compare(first, run_all(plugin, subject.batch(records)), "at first", "the second time")
    if subject.claims.stateful:
        _compare(first, subject.run(records), "at first", "the second time")


@_property("A batch gives what its records give one by one.", compares=True)
def batch_is_its_records(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        alone = [run_one(plugin, record) for record in subject.copies(records)]
    whole = subject.run(records)
    _compare(Ran(alone, whole.output), whole, "alone", "in a batch")


@_property("How records are cut into batches changes nothing.", compares=True)
def batch_size_does_not_matter(subject: Subject, records: Sequence[PluginRecord]) -> None:
    whole = subject.run(records)
    for bounds in _cuts(len(records)):
        parts = Ran([], [])
        with subject.ready() as plugin:
            for start, stop in zip(bounds, bounds[1:], strict=False):
                part = run_all(plugin, subject.batch(records[start:stop]))
                parts.outcomes.extend(part.outcomes)
                parts.output.extend(part.output)
        _compare(whole, parts, "in one batch", f"in batches that begin at {bounds[:-1]}")


def _cuts(length: int) -> Iterator[list[int]]:
    """Ways to cut a batch: where each part begins, and where the last one ends."""
    sizes = [size for size in (1, 2, 3, 7, 100) if size < length]
    yield from ([*range(0, length, size), length] for size in sizes)
    places = range(1, length) if length <= 12 else (1, length // 3, length // 2, length - 1)
    yield from ([0, place, length] for place in places)


@_property(
    "How many threads share a batch changes nothing.", compares=True, unless=_if_one_thread
)
def workers_do_not_matter(subject: Subject, records: Sequence[PluginRecord]) -> None:
    if len(records) < 2:  # nothing to share
        return
    alone = subject.run(records)
    for count in (2, 3):
        with PluginManager(_parallel(count)) as manager:
            try:
                manager.register_plugin("plugin", subject.source, subject.config)
            except PluginError as error:
                raise NotReadyError(sentence_of(error)) from error
            # A batch that is too small to be worth it is shared out as well.
            service = manager._services["plugin"]
            try:
                result = service.large_batch(subject.batch(records))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise EscapedError(sentence_of(error)) from error
            shared = ran(result.results, dict(result.errors), result.output)
        _compare(alone, shared, "on one thread", f"shared among {count} threads")


def _parallel(count: int) -> PluginManagerConfig:
    return PluginManagerConfig(
        memory_pool_config=MemoryPoolConfig(
            max_tiny_buffers=8, max_small_buffers=8, max_medium_buffers=8, max_large_buffers=2,
            max_huge_buffers=2, cleanup_interval=float("inf"),
        ),  # fmt: skip
        batch_config=BatchConfig(enable_parallel=True, parallelism=count),
        failure_recovery=FailureRecoveryConfig(max_retries=0, circuit_breaker_threshold=1.0),
        max_plugin_instances=count,
        monitoring_interval=float("inf"),
        health_check_interval=float("inf"),
    )


@_property("A chain gives what its plugins give one after the other.", compares=True)
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
        _compare(apart, chained, "apart", "in a chain")


def _one_after_the_other(members: list[DataFlarePlugin], batch: RecordBatch) -> Ran:
    """What a chain should do: each member on what the one before it let through."""
    outcomes: list[tuple[object, ...]] = [("skip",)] * len(batch)
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


@_property("A value is treated alike as bytes and as a view.", compares=True, unless=_if_native)
def views_are_values(subject: Subject, records: Sequence[PluginRecord]) -> None:
    found = []
    for views in (False, True):
        given = [fresh(record, views=views) for record in records]
        with subject.ready() as plugin:
            found.append(run_all(plugin, RecordBatch.from_records(given)))
    _compare(found[0], found[1], "as bytes", "as memoryview")


def _compare(expected: Ran, found: Ran, then: str, now: str) -> None:
    for index, (left, right) in enumerate(
        zip(expected.outcomes, found.outcomes, strict=False)
    ):
        if left != right:
            raise BrokenError(f"{then} it gives {_shown(left)}, {now} {_shown(right)}", index)
    if len(expected.outcomes) != len(found.outcomes):
        raise BrokenError(
            f"{then} it gives {len(expected.outcomes)} results, {now} {len(found.outcomes)}"
        )
    for left, right in zip(expected.output, found.output, strict=False):
        if left != right:
            raise BrokenError(f"{then} {_shown(left)} goes on, {now} {_shown(right)}")
    if len(expected.output) != len(found.output):
        raise BrokenError(
            f"{then} {len(expected.output)} records go on, {now} {len(found.output)}"
        )


def _shown(outcome: tuple[object, ...]) -> str:
    text = ", ".join(_brief(repr(part)) for part in outcome[1:] if part is not None)
    return f"{outcome[0] if isinstance(outcome[0], str) else _brief(repr(outcome[0]))}" + (
        f"({text})" if text else ""
    )


def _brief(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"


# Failures


@_property("Nothing but an Exception leaves the plugin.")
def failures_are_exceptions(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with subject.ready() as plugin:
        for index, record in enumerate(subject.copies(records)):
            try:
                run_one(plugin, record)
            except EscapedError as error:
                raise BrokenError(f"it raises {error}, which stops the whole batch", index) from None
        try:
            run_all(plugin, subject.batch(records))
        except EscapedError as error:
            raise BrokenError(f"it raises {error}, which stops the whole batch") from None


@_property("Every record gets an answer that the library understands.")
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
        except BaseException as error:
            raise EscapedError(sentence_of(error)) from error
    for index, error in errors:
        if _NO_ANSWER.match(str(error)):
            raise BrokenError(str(error), index)


# Memory


@_property("The records that come in are left as they are.")
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


def _compare_input(before: list[tuple[object, ...]], given: list[PluginRecord], how: str) -> None:
    for index, (old, record) in enumerate(zip(before, given, strict=True)):
        try:
            new = row(record)
        except ValueError:
            raise BrokenError(f"{how}, the views of the record are released", index) from None
        for name, was, found in zip(("value", "key", "metadata"), old, new, strict=False):
            if was != found:
                raise BrokenError(
                    f"{how}, the {name} {_brief(repr(was))} is changed to {_brief(repr(found))}",
                    index,
                )


@_property(
    "Nothing behind a value or key is read or written.",
    unless=_if_python,
    crash="the page behind each value and key is forbidden",
)
def nothing_behind_is_touched(subject: Subject, records: Sequence[PluginRecord]) -> None:
    _run_guarded(subject, records, BEHIND)


@_property(
    "Nothing in front of a value or key is read or written.",
    unless=_if_python,
    crash="the page in front of each value and key is forbidden",
)
def nothing_in_front_is_touched(subject: Subject, records: Sequence[PluginRecord]) -> None:
    _run_guarded(subject, records, IN_FRONT)


def _run_guarded(subject: Subject, records: Sequence[PluginRecord], side: str) -> None:
    with subject.ready() as plugin:
        whole = GuardedBatch(records, side)
        run_all(plugin, whole.batch)
        _check_margin(whole)
        for record in records:
            one = GuardedBatch([record], side)
            run_one(plugin, one.batch[0])
            _check_margin(one)
        lines = [bytes(record.value) for record in records if b"\n" not in bytes(record.value)]
        block = GuardedBytes(b"\n".join(lines), side)
        run_all(plugin, RecordBatch.from_lines(block.view, newline=b"\n"))
        if not block.margin_is_intact:
            raise BrokenError("it writes outside a block of lines")


def _check_margin(guarded: GuardedBatch) -> None:
    index = guarded.written_at()
    if index is not None:
        raise BrokenError("it writes outside the value or key", index)


@_property("No more is written than was reserved.", unless=_if_python)
def output_is_not_overrun(subject: Subject, records: Sequence[PluginRecord]) -> None:
    with small_pool() as pool:
        with subject.ready() as plugin:
            run_all(plugin, subject.batch(records), pool)
        with subject.ready() as plugin:  # what it writes is the input of the next one
            run_all(Chain(plugin, Upper()), subject.batch(records), pool)
    if pool.violations:
        raise BrokenError(pool.violations[0].partition("; it was taken")[0])


@_property(
    "Nothing of a record is used after the call.",
    unless=_if_mixed,
    crash="the records of earlier calls are forbidden",
)
def no_pointer_is_kept(subject: Subject, records: Sequence[PluginRecord]) -> None:
    forbidden = []  # they stay where they are
    with subject.ready() as plugin:
        for record in [*records, *records[:1]]:
            one = GuardedBatch([record], BEHIND)
            run_all(plugin, one.batch)
            one.forbid()
            forbidden.append(one)


@_property("Memory of the pool goes back.")
def no_buffer_is_leaked(subject: Subject, records: Sequence[PluginRecord]) -> None:
    lines = b"\n".join(bytes(record.value).replace(b"\n", b"") for record in records)
    plugin = subject.make()
    with small_pool() as pool:
        with subject.ready(plugin):
            watched = [pool, *_pools_of(subject, plugin)]
            at_first = _held(watched)
            counts = []
            for _ in range(6):
                run_all(plugin, RecordBatch.from_lines(lines, pool=pool), pool)
                run_all(plugin, subject.batch(records), pool)
                counts.append(_held(watched))
            if all(now > before for before, now in zip(counts, counts[1:], strict=False)):
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


# Life


class _UnreadableError(Exception):
    pass


class _Unreadable(Mapping[str, object]):
    """A configuration that fails at the n-th time that it is asked something."""

    def __init__(self, config: Mapping[str, object], reads: int) -> None:
        self._config = config
        self._left = reads

    def _read(self) -> None:
        if self._left == 0:
            raise _UnreadableError("the configuration cannot be read")
        self._left -= 1

    def __getitem__(self, name: str) -> object:
        self._read()
        return self._config[name]

    def __contains__(self, name: object) -> bool:
        self._read()
        return name in self._config

    def __iter__(self) -> Iterator[str]:
        self._read()
        return iter(self._config)

    def __len__(self) -> int:
        self._read()
        return len(self._config)


@_property("initialize and cleanup work in pairs, and again.", with_records=False)
def starts_and_stops(subject: Subject, records: Sequence[PluginRecord]) -> None:
    plugin = subject.make()
    for _ in range(2):
        _step(plugin, "initialize", subject.config)
        run_all(plugin, subject.batch(AWKWARD[:4]))
        _step(plugin, "cleanup")
    _step(plugin, "initialize", subject.config)
    _step(plugin, "cleanup", when="without a record before")
    for reads in range(3):
        try:
            plugin.initialize(_Unreadable(subject.config, reads))
            when = "after initialize"
        except Exception:
            when = "after an initialize that failed"
        _step(plugin, "cleanup", when=when)
    _step(plugin, "initialize", subject.config, when="after one that failed")
    run_all(plugin, subject.batch(AWKWARD[:4]))
    _step(plugin, "cleanup")


def _step(plugin: DataFlarePlugin, name: str, *arguments: object, when: str = "") -> None:
    try:
        getattr(plugin, name)(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BrokenError(f"{name}() fails{when and ' '}{when}: {sentence_of(error)}") from None


@_property("Initialised again, it works as at first.", compares=True)
def starts_afresh(subject: Subject, records: Sequence[PluginRecord]) -> None:
    plugin = subject.make()
    with subject.ready(plugin):
        first = run_all(plugin, subject.batch(records))
    with subject.ready(plugin):
        second = run_all(plugin, subject.batch(records))
    _compare(first, second, "at first", "initialised again")


@_property("A pickled twin gives the same results.", unless=_if_at_home)
def pickles(subject: Subject, records: Sequence[PluginRecord]) -> None:
    try:
        twin = pickle.loads(pickle.dumps(subject.make()))
    except Exception as error:
        raise BrokenError(f"it cannot be pickled: {sentence_of(error)}") from None
    if not isinstance(twin, DataFlarePlugin):
        raise BrokenError(f"pickled it becomes {type(twin).__name__}, which is not a plugin")
    mine = subject.run(records)
    try:
        with subject.ready(twin):
            other = run_all(twin, subject.batch(records))
    except NotReadyError as error:
        raise BrokenError(f"the twin cannot be used: {error}") from None
    if subject.claims.deterministic:
        _compare(mine, other, "here", "pickled")


@_property("The health check of a plugin that is ready says so, in time.", with_records=False)
def health_check_answers(subject: Subject, records: Sequence[PluginRecord]) -> None:
    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(plugin.health_check())
        except BaseException as error:
            answers.append(error)

    limit = subject.claims.health_timeout
    with subject.ready() as plugin:
        asking = threading.Thread(target=ask, name="dataflare-check-health", daemon=True)
        asking.start()
        asking.join(limit)
        if not answers:
            raise BrokenError(f"health_check() has not answered within {limit:g} s")
    answer = answers[0]
    if isinstance(answer, BaseException):
        raise BrokenError(f"health_check() raises {sentence_of(answer)}")
    if not isinstance(answer, bool):
        raise BrokenError(f"health_check() returns {type(answer).__name__}, not bool")
    if not answer:
        raise BrokenError("health_check() says that it is not fit for work, just initialised")


@_property("info() says who it is, completely.", with_records=False)
def info_is_complete(subject: Subject, records: Sequence[PluginRecord]) -> None:
    try:
        info = subject.first.info()
        again = subject.first.info()
    except Exception as error:
        raise BrokenError(f"info() raises {sentence_of(error)}") from None
    if not isinstance(info, PluginInfo):
        raise BrokenError(f"info() returns {type(info).__name__}, not PluginInfo")
    for each in fields(PluginInfo):
        value = getattr(info, each.name)
        kind: type = {"plugin_type": PluginType, "api_version": int}.get(each.name, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BrokenError(f"{each.name} is {type(value).__name__}, not {kind.__name__}")
        if kind is str and len(value.splitlines()) > 1:
            raise BrokenError(f"{each.name} has several lines")
    for name in ("name", "version", "description"):
        if not getattr(info, name).strip():
            hint = ": give its class or function a docstring" if name == "description" else ""
            raise BrokenError(f"the {name} is empty{hint}")
    if info.api_version != API_VERSION:
        raise BrokenError(
            f"it is written for API version {info.api_version}, this DataFlare has {API_VERSION}"
        )
    if info != again:
        raise BrokenError("info() says something else the second time")
