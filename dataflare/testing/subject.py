"""The plugin that is checked: how to make it, to start it, and to see what it does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import NamedTuple

from dataflare._backend import (
    DataFlarePlugin,
    MemoryPool,
    NativePlugin,
    PluginRecord,
    PluginResult,
    RecordBatch,
    run_batch,
    run_record,
    set_state,
)
from dataflare.batching import members_of
from dataflare.errors import PluginError, sentence_of
from dataflare.loading import find_plugin, new_plugin
from dataflare.testing.report import Counts
from dataflare.types import PluginState

__all__ = [
    "Claims",
    "EscapedError",
    "NotReadyError",
    "Outcome",
    "Ran",
    "Row",
    "Subject",
    "count",
    "fresh",
    "leaves",
    "natives",
    "ran",
    "row",
    "run_all",
    "run_one",
]

Outcome = tuple[object, ...]
Row = tuple[object, ...]


class NotReadyError(Exception):
    """The plugin cannot be brought to the point where it could be checked."""


class EscapedError(Exception):
    """Something that is no `Exception` came out of the plugin."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the author says of a plugin; `check_plugin` says what each means."""

    config: Mapping[str, object] | None = None
    deterministic: bool = True
    stateful: bool = False
    whole_batch: bool = False
    distributed: bool | None = None
    health_timeout: float = 5.0

    def written(self) -> list[str]:
        """What is not the default, as arguments of `check_plugin`."""
        return [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]


class Ran(NamedTuple):
    """What became of some records, in a form that can be compared.

    Attributes
    ----------
    outcomes : list of tuple
        One for each record.
    output : list of tuple
        The records that go on.
    """

    outcomes: list[Outcome]
    output: list[Row]


class Subject:
    """A plugin, or what makes one, and what its author says of it.

    Parameters
    ----------
    plugin : DataFlarePlugin, class, callable without arguments, or str
    claims : Claims
    isolated : bool, optional
        Whether it runs in child processes; if not given, where it is native.

    Raises
    ------
    TypeError
        It is nothing that makes a plugin.
    PluginError
        It cannot be loaded.
    """

    def __init__(self, plugin: object, claims: Claims, isolated: bool | None = None) -> None:
        self.claims = claims
        self.source = find_plugin(plugin)
        self.name = repr(plugin) if isinstance(plugin, str) else _written(plugin)
        self.first = self.make()
        # A factory may give the same instance each time.
        self.makes_new = self.source is not self.first and self.make() is not self.first
        self._working: DataFlarePlugin | None = None
        self.isolated = self.is_native if isolated is None else isolated

    def make(self) -> DataFlarePlugin:
        """A plugin; the same one each time, if there is but one."""
        return new_plugin(self.source)

    @property
    def is_native(self) -> bool:
        """bool: Whether compiled code of somebody's runs in it, of the plugin or of a member."""
        return bool(natives(self.first))

    @property
    def config(self) -> Mapping[str, object]:
        """Mapping: What `initialize` gets."""
        return MappingProxyType(dict(self.claims.config or {}))

    @contextmanager
    def ready(self, plugin: DataFlarePlugin | None = None) -> Iterator[DataFlarePlugin]:
        """A plugin that is initialised.

        If none is given and the plugin is not stateful, it may be one that worked before: to
        initialise it may take long. It is cleaned up by `rest`. Any other is cleaned up at the end,
        and nothing said if that fails.
        """
        if plugin is None and not self.claims.stateful:
            if self._working is None:
                self._working = self._start(self.make())
            yield self._working
            return
        plugin = self.make() if plugin is None else plugin
        if plugin is self._working:
            self.rest()
        self._start(plugin)
        try:
            yield plugin
        finally:
            _stop(plugin)

    def rest(self) -> None:
        """Clean up what `ready` keeps."""
        plugin, self._working = self._working, None
        if plugin is not None:
            _stop(plugin)

    def _start(self, plugin: DataFlarePlugin) -> DataFlarePlugin:
        set_state(plugin, PluginState.INITIALIZING)
        try:
            plugin.initialize(self.config)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise NotReadyError(f"it cannot be initialised: {sentence_of(error)}") from error
        set_state(plugin, PluginState.READY)
        return plugin

    def run(self, records: Sequence[PluginRecord]) -> Ran:
        """What the plugin makes of a batch; just initialised, if it is stateful."""
        with self.ready() as plugin:
            return run_all(plugin, self.batch(records))

    def batch(self, records: Sequence[PluginRecord]) -> RecordBatch:
        """A batch of copies; see `copies`."""
        return RecordBatch.from_records(self.copies(records))

    def copies(self, records: Sequence[PluginRecord]) -> list[PluginRecord]:
        """Copies of records, so that nothing that is done to one is seen in another.

        `bytes` of one byte exist but once, so a native plugin gets views of other memory.
        """
        return [fresh(record, views=self.is_native) for record in records]


def _stop(plugin: DataFlarePlugin) -> None:
    with suppress(Exception, SystemExit):
        plugin.cleanup()
    set_state(plugin, PluginState.STOPPED)


def leaves(plugin: DataFlarePlugin) -> list[DataFlarePlugin]:
    """The plugins that a chain or adapter is made of in the end, or the plugin itself."""
    return [part for part in (plugin, *members_of(plugin)) if not members_of(part)]


def natives(plugin: DataFlarePlugin) -> list[DataFlarePlugin]:
    """The native ones among the members of a plugin."""
    return [part for part in (plugin, *members_of(plugin)) if isinstance(part, NativePlugin)]


def fresh(record: PluginRecord, *, views: bool) -> PluginRecord:
    """A copy of a record, its bytes as `bytes` or as views of bytearrays."""
    value, key = bytes(record.value), None if record.key is None else bytes(record.key)
    return PluginRecord(
        bytearray(value) if views else value,
        key=bytearray(key) if views and key is not None else key,
        metadata=None if record.metadata is None else deepcopy(dict(record.metadata)),
        timestamp=record.timestamp,
        partition=record.partition,
        offset=record.offset,
    )


def run_one(plugin: DataFlarePlugin, record: PluginRecord) -> Outcome:
    """What a plugin makes of one record.

    Raises
    ------
    EscapedError
    """
    try:
        return _outcome(run_record(plugin, record))
    except (PluginError, KeyboardInterrupt) as error:
        if isinstance(error, PluginError):
            return _failure(error)
        raise
    except BaseException as error:
        raise EscapedError(sentence_of(error)) from error


def count(subject: Subject, records: Sequence[PluginRecord]) -> tuple[Counts, str]:
    """What becomes of records, each one alone, and what the first one that fails fails with.

    Raises
    ------
    EscapedError
    """
    found: Counter[object] = Counter()
    why = ""
    with subject.ready() as plugin:
        for record in subject.copies(records):
            try:
                result = run_record(plugin, record)
                outcome = _outcome(result)[0]
                why = why or (repr(result.message) if result.is_error else "")
            except (PluginError, KeyboardInterrupt) as error:
                if not isinstance(error, PluginError):
                    raise
                outcome = "error"
                why = why or (str(error) if error.__cause__ else sentence_of(error))
            except BaseException as error:
                raise EscapedError(sentence_of(error)) from error
            found[outcome] += 1
    counts = Counts(found["success"], found["skip"], found["filtered"], found["error"])
    return counts, why


def run_all(plugin: DataFlarePlugin, batch: RecordBatch, pool: MemoryPool | None = None) -> Ran:
    """What a plugin makes of a batch.

    Raises
    ------
    EscapedError
    """
    try:
        result = run_batch(plugin, batch, pool)
        return ran(result.results, dict(result.errors), result.output)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EscapedError(sentence_of(error)) from error


def ran(
    results: Iterable[PluginResult], errors: Mapping[int, PluginError], output: RecordBatch
) -> Ran:
    """The parts of a `BatchResult` as what can be compared."""
    outcomes = [
        _failure(errors[index]) if index in errors else _outcome(result)
        for index, result in enumerate(results)
    ]
    return Ran(outcomes, [row(record) for record in output])


def row(record: PluginRecord) -> Row:
    """Everything of a record, copied."""
    return (
        bytes(record.value),
        None if record.key is None else bytes(record.key),
        deepcopy(dict(record.metadata)) if record.metadata else {},
        record.timestamp,
        record.partition,
        record.offset,
    )


def _outcome(result: PluginResult) -> Outcome:
    if result.is_success:
        given = deepcopy(dict(result.metadata)) if result.metadata else None
        return "success", bytes(result.data or b""), given
    if result.is_error:
        return "error", "PluginProcessingError", result.code
    return ("filtered",) if result.is_filtered else ("skip",)


def _failure(error: PluginError) -> Outcome:
    # Not the message: it may well say where in the batch the record was.
    return "error", type(error.__cause__ or error).__name__, error.code


def _written(plugin: object) -> str:
    """How a plugin is written in Python, or at least what it is."""
    if isinstance(plugin, type) or not isinstance(plugin, DataFlarePlugin):
        return str(getattr(plugin, "__qualname__", type(plugin).__qualname__))
    text = repr(plugin)
    return f"{type(plugin).__qualname__}(...)" if re.search(" at 0x", text) else text
