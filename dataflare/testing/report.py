"""What the checks found, for people and for machines."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from dataflare import units
from dataflare._backend import PluginRecord

__all__ = [
    "CheckFailedError",
    "Counts",
    "PropertyResult",
    "PropertyStatus",
    "Report",
    "expression",
    "expressions",
]

_LONGEST = 2000  # characters of the records in a line to reproduce


class PropertyStatus(enum.StrEnum):
    """What was found of a property."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Counts:
    """What became of the records that were tried, each one alone.

    Attributes
    ----------
    succeeded, unchanged, dropped, failed : int
        Records that went on with a new value, that went on as they were, that were filtered, and
        that failed.
    """

    succeeded: int = 0
    unchanged: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def all(self) -> int:
        """int: All of them."""
        return self.succeeded + self.unchanged + self.dropped + self.failed

    def __str__(self) -> str:
        found = [
            f"{self.succeeded} succeeded" if self.succeeded else "",
            f"{self.unchanged} went on unchanged" if self.unchanged else "",
            f"{self.dropped} {'was' if self.dropped == 1 else 'were'} dropped"
            if self.dropped
            else "",
            f"{self.failed} failed" if self.failed else "",
        ]
        return f"of {units.counted(self.all, 'record')} {', '.join(filter(None, found))}"


@dataclass(frozen=True)
class PropertyResult:
    """What was found of one property.

    Attributes
    ----------
    name : str
    status : PropertyStatus
    sentence : str
        What the property says; what is wrong, if it failed; why it was not checked, if it does not
        apply.
    records : tuple of str
        The smallest batch of records found with which it fails, as Python expressions.
    index : int or None
        Which of them it fails at, if it is one.
    reproduce : str
        A line of Python that fails in the same way; `plugin` is the plugin.
    """

    name: str
    status: PropertyStatus
    sentence: str
    records: tuple[str, ...] = ()
    index: int | None = None
    reproduce: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: {self.sentence}"
        if self.status is not PropertyStatus.FAILED:
            return text
        lines = [text]
        if self.records:
            lines.append(f"  with {'this record' if len(self.records) == 1 else 'these records'}:")
            for index, record in enumerate(self.records[:20]):
                mark = "->" if index == self.index and len(self.records) > 1 else "  "
                lines.append(f"  {mark} {record if len(record) <= 200 else record[:197] + '...'}")
            if len(self.records) > 20:
                lines.append(f"     and {len(self.records) - 20} more")
        lines.append(f"  again: {self.reproduce}")
        return "\n".join(lines)


class CheckFailedError(AssertionError):
    """A plugin lacks a property.

    Attributes
    ----------
    report : Report
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Report:
    """What was found of a plugin.

    Attributes
    ----------
    plugin : str
        How the plugin is written.
    results : Mapping of str to PropertyResult
        By the name of the property, in the order in which they were checked.
    counts : Counts or None
        What became of the records; None if `some_records_work` was not asked for, or the plugin
        could not be run.
    """

    plugin: str
    results: Mapping[str, PropertyResult]
    counts: Counts | None = None

    def _with(self, status: PropertyStatus) -> list[PropertyResult]:
        return [result for result in self.results.values() if result.status is status]

    @property
    def passed(self) -> bool:
        """bool: Whether no property failed."""
        return not self.failures

    @property
    def failures(self) -> list[PropertyResult]:
        """list of PropertyResult: The properties that failed."""
        return self._with(PropertyStatus.FAILED)

    @property
    def not_applicable(self) -> list[PropertyResult]:
        """list of PropertyResult: The properties that were not checked; each says why."""
        return self._with(PropertyStatus.NOT_APPLICABLE)

    def raise_for_status(self) -> None:
        """Raise if a property failed.

        Raises
        ------
        CheckFailedError
            The message has all that failed.
        """
        if self.failures:
            raise CheckFailedError(str(self), self)

    def as_dict(self) -> dict[str, object]:
        """Everything, made of what JSON has.

        Returns
        -------
        dict
        """
        return {
            "plugin": self.plugin,
            "passed": self.passed,
            "counts": None if self.counts is None else asdict(self.counts),
            "properties": [asdict(result) for result in self.results.values()],
        }

    @property
    def headline(self) -> str:
        """str: The plugin, and how many properties passed, failed and do not apply."""
        counts = [
            f"{len(found)} {status.value}"
            for status in PropertyStatus
            if (found := self._with(status))
        ]
        return f"{self.plugin}: {', '.join(counts) or 'nothing was checked'}"

    def __str__(self) -> str:
        counts = [] if self.counts is None else [str(self.counts)]
        return "\n".join([self.headline, *map(str, self.failures), *counts])


def expression(record: PluginRecord) -> str:
    """A record as a Python expression; a long value of repetitions as a product.

    Parameters
    ----------
    record : PluginRecord

    Returns
    -------
    str
    """
    parts = [_bytes(bytes(record.value))]
    if record.key is not None:
        parts.append(f"key={_bytes(bytes(record.key))}")
    if record.metadata is not None:
        parts.append(f"metadata={dict(record.metadata)!r}")
    for name in ("timestamp", "partition", "offset"):
        if getattr(record, name):
            parts.append(f"{name}={getattr(record, name)}")
    return f"PluginRecord({', '.join(parts)})"


def _bytes(value: bytes) -> str:
    if len(value) > 100:
        for size in (1, 2, 16):
            unit, count = value[:size], len(value) // size
            rest = value[count * size :]
            if unit * count + rest == value:
                return f"{unit!r} * {count}" + (f" + {rest!r}" if rest else "")
    return repr(value)


def expressions(records: Iterable[PluginRecord]) -> tuple[tuple[str, ...], str | None]:
    """Records as Python expressions, and as a list, or None if that is too long for a line."""
    each = tuple(map(expression, records))
    text = f"[{', '.join(each)}]"
    return each, text if len(text) <= _LONGEST else None
