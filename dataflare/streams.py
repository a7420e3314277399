"""A stream: records that come one by one, run batch by batch, each of the size that pays best."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from dataflare._backend import (
    BatchResult,
    DataFlarePlugin,
    PluginRecord,
    RecordBatch,
    arrow,
)
from dataflare.batching import BatchPlugin, as_batch, is_arrow
from dataflare.config import BatchConfig
from dataflare.errors import PluginError
from dataflare.tuner import TunerState, tune

__all__ = ["BatchSizer", "run_stream", "taker"]

_FIRST_STEP = 64  # records whose sizes are summed before the step doubles


def run_stream(
    name: str,
    records: Iterable[object],
    config: BatchConfig,
    process: Callable[[str, RecordBatch], BatchResult],
    plugin_of: Callable[[str], DataFlarePlugin | None],
    log: logging.Logger | None = None,
) -> Iterator[BatchResult]:
    """Run a plugin over a stream.

    Parameters
    ----------
    name : str
    records : RecordBatch, Arrow data, or iterable of PluginRecord, bytes, str or bytes-like
    config : BatchConfig
    process : callable
        What runs the plugin of a name on a batch.
    plugin_of : callable
        Gives the plugin of a name, or None; asked before every batch, because it may be replaced.

    log : logging.Logger, optional
        Is told of every batch.

    Yields
    ------
    BatchResult
    """
    take = taker(records)
    sizer = BatchSizer(name, config)
    while True:
        plugin = plugin_of(name)
        if plugin is not None:  # if it is gone, that matters only if there are more records
            sizer.serve(plugin)
        started = time.perf_counter()
        batch = take(sizer.size, sizer.max_bytes)
        if not len(batch):
            return
        result = process(name, batch)
        seconds = time.perf_counter() - started
        # What is wrong with the size is said once the result is out: it must not be lost.
        yield result
        sizer.learn(len(batch), seconds, result)
        if log is not None:
            log.debug(
                "stream of %r: a batch of %d records done, the next of up to %d",
                name,
                len(batch),
                sizer.size,
            )


class BatchSizer:
    """Decides how many records the next batch of a stream has.

    A `BatchPlugin` that overrides `optimize_batch_size` decides itself; for every other plugin
    `tune` does, by the whole time of a batch: from the moment its records are asked for until its
    result is there. A plugin with a `batch_config` of its own is served by that, within the limits
    of the stream's.

    Parameters
    ----------
    name : str
        Of the plugin, for messages.
    config : BatchConfig
        Of the stream.

    Attributes
    ----------
    size : int
        Records in the next batch.
    max_bytes : int or None
        Bytes of values in it at most.
    """

    def __init__(self, name: str, config: BatchConfig) -> None:
        self.size = config.default_batch_size
        self.max_bytes = config.max_batch_bytes
        self._name = name
        self._stream_config = self._config = config
        self._plugin: DataFlarePlugin | None = None
        self._decides: BatchPlugin | None = None
        self._state = TunerState(self.size)

    def serve(self, plugin: DataFlarePlugin) -> None:
        """Size batches for a plugin from now on; for another one than before, from the start.

        Parameters
        ----------
        plugin : DataFlarePlugin
        """
        if plugin is self._plugin:
            return
        self._plugin = plugin
        self._config = config = _config_for(plugin, self._stream_config)
        self._decides = plugin if isinstance(plugin, BatchPlugin) and _decides(plugin) else None
        self._state = TunerState(config.default_batch_size)
        self.size = config.default_batch_size
        self.max_bytes = config.max_batch_bytes

    def learn(self, size: int, seconds: float, result: BatchResult) -> None:
        """Take in what a batch took.

        Parameters
        ----------
        size : int
            Records that it really had: fewer than `size` where the byte limit or the end of the
            stream cut it.
        seconds : float
            How long it took, the taking of its records included.
        result : BatchResult

        Raises
        ------
        PluginError
            The plugin's `optimize_batch_size` returned no integer.
        """
        config = self._config
        if not config.enable_auto_optimization:
            return
        if self._decides is None:
            throughput = size / seconds if seconds > 0.0 else 0.0
            self._state = state = tune(self._state, size, seconds, throughput, config)
            self.size = state.size
            return
        wanted = self._decides.optimize_batch_size(
            size, result.processing_time, result.throughput_per_second
        )
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            raise PluginError(
                f"optimize_batch_size returned {type(wanted).__name__}, not int", plugin=self._name
            )
        self.size = min(max(wanted, 1), config.max_batch_size)


def _decides(plugin: BatchPlugin) -> bool:
    """Whether a plugin has a rule of its own for the size."""
    rule = getattr(plugin.optimize_batch_size, "__func__", None)
    return rule is not BatchPlugin.optimize_batch_size


def _config_for(plugin: DataFlarePlugin, config: BatchConfig) -> BatchConfig:
    """The configuration of a plugin's streams: its own, if it has one, within the given limits."""
    own = plugin.batch_config if isinstance(plugin, BatchPlugin) else BatchPlugin.batch_config
    if own is BatchPlugin.batch_config:
        return config
    most = min(own.max_batch_size, config.max_batch_size)
    limits = [limit for limit in (own.max_batch_bytes, config.max_batch_bytes) if limit is not None]
    return replace(
        own,
        default_batch_size=min(own.default_batch_size, most),
        max_batch_size=most,
        max_batch_bytes=min(limits, default=None),
        enable_auto_optimization=own.enable_auto_optimization and config.enable_auto_optimization,
    )


def taker(records: Iterable[object]) -> Callable[[int, int | None], RecordBatch]:
    """What cuts batches off records in any form.

    Parameters
    ----------
    records : RecordBatch, Arrow data, or iterable of PluginRecord, bytes, str or bytes-like

    Returns
    -------
    callable
        Takes the number of records wanted and the bytes of values allowed, or None, and gives the
        next batch: at the end an empty one, else at least one record, however large that is. Of an
        iterator no more is taken than the batch holds and, where its bytes ended it, the one record
        that comes next.
    """
    if isinstance(records, BatchResult):
        records = records.output
    if isinstance(records, RecordBatch):
        return _cut_of(records)
    if is_arrow(records):
        return _recut_of(arrow.import_stream(records))
    return _taken_of(records)


def _cut_of(records: RecordBatch) -> Callable[[int, int | None], RecordBatch]:
    position = 0

    def take(size: int, max_bytes: int | None) -> RecordBatch:
        nonlocal position
        if max_bytes is not None:
            size = _fitting(records, position, size, max_bytes)
        batch = records[position : position + size]
        position += len(batch)
        return batch

    return take


def _recut_of(chunks: Iterator[RecordBatch]) -> Callable[[int, int | None], RecordBatch]:
    chunk = RecordBatch.from_values(())
    position = 0

    def take(size: int, max_bytes: int | None) -> RecordBatch:
        nonlocal chunk, position
        parts: list[RecordBatch] = []
        while size > 0:
            if position == len(chunk):
                position = 0
                following = next(chunks, None)
                if following is None:
                    chunk = chunk[:0]  # which keeps what the columns are, and no more
                    break
                chunk = following
                continue
            count = min(size, len(chunk) - position)
            if max_bytes is not None:
                if parts and chunk[position : position + 1].nbytes > max_bytes:
                    break
                count = _fitting(chunk, position, count, max_bytes)
            part = chunk[position : position + count]
            parts.append(part)
            position += count
            size -= count
            if max_bytes is not None:
                max_bytes -= part.nbytes
                if position < len(chunk):
                    break  # by the bytes, or by the number of records
        return arrow.join_batches(parts) if parts else chunk[:0]

    return take


def _fitting(records: RecordBatch, start: int, size: int, max_bytes: int) -> int:
    """How many records from a place on hold so many bytes of values; at least 1.

    In doubling steps, then by bisection, so that no more is summed up than twice the answer.
    """
    fit, room, step = 0, max_bytes, min(_FIRST_STEP, size)
    while fit < size:
        taken = records[start + fit : start + fit + step].nbytes
        if taken <= room:
            fit += step
            room -= taken
            step = min(2 * step, size - fit)
        elif step == 1:
            break
        else:
            size = fit + step - 1  # all of the step is too much
            step = max(step // 2, 1)
    return max(fit, 1)


def _taken_of(records: Iterable[object]) -> Callable[[int, int | None], RecordBatch]:
    iterator = iter(records)
    held: list[object] = []  # the record that did not fit, if any

    def take(size: int, max_bytes: int | None) -> RecordBatch:
        source = itertools.chain((held.pop(),), iterator) if held else iterator
        if max_bytes is None:
            return as_batch(tuple(itertools.islice(source, size)))
        items: list[object] = []
        room = max_bytes
        for item in itertools.islice(source, size):
            room -= len(item) if type(item) is bytes else _size_of(item)
            if room < 0 and items:
                held.append(item)
                break
            items.append(item)
        return as_batch(tuple(items))

    return take


def _size_of(item: object) -> int:
    """The bytes of a record's value; 0 for what is none, of which `as_batch` complains."""
    if isinstance(item, PluginRecord):
        item = item.value
    if isinstance(item, bytes):
        return len(item)
    try:
        return len(item.encode()) if isinstance(item, str) else memoryview(item).nbytes  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return 0
