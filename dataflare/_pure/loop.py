"""The engine: runs a plugin over a batch and keeps each record's failure to that record."""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from dataflare._pure.batch import NO_VALUE, RecordBatch
from dataflare._pure.chain import Chain
from dataflare._pure.plugin import (
    DataFlarePlugin,
    FilterPlugin,
    MapPlugin,
    as_bytes,
    as_truth,
    plugin_name,
)
from dataflare._pure.pool import MemoryPool
from dataflare._pure.record import ERROR, SKIP, SUCCESS, PluginRecord, PluginResult, require
from dataflare._pure.result import (
    BatchResult,
    Errors,
    Gathering,
    Given,
    raise_plugin_error,
    record_error,
    wrong_type,
)
from dataflare.errors import (
    TOO_LATE,
    PluginError,
    PluginProcessingError,
    PluginTimeoutError,
    refuse_coroutine,
)

_Item = TypeVar("_Item")
_LAP = 4  # records of a chain between two looks at the clock


def run_record(plugin: DataFlarePlugin, record: PluginRecord) -> PluginResult:
    """Run a plugin on one record.

    Parameters
    ----------
    plugin : DataFlarePlugin
    record : PluginRecord

    Returns
    -------
    PluginResult

    Raises
    ------
    PluginError
        The plugin raised, or returned something else than a result.
    """
    require(record, PluginRecord, "record")
    try:
        result = plugin.process(record)
        if type(result) is not PluginResult:
            raise wrong_type(result)
        return result
    except Exception as error:
        raise_plugin_error(error, plugin_name(plugin))


def run_batch(
    plugin: DataFlarePlugin,
    batch: RecordBatch,
    pool: MemoryPool | None = None,
    timeout: float | None = None,
) -> BatchResult:
    """Run a plugin on every record of a batch.

    Parameters
    ----------
    plugin : DataFlarePlugin
    batch : RecordBatch
    pool : MemoryPool, optional
        Where the statuses are written; the system's allocator if not given.
    timeout : float, optional
        Seconds after which no further record is begun: what is left fails with
        `PluginTimeoutError`. A record that is being processed is not interrupted, nor is a plugin
        that takes whole batches.

    Returns
    -------
    BatchResult
        ``processing_time`` is left at 0; who calls measures.
    """
    require(batch, RecordBatch, "batch")
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    return _run(plugin, batch, pool, deadline)


def _run(
    plugin: DataFlarePlugin, batch: RecordBatch, pool: MemoryPool | None, deadline: float
) -> BatchResult:
    if batch._has_nulls():
        return _run_beside_nulls(plugin, batch, pool, deadline)
    if isinstance(plugin, Chain):
        return _run_chain(plugin, batch, pool, deadline)
    if hasattr(plugin, "process_batch"):
        return _run_whole(plugin, batch)
    gathering = Gathering(batch, pool)
    if type(plugin) is MapPlugin:
        _run_map(plugin, gathering, deadline)
    elif type(plugin) is FilterPlugin:
        _run_filter(plugin, gathering, deadline)
    else:
        _run_python(plugin, gathering, deadline)
    if len(gathering.status) < len(batch):
        late = PluginTimeoutError(TOO_LATE, plugin=plugin_name(plugin))
        while len(gathering.status) < len(batch):
            gathering.fail(late)
    return gathering.finish()


def _run_beside_nulls(
    plugin: DataFlarePlugin, batch: RecordBatch, pool: MemoryPool | None, deadline: float
) -> BatchResult:
    """Records without a value go past the plugin: they are skipped."""
    origin = [i for i, value in enumerate(batch._values) if value is not NO_VALUE]
    part = _run(plugin, batch.take(origin), pool, deadline)
    gathering = Gathering(batch, pool)
    errors = dict(part.errors)
    at = 0
    for value in batch._values:
        if value is NO_VALUE:
            gathering.skip()
            continue
        status = int(part._status[at])
        if status == ERROR:
            gathering.fail(errors[at])
        else:
            gathering.status.append(status)
        if status in (SUCCESS, SKIP):
            place = part._places[at]
            gathering.values.append(part._output._values[place])
            gathering.given.append(part._given[place])
        at += 1
    return gathering.finish()


def _in_time(items: Iterable[_Item], deadline: float) -> Iterator[_Item]:
    """The items, until the deadline."""
    if deadline == math.inf:
        return iter(items)
    return itertools.takewhile(lambda item: time.monotonic() < deadline, items)


def _run_map(plugin: MapPlugin, gathering: Gathering, deadline: float) -> None:
    for value in _in_time(gathering.batch.to_pylist(), deadline):
        try:
            data = as_bytes(plugin.function(value))
        except Exception as error:
            gathering.fail(record_error(error, plugin.name))
        else:
            gathering.succeed(data)


def _run_filter(plugin: FilterPlugin, gathering: Gathering, deadline: float) -> None:
    for value in _in_time(gathering.batch.to_pylist(), deadline):
        try:
            keep = as_truth(plugin.function(value))
        except Exception as error:
            gathering.fail(record_error(error, plugin.name))
        else:
            gathering.skip() if keep else gathering.drop()


def _run_python(plugin: DataFlarePlugin, gathering: Gathering, deadline: float) -> None:
    process = plugin.process
    for record in _in_time(gathering.batch, deadline):
        try:
            result = process(record)
        except Exception as error:
            gathering.fail(record_error(error, None))
            continue
        if type(result) is PluginResult:
            gathering.add(result)
        else:
            gathering.fail(wrong_type(result))
    if gathering.errors:
        name = plugin_name(plugin)
        for _, failure in gathering.errors:
            failure.plugin = failure.plugin or name


def _run_whole(plugin: DataFlarePlugin, batch: RecordBatch) -> BatchResult:
    """A plugin that takes batches; what it raises is the failure of every record."""
    name = plugin_name(plugin)
    try:
        result = plugin.process_batch(batch)  # type: ignore[attr-defined]
        if not isinstance(result, BatchResult) or not hasattr(result, "_status"):
            refuse_coroutine(result, "process_batch")
            raise PluginProcessingError(
                f"process_batch returned {type(result).__name__}, not a BatchResult"
            )
        if len(result) != len(batch):
            raise PluginProcessingError(
                f"process_batch returned {len(result)} results for {len(batch)} records"
            )
        _check_errors(result)
    except Exception as error:
        return BatchResult.failed(batch, record_error(error, name))
    return result


def _check_errors(result: BatchResult) -> None:
    """The list of errors is in the hands of whoever made the result."""
    places = [index for index, error in result.errors if isinstance(error, PluginError)]
    if (
        len(places) < len(result.errors)
        or places != np.flatnonzero(result.status == ERROR).tolist()
    ):
        raise PluginProcessingError("process_batch returned errors that do not fit its results")


def _run_chain(
    chain: Chain, batch: RecordBatch, pool: MemoryPool | None, deadline: float
) -> BatchResult:
    whole = len(chain.stages) == 1 or any(hasattr(stage, "process_batch") for stage in chain.stages)
    if deadline == math.inf or whole:
        return _run_stages(chain, batch, pool, deadline)
    # Lap by lap through all stages, so that what was begun in time is not lost behind it.
    parts = []
    start = 0
    while start < len(batch) and time.monotonic() < deadline:
        part = batch[start : start + _LAP]
        parts.append(_run_stages(chain, part, pool, math.inf))
        start += len(part)
    if start < len(batch):
        late = PluginTimeoutError(TOO_LATE, plugin=plugin_name(chain))
        parts.append(BatchResult.failed(batch[start:], late))
    return BatchResult.joined(batch, parts, pool)


def _run_stages(
    chain: Chain, batch: RecordBatch, pool: MemoryPool | None, deadline: float
) -> BatchResult:
    status = bytearray([SKIP]) * len(batch)
    errors: Errors = []
    current = batch
    # Position in the input, and the metadata given so far, of every record of `current`.
    origin = list(range(len(batch)))
    given: Given = [None] * len(batch)
    for at, stage in enumerate(chain.stages):
        began = time.monotonic_ns()
        result = _run(stage, current, pool, deadline)
        chain._stage_ns[at] += time.monotonic_ns() - began
        for index, error in result.errors:
            errors.append((origin[index], error))
        kept = []
        for index, outcome in enumerate(result.status.tolist()):
            if outcome != SKIP:
                status[origin[index]] = outcome
            if outcome in (SUCCESS, SKIP):
                kept.append(index)
        origin = [origin[index] for index in kept]
        given = [
            given[index] if new is None else new
            for index, new in zip(kept, result._given, strict=True)
        ]
        current = result.output
    errors.sort(key=operator.itemgetter(0))
    # The last output has the other columns already: every stage passed them on.
    return BatchResult._make(status, current, errors, given, pool)
