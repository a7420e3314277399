"""Looks for records with which a property fails, and for the smallest such batch.

Records come from three places: the awkward ones, what the author gives, and what hypothesis makes.
All are tried first; of a failure hypothesis looks for a smaller one, or, if it finds none, records
are left out one by one. With `isolated` the whole trial happens in one child process; after a crash
each further attempt gets a child of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from dataflare._backend import PluginRecord
from dataflare.testing.isolation import Death, Progress, in_child
from dataflare.testing.properties import BrokenError, Property
from dataflare.testing.report import (
    Counts,
    PropertyResult,
    PropertyStatus,
    expression,
    expressions,
)
from dataflare.testing.subject import EscapedError, NotReadyError, Subject, count

__all__ = ["Cases", "Options", "examine", "generate", "tally"]

Records = Sequence[PluginRecord]

SHRINKING = 10.0
"""Seconds that the search for a smaller failure takes, about."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to check; `check_plugin` says what each means."""

    examples: int
    seed: int | None
    isolated: bool
    timeout: float


@dataclass(frozen=True)
class Cases:
    """The batches to try, and where smaller ones come from.

    Attributes
    ----------
    batches : list of sequence of PluginRecord
    strategy : SearchStrategy or None
        Of such batches.
    """

    batches: list[Records]
    strategy: st.SearchStrategy[list[PluginRecord]] | None

    @property
    def all(self) -> Records:
        """Sequence of PluginRecord: Those of all batches."""
        return [record for batch in self.batches for record in batch]


@dataclass(frozen=True)
class Finding:
    """That a property does not hold, or cannot be checked."""

    sentence: str
    index: int | None = None
    unready: bool = False
    died: bool = False
    hung: bool = False


def generate(
    strategy: st.SearchStrategy[list[PluginRecord]], examples: int, seed: int | None
) -> list[Records]:
    """Batches that hypothesis makes."""
    made: list[Records] = []
    _explore(strategy, examples, seed, made.append)
    return made


def _explore(
    strategy: st.SearchStrategy[list[PluginRecord]],
    examples: int,
    seed: int | None,
    body: Callable[[list[PluginRecord]], None],
) -> None:
    """Call a function with batches, smaller ones once it has raised; the same ones each time."""

    def attempt(records: list[PluginRecord]) -> None:
        body(records)

    test: Callable[[], None] = given(strategy)(attempt)
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
    )(test)()


def examine(checked: Property, subject: Subject, cases: Cases, options: Options) -> PropertyResult:
    """Check a property.

    Parameters
    ----------
    checked : Property
    subject : Subject
    cases : Cases
    options : Options

    Returns
    -------
    PropertyResult
    """
    reason = checked.not_applicable(subject)
    if reason is not None:
        return PropertyResult(checked.name, PropertyStatus.NOT_APPLICABLE, reason)
    batches = cases.batches if checked.with_records else [()]
    if checked.together:
        batches = [cases.all]
    place, finding = _try(checked, subject, batches, options)
    if finding is None:
        return PropertyResult(checked.name, PropertyStatus.PASSED, checked.sentence)
    if finding.unready:
        return PropertyResult(checked.name, PropertyStatus.NOT_APPLICABLE, finding.sentence)
    first = batches[place]
    if checked.together:
        return _failed(checked, subject, first[:1], finding, options)
    if not checked.with_records:
        return _failed(checked, subject, first, finding, options)
    if finding.hung:  # others that hang will do so in less time, too
        return _shorter(checked, subject, first, finding, options)
    if options.isolated and not finding.died:
        # One child for the whole search: nothing is known to crash.
        inside = replace(options, isolated=False)
        answer = in_child(
            lambda: asdict(_smallest(checked, subject, cases, inside, first, finding)),
            options.timeout + 2 * SHRINKING,
        )
        if isinstance(answer, dict):
            return _restored(answer)
    return _smallest(checked, subject, cases, options, first, finding)


def tally(subject: Subject, cases: Cases, options: Options) -> Counts | None:
    """What becomes of all records, or None if the plugin does not come to their end."""

    def work() -> dict[str, Any] | None:
        try:
            return asdict(count(subject, cases.all)[0])
        except (NotReadyError, EscapedError):
            return None
        finally:
            subject.rest()

    answer = in_child(work, options.timeout) if options.isolated else work()
    return Counts(**answer) if isinstance(answer, dict) else None


def _restored(answer: dict[str, Any]) -> PropertyResult:
    """What `asdict` made of a result, and JSON of that."""
    given = {**answer, "status": PropertyStatus(answer["status"])}
    return PropertyResult(**{**given, "records": tuple(answer["records"])})


def _failed(
    checked: Property, subject: Subject, records: Records, finding: Finding, options: Options
) -> PropertyResult:
    each, text = expressions(records)
    words = ["plugin"]
    if checked.with_records and text is not None:
        words.append(text)
    words.append(f"only={checked.name!r}")
    if checked.with_records:
        words.append(f"examples={options.examples if text is None else 0}")
        if text is None and options.seed is not None:
            words.append(f"seed={options.seed}")
    again = f"check_plugin({', '.join([*words, *subject.claims.written()])})"
    sentence = finding.sentence if finding.died else finding.sentence + checked.hint
    return PropertyResult(checked.name, PropertyStatus.FAILED, sentence, each, finding.index, again)


def _try(
    checked: Property, subject: Subject, batches: Sequence[Records], options: Options
) -> tuple[int, Finding | None]:
    """The first of some batches with which the property fails, and how."""
    progress = Progress()

    def sweep() -> dict[str, Any] | None:
        try:
            for place, records in enumerate(batches):
                progress.at = place
                found = _attempt(checked, subject, records)
                if found is not None:
                    return vars(found)
            return None
        finally:
            subject.rest()

    answer = in_child(sweep, options.timeout) if options.isolated else sweep()
    if isinstance(answer, Death):
        return progress.at, _deadly(checked, answer)
    return progress.at, None if answer is None else Finding(**answer)  # type: ignore[arg-type]


def _deadly(checked: Property, death: Death) -> Finding:
    why = f": {checked.crash}" if checked.crash and not death.hung else ""
    return Finding(death.sentence + why, died=True, hung=death.hung)


def _attempt(checked: Property, subject: Subject, records: Records) -> Finding | None:
    try:
        checked.check(subject, records)
    except BrokenError as broken:
        return Finding(broken.sentence, broken.index)
    except NotReadyError as error:
        return Finding(str(error), unready=True)
    except EscapedError as error:
        return Finding(f"{error} leaves it, see failures_are_exceptions", unready=True)
    return None


def _smallest(
    checked: Property,
    subject: Subject,
    cases: Cases,
    options: Options,
    records: Records,
    finding: Finding,
) -> PropertyResult:
    """The smallest batch found with which the property fails, from one on with which it does."""
    until = time.monotonic() + SHRINKING
    known: list[tuple[tuple[int, int, int, str], Records, Finding]] = []

    def fails(tried: Records) -> Finding | None:
        found = _try(checked, subject, [tried], options)[1]
        return None if found is None or found.unready else found

    def body(tried: list[PluginRecord]) -> None:
        weight = _weight(tried)
        if time.monotonic() > until and all(weight != each[0] for each in known):
            return
        found = fails(tried)
        if found is not None:
            known.append((weight, tried, found))
            raise BrokenError(found.sentence)

    if cases.strategy is not None and options.examples:
        # What is raised is the error above, or that it was not raised a second time.
        with suppress(BrokenError, hypothesis.errors.HypothesisException):
            _explore(cases.strategy, options.examples, options.seed, body)
    if known:
        _, records, finding = min(known, key=lambda each: each[0])
    else:
        until = time.monotonic() + SHRINKING
        records, finding = _fewest(fails, records, finding, until)
    return _failed(checked, subject, records, finding, options)


def _shorter(
    checked: Property, subject: Subject, records: Records, finding: Finding, options: Options
) -> PropertyResult:
    """A batch that hangs with as few records as can be found out in time."""
    quick = replace(options, timeout=options.timeout / 10)

    def fails(tried: Records) -> Finding | None:
        found = _try(checked, subject, [tried], quick)[1]
        return finding if found is not None and found.hung else None

    fewest, _ = _fewest(fails, records, finding, time.monotonic() + SHRINKING)
    return _failed(checked, subject, fewest, finding, options)


def _fewest(
    fails: Callable[[Records], Finding | None], records: Records, finding: Finding, until: float
) -> tuple[Records, Finding]:
    """Leave out all records without which it fails as well, half of them at a time at first."""
    size = len(records) // 2
    while size:
        start = 0
        while start < len(records) and time.monotonic() < until:
            fewer = [*records[:start], *records[start + size :]]
            found = fails(fewer)
            if found is None:
                start += size
            else:
                records, finding = fewer, found
        size //= 2
    return records, finding


def _weight(records: Records) -> tuple[int, int, int, str]:
    """Fewer records weigh less, then shorter ones, then those that are quickly written."""
    texts = [expression(record) for record in records]
    size = sum(len(record.value) + len(record.key or b"") for record in records)
    return len(records), size, sum(map(len, texts)), "".join(texts)
