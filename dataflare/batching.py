"""Plugins that take whole batches, and sequences of records as batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import numpy as np

from dataflare._backend import (
    BatchResult,
    Chain,
    DataFlarePlugin,
    PluginRecord,
    PluginResult,
    RecordBatch,
    as_member,
    run_batch,
    run_record,
)
from dataflare.config import BatchConfig
from dataflare.errors import PluginConfigurationError, refuse_coroutine
from dataflare.tuner import next_batch_size
from dataflare.types import PluginInfo

__all__ = ["BatchAdapter", "BatchPlugin", "as_batch", "is_arrow", "members_of"]


def is_arrow(records: object) -> bool:
    """Whether something offers its records as Arrow data.

    Parameters
    ----------
    records : object

    Returns
    -------
    bool
    """
    kind = type(records)
    return hasattr(kind, "__arrow_c_array__") or hasattr(kind, "__arrow_c_stream__")


def as_batch(records: object) -> RecordBatch:
    """Records in any form as a batch.

    Parameters
    ----------
    records : RecordBatch, Arrow data, numpy.ndarray, or iterable of PluginRecord, bytes, str or \
            bytes-like

    Returns
    -------
    RecordBatch
    """
    if isinstance(records, RecordBatch):
        return records
    if isinstance(records, BatchResult):
        return records.output
    if isinstance(records, np.ndarray):
        return RecordBatch.from_values(records)
    if is_arrow(records):
        return RecordBatch.from_arrow(records)
    if isinstance(records, Iterable) and not isinstance(
        records, str | bytes | bytearray | memoryview | Mapping
    ):
        items = records if isinstance(records, list | tuple) else tuple(records)
        if items and isinstance(items[0], PluginRecord):
            return RecordBatch.from_records(items)
        return RecordBatch.from_values(items)
    raise TypeError(
        f"records must be a sequence of records or values, not {type(records).__name__}"
    )


class BatchPlugin(DataFlarePlugin):
    """Base class of plugins that see a whole batch at a time; overrides `process_batch`.

    Parameters
    ----------
    config : BatchConfig, optional
        What its streams and `optimize_batch_size` go by, within the limits of the manager's
        configuration; if not given, streams go by the manager's.
    """

    batch_config = BatchConfig()

    def __init__(self, config: BatchConfig | None = None) -> None:
        if config is not None:
            if not isinstance(config, BatchConfig):
                raise TypeError(f"config must be a BatchConfig, not {type(config).__name__}")
            self.batch_config = config

    def process_batch(self, records: RecordBatch) -> BatchResult:
        """Say what becomes of every record of a batch.

        Parameters
        ----------
        records : RecordBatch

        Returns
        -------
        BatchResult
            Such as `BatchResult.from_results` makes.
        """
        raise PluginConfigurationError(f"{type(self).__name__} does not define process_batch")

    def process(self, record: PluginRecord) -> PluginResult:
        """Process a batch of this record alone."""
        result = self.process_batch(RecordBatch.from_records([record]))
        refuse_coroutine(result, "process_batch")
        if result.errors:
            raise result.errors[0][1]
        return result.results[0]

    def optimize_batch_size(self, current_size: int, latency: float, throughput: float) -> int:
        """The size of the next batch of a stream, by the last one alone.

        Override it to decide the size of every batch. A stream of a plugin that does not is sized
        by `dataflare.tuner.tune`, which remembers more than one batch.

        Parameters
        ----------
        current_size : int
            Records in the last batch.
        latency : float
            Seconds it took.
        throughput : float
            Records per second.

        Returns
        -------
        int
        """
        return next_batch_size(current_size, latency, throughput, self.batch_config)


class BatchAdapter(BatchPlugin):
    """A plugin for single records as one for batches.

    Parameters
    ----------
    plugin : DataFlarePlugin or str
        Of a string the plugin that it names, as in `PluginManager.register_plugin`.
    config : BatchConfig, optional

    Raises
    ------
    TypeError
        It is no plugin.
    PluginError
        The string names no plugin that can be used.
    """

    def __init__(self, plugin: DataFlarePlugin | str, config: BatchConfig | None = None) -> None:
        super().__init__(config)
        member = as_member(plugin)
        if not isinstance(member, DataFlarePlugin):
            raise TypeError(f"an adapter takes a plugin, not {type(member).__name__}")
        self.plugin = member
        self.thread_safe = member.thread_safe
        self.releases_gil = member.releases_gil
        self.retryable_errors = member.retryable_errors

    def process_batch(self, records: RecordBatch) -> BatchResult:
        """Run the plugin on every record; a failure is that of its record alone."""
        batch = as_batch(records)
        started = time.perf_counter()
        result = run_batch(self.plugin, batch)
        result.processing_time = time.perf_counter() - started
        return result

    def process(self, record: PluginRecord) -> PluginResult:
        """Run the plugin on one record."""
        return run_record(self.plugin, record)

    def info(self) -> PluginInfo:
        """The plugin's own."""
        return self.plugin.info()

    def initialize(self, config: Mapping[str, object]) -> None:
        """Initialise the plugin."""
        self.plugin.initialize(config)

    def cleanup(self) -> None:
        """Clean the plugin up."""
        self.plugin.cleanup()

    def health_check(self) -> bool:
        """Ask the plugin."""
        return self.plugin.health_check()


def members_of(plugin: DataFlarePlugin) -> list[DataFlarePlugin]:
    """The plugins that a plugin is made of.

    Parameters
    ----------
    plugin : DataFlarePlugin

    Returns
    -------
    list of DataFlarePlugin
        Those inside a chain or an adapter, and inside these; none of any other plugin.
    """
    if isinstance(plugin, BatchAdapter):
        inner = [plugin.plugin]
    elif isinstance(plugin, Chain):
        inner = list(plugin.plugins)
    else:
        return []
    return [each for member in inner for each in (member, *members_of(member))]
