"""What authors call: `check_plugin`, and `PluginTests` for pytest."""

from __future__ import annotations

import functools
import unittest
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from dataflare._backend import PluginRecord
from dataflare.batching import as_batch
from dataflare.testing import strategies
from dataflare.testing.checks import GROUND, PROPERTIES, needs
from dataflare.testing.report import PropertyResult, PropertyStatus, Report
from dataflare.testing.search import Cases, Options, Records, examine, generate, tally
from dataflare.testing.subject import Claims, Subject

__all__ = ["PluginTests", "check_plugin", "examine_plugin"]

_LONGEST = 8  # records in a batch that is made


def check_plugin(
    plugin: object,
    records: object = None,
    *,
    config: Mapping[str, object] | None = None,
    examples: int = 50,
    seed: int | None = None,
    only: str | Iterable[str] | None = None,
    skip: Iterable[str] = (),
    deterministic: bool = True,
    stateful: bool = False,
    whole_batch: bool = False,
    distributed: bool | None = None,
    health_timeout: float = 5.0,
    isolated: bool | None = None,
    timeout: float = 60.0,
) -> Report:
    """Check that a plugin has the properties of a right plugin, and raise if it lacks one.

    Parameters
    ----------
    plugin : DataFlarePlugin, class, callable without arguments, or str
        As of `PluginManager.register_plugin`. With a class or callable more can be checked than
        with an instance.
    records : iterable of PluginRecord or bytes, or SearchStrategy of them, optional
        What the plugin is made for; tried besides what it is not made for.
    config : Mapping, optional
        For the plugin's `initialize`.
    examples : int
        Batches that hypothesis makes. With 0 only `records` are tried.
    seed : int, optional
        For other batches; without, they are the same each time.
    only : str or iterable of str, optional
        The properties to check.
    skip : iterable of str
        Properties not to check.
    deterministic : bool
        Whether the same records give the same results. If not, results are not compared.
    stateful : bool
        Whether a result may depend on the records before it since `initialize`.
    whole_batch : bool
        Whether a result may depend on the other records of its batch.
    distributed : bool, optional
        Whether the plugin can be sent to other processes; if not given, its attribute
        ``distributed``, or False.
    health_timeout : float
        Seconds that the health check may take.
    isolated : bool, optional
        Whether checks run in a child process, where a crash is a failure and not the end; if not
        given, where a native plugin is in it.
    timeout : float
        Seconds that the check of a property may take in a child process.

    Returns
    -------
    Report

    Raises
    ------
    CheckFailedError
        A property failed; the message says for each with which records.
    TypeError, PluginError
        There is no such plugin.
    ValueError
        There is no such property.
    """
    report = examine_plugin(
        plugin,
        records,
        config=config,
        examples=examples,
        seed=seed,
        only=only,
        skip=skip,
        deterministic=deterministic,
        stateful=stateful,
        whole_batch=whole_batch,
        distributed=distributed,
        health_timeout=health_timeout,
        isolated=isolated,
        timeout=timeout,
    )
    report.raise_for_status()
    return report


def examine_plugin(
    plugin: object,
    records: object = None,
    *,
    config: Mapping[str, object] | None = None,
    examples: int = 50,
    seed: int | None = None,
    only: str | Iterable[str] | None = None,
    skip: Iterable[str] = (),
    deterministic: bool = True,
    stateful: bool = False,
    whole_batch: bool = False,
    distributed: bool | None = None,
    health_timeout: float = 5.0,
    isolated: bool | None = None,
    timeout: float = 60.0,
) -> Report:
    """`check_plugin` that does not raise if a property failed: the report says it."""
    names = _names(PROPERTIES if only is None else only)
    left_out = _names(skip)
    claims = Claims(
        config=config,
        deterministic=deterministic,
        stateful=stateful,
        whole_batch=whole_batch,
        distributed=distributed,
        health_timeout=health_timeout,
    )
    subject = Subject(plugin, claims, isolated)
    options = Options(examples=examples, seed=seed, isolated=subject.isolated, timeout=timeout)
    cases = _cases(records, options)
    results: dict[str, PropertyResult] = {}
    failed: set[str] = set()
    for name, checked in PROPERTIES.items():
        if name not in names:
            continue
        missing = next((need for need in needs(checked) if need in failed), None)
        if name in left_out:
            results[name] = _left_out(name, "it was to be left out")
        elif missing is not None:
            results[name] = _left_out(name, f"nothing can be told while {missing} fails")
        else:
            results[name] = examine(checked, subject, cases, options)
            if results[name].status is PropertyStatus.FAILED:
                failed.add(name)
    counted = "some_records_work" in names and failed.isdisjoint(GROUND)
    return Report(subject.name, results, tally(subject, cases, options) if counted else None)


def _left_out(name: str, reason: str) -> PropertyResult:
    return PropertyResult(name, PropertyStatus.NOT_APPLICABLE, reason)


def _names(names: str | Iterable[str]) -> set[str]:
    wanted = {names} if isinstance(names, str) else set(names)
    unknown = sorted(wanted - PROPERTIES.keys())
    if unknown:
        raise ValueError(f"there is no property {unknown[0]!r}; there are {', '.join(PROPERTIES)}")
    return wanted


def _cases(records: object, options: Options) -> Cases:
    """The batches to try: what the author gives, then what plugins forget, then anything."""
    if options.examples < 0:
        raise ValueError(f"examples must be 0 or more, not {options.examples}")
    if isinstance(records, SearchStrategy):
        if not options.examples:
            raise ValueError("a strategy makes no records if examples is 0")
        own = _listed(records.map(_record))
        strategy = st.one_of(own, _listed(st.one_of(records.map(_record), strategies.records())))
        batches = [*_awkward(), *generate(strategy, options.examples, options.seed)]
        return Cases(batches, strategy)
    given = [] if records is None else [list(as_batch(records))]
    if not options.examples:
        return Cases([*given] or [[]], None)
    return Cases([*given, *_awkward(), *_usual(options.examples, options.seed)], _USUAL)


def _record(value: object) -> PluginRecord:
    return value if isinstance(value, PluginRecord) else as_batch([value])[0]


def _listed(records: SearchStrategy[PluginRecord]) -> SearchStrategy[list[PluginRecord]]:
    return st.lists(records, max_size=_LONGEST)


_USUAL = _listed(strategies.records())


@functools.cache
def _usual(examples: int, seed: int | None) -> list[Records]:
    return generate(_USUAL, examples, seed)


def _awkward() -> list[Records]:
    return [[], strategies.AWKWARD, strategies.EVERY_BYTE, strategies.HUGE]


class PluginTests:
    """Tests of a plugin for pytest, one for each property: derive a class and say which plugin.

    Attributes
    ----------
    plugin : DataFlarePlugin, class, str, or method without arguments
        As of `check_plugin`.
    records, config, examples, seed, deterministic, stateful, whole_batch, distributed, \
health_timeout, isolated, timeout
        As of `check_plugin`.
    skip : collection of str
        Properties not to test.

    Examples
    --------
    >>> class TestLongLines(PluginTests):
    ...     plugin = LongLines
    """

    plugin: object
    records: object = None
    config: Mapping[str, object] | None = None
    examples: int = 50
    seed: int | None = None
    skip: ClassVar[Sequence[str]] = ()
    deterministic: bool = True
    stateful: bool = False
    whole_batch: bool = False
    distributed: bool | None = None
    health_timeout: float = 5.0
    isolated: bool | None = None
    timeout: float = 60.0

    def _check(self, name: str) -> None:
        __tracebackhide__ = True
        if not hasattr(self, "plugin"):
            missing = f"{type(self).__name__}: set `plugin`"
            # Once is enough for what all tests lack.
            raise (
                AssertionError(missing)
                if name == next(iter(PROPERTIES))
                else (unittest.SkipTest(missing))
            )
        report = check_plugin(
            self.plugin,
            self.records,
            config=self.config,
            examples=self.examples,
            seed=self.seed,
            only=name,
            skip=self.skip,
            deterministic=self.deterministic,
            stateful=self.stateful,
            whole_batch=self.whole_batch,
            distributed=self.distributed,
            health_timeout=self.health_timeout,
            isolated=self.isolated,
            timeout=self.timeout,
        )
        if report.not_applicable:
            raise unittest.SkipTest(report.not_applicable[0].sentence)

    def test_process_survives(self) -> None:
        """No record ends the process, or keeps it for ever."""
        self._check("process_survives")

    def test_output_is_not_overrun(self) -> None:
        """Nothing but what was reserved is written."""
        self._check("output_is_not_overrun")

    def test_nothing_around_output_is_touched(self) -> None:
        """Nothing around what was reserved is read or written."""
        self._check("nothing_around_output_is_touched")

    def test_no_pointer_is_kept(self) -> None:
        """Nothing of a record is used after the call."""
        self._check("no_pointer_is_kept")

    def test_nothing_behind_is_touched(self) -> None:
        """Nothing behind a value or key is read or written."""
        self._check("nothing_behind_is_touched")

    def test_nothing_in_front_is_touched(self) -> None:
        """Nothing in front of a value or key is read or written."""
        self._check("nothing_in_front_is_touched")

    def test_deterministic(self) -> None:
        """The same records give the same results again."""
        self._check("deterministic")

    def test_batch_is_its_records(self) -> None:
        """A batch gives what its records give one by one."""
        self._check("batch_is_its_records")

    def test_batch_size_does_not_matter(self) -> None:
        """How records are cut into batches changes nothing."""
        self._check("batch_size_does_not_matter")

    def test_workers_do_not_matter(self) -> None:
        """How many threads share a batch changes nothing."""
        self._check("workers_do_not_matter")

    def test_chaining_does_not_matter(self) -> None:
        """A chain gives what its plugins give one after the other."""
        self._check("chaining_does_not_matter")

    def test_views_are_values(self) -> None:
        """A value is treated alike as bytes and as a view."""
        self._check("views_are_values")

    def test_failures_are_exceptions(self) -> None:
        """Nothing but an Exception leaves the plugin."""
        self._check("failures_are_exceptions")

    def test_answers_are_valid(self) -> None:
        """Every record gets an answer that the library understands."""
        self._check("answers_are_valid")

    def test_some_records_work(self) -> None:
        """There are records at which it does not fail."""
        self._check("some_records_work")

    def test_input_is_unchanged(self) -> None:
        """The records that come in are left as they are."""
        self._check("input_is_unchanged")

    def test_no_buffer_is_leaked(self) -> None:
        """Memory of the pool goes back."""
        self._check("no_buffer_is_leaked")

    def test_starts_and_stops(self) -> None:
        """initialize and cleanup work in pairs, and again."""
        self._check("starts_and_stops")

    def test_starts_afresh(self) -> None:
        """Initialised again, it works as at first."""
        self._check("starts_afresh")

    def test_pickles(self) -> None:
        """A pickled twin gives the same results."""
        self._check("pickles")

    def test_health_check_answers(self) -> None:
        """The health check of a plugin that is ready says so, in time."""
        self._check("health_check_answers")

    def test_info_is_complete(self) -> None:
        """info() says who it is, completely."""
        self._check("info_is_complete")
