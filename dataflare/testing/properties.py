"""What a property is, and when one does not apply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dataflare._backend import PluginRecord
from dataflare.testing.subject import Ran, Subject, leaves, natives

__all__ = [
    "BrokenError",
    "Property",
    "at_home",
    "brief",
    "compare",
    "in_python",
    "mixed",
    "native",
    "not_isolated",
    "on_one_thread",
    "on_whole_batches",
    "prop",
]

Check = Callable[[Subject, Sequence[PluginRecord]], None]
Reason = Callable[[Subject], str | None]


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


@dataclass(frozen=True)
class Property:
    """What a right plugin does.

    Attributes
    ----------
    name : str
    sentence : str
        What it says.
    check : callable
        Gets the plugin and records, and raises `BrokenError` if it does not hold for them. It draws
        nothing by chance, so that the records alone make it fail again.
    compares : bool
        Whether it compares results; if so, it needs a plugin that is deterministic.
    runs : bool
        Whether it runs the plugin.
    with_records : bool
        Whether it is about records; if not, it is checked once.
    unless : callable
        Says of a plugin why the property does not apply, or None.
    crash : str
        What a crash means.
    together : bool
        Whether it is about all records at once, and not about any batch of them.
    hint : str
        What to do about it, to stand behind what is wrong.
    """

    name: str
    sentence: str
    check: Check
    compares: bool
    runs: bool
    with_records: bool
    unless: Reason
    crash: str
    together: bool
    hint: str

    def not_applicable(self, subject: Subject) -> str | None:
        """Why the property does not apply, or None."""
        if self.compares and not subject.claims.deterministic:
            return "its results may differ from run to run"
        return self.unless(subject)


def _never(subject: Subject) -> str | None:
    return None


def prop(
    sentence: str,
    *,
    compares: bool = False,
    runs: bool = True,
    with_records: bool = True,
    unless: Reason = _never,
    crash: str = "",
    together: bool = False,
    hint: str = "",
) -> Callable[[Check], Property]:
    """Make a `Property` of a check; the name is that of the function."""

    def make(check: Check) -> Property:
        return Property(
            check.__name__,
            sentence,
            check,
            compares,
            runs,
            with_records,
            unless,
            crash,
            together,
            hint,
        )

    return make


# Why a property does not apply


def not_isolated(subject: Subject) -> str | None:
    """Nobody would be left to tell."""
    return None if subject.isolated else "it takes a child process to tell: isolated=True"


def in_python(subject: Subject) -> str | None:
    """It cannot touch any memory but by way of others."""
    return None if subject.is_native else "only native plugins touch memory themselves"


def mixed(subject: Subject) -> str | None:
    """As `in_python`; and a record whose view is kept in Python stays valid."""
    if subject.is_native and len(natives(subject.first)) < len(leaves(subject.first)):
        return "members in Python may keep records"
    return in_python(subject)


def native(subject: Subject) -> str | None:
    """It sees no objects."""
    return "a native plugin gets the address of a value either way" if subject.is_native else None


def on_whole_batches(subject: Subject) -> str | None:
    """No part of a batch says what becomes of it."""
    return "its results depend on the whole batch" if subject.claims.whole_batch else None


def on_one_thread(subject: Subject) -> str | None:
    """A batch of it is never shared out, or is not to be."""
    if subject.claims.whole_batch:
        return on_whole_batches(subject)
    if subject.claims.stateful:
        return "its results depend on the records before"
    if subject.first.thread_safe or subject.makes_new:
        return None
    return (
        "one instance that is not thread-safe has one thread at a time: "
        "give its class, or what makes it, to check more"
    )


def at_home(subject: Subject) -> str | None:
    """It stays in its process."""
    wanted = subject.claims.distributed
    if wanted is None:
        wanted = bool(getattr(subject.first, "distributed", False))
    return None if wanted else "nobody says that it can be sent to other processes"


# How results are compared


def compare(expected: Ran, found: Ran, then: str, now: str) -> None:
    """Raise at the first difference; `then` and `now` say where each comes from."""
    for index, (left, right) in enumerate(zip(expected.outcomes, found.outcomes, strict=False)):
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
        raise BrokenError(f"{then} {len(expected.output)} records go on, {now} {len(found.output)}")


def _shown(outcome: tuple[object, ...]) -> str:
    text = ", ".join(brief(repr(part)) for part in outcome[1:] if part is not None)
    return f"{outcome[0] if isinstance(outcome[0], str) else brief(repr(outcome[0]))}" + (
        f"({text})" if text else ""
    )


def brief(text: str) -> str:
    """The beginning and end of a long text."""
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
