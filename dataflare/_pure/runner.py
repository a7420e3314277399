"""One plugin in service: runs it, one call at a time, measures it and keeps its state true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataflare._pure.batch import RecordBatch
from dataflare._pure.counters import PluginCounters
from dataflare._pure.loop import run_batch, run_record
from dataflare._pure.plugin import DataFlarePlugin, plugin_name, set_state
from dataflare._pure.pool import MemoryPool
from dataflare._pure.record import PluginRecord, PluginResult, require
from dataflare._pure.result import BatchResult
from dataflare.errors import PluginDisabledError, PluginProcessingError, RunnerStoppedError
from dataflare.types import PluginState


class PluginRunner:
    """Runs a plugin for a manager.

    Parameters
    ----------
    plugin : DataFlarePlugin
        Initialised.
    pool : MemoryPool
        Where output is written.
    counters : PluginCounters, optional
        Those of the plugin that this one replaces.

    Notes
    -----
    Calls from several threads wait for each other; a plugin that calls itself through its manager
    does not wait for itself.
    """

    def __init__(
        self, plugin: DataFlarePlugin, pool: MemoryPool, counters: PluginCounters | None = None
    ) -> None:
        self.plugin = plugin
        self.counters = PluginCounters() if counters is None else counters
        self.enabled = True
        self._pool = pool
        self._lock = threading.RLock()
        self._depth = 0
        self._stopped = False
        self._afterwards: Callable[[], None] | None = None

    def process_record(self, record: PluginRecord) -> PluginResult:
        """Run the plugin on one record.

        Raises
        ------
        PluginError
            The record failed.
        """
        require(record, PluginRecord, "record")
        size = len(record.value)  # the plugin can release the view that the value may be
        with self._running():
            started = time.perf_counter_ns()
            result = None
            try:
                result = run_record(self.plugin, record)
                if result.is_error:
                    raise PluginProcessingError(
                        str(result.message), plugin=plugin_name(self.plugin), code=result.code
                    )
                return result
            finally:
                self._count_record(size, result, time.perf_counter_ns() - started)

    def _count_record(self, size_in: int, result: PluginResult | None, elapsed_ns: int) -> None:
        size_out = size_in
        success = filtered = skipped = 0
        if result is None or result.is_error:
            size_out = 0
        elif result.is_success:
            success, size_out = 1, len(result.data or b"")
        elif result.is_filtered:
            filtered, size_out = 1, 0
        else:
            skipped = 1
        failed = 1 - success - filtered - skipped
        self.counters.observe(1, success, filtered, skipped, failed, size_in, size_out, elapsed_ns)

    def process_batch(self, batch: RecordBatch) -> BatchResult:
        """Run the plugin on a batch.

        Returns
        -------
        BatchResult

        Raises
        ------
        PluginError
            A plugin that takes whole batches failed; all records count as failed.
        """
        require(batch, RecordBatch, "batch")
        with self._running():
            started = time.perf_counter_ns()
            try:
                result = run_batch(self.plugin, batch, self._pool)
            except BaseException:
                elapsed = time.perf_counter_ns() - started
                self.counters.observe(len(batch), 0, 0, 0, len(batch), batch.nbytes, 0, elapsed)
                raise
            elapsed = time.perf_counter_ns() - started
            result.processing_time = elapsed / 1e9
            self.counters.observe(
                len(batch),
                result.success_count,
                result.filtered_count,
                result.skipped_count,
                result.error_count,
                batch.nbytes,
                result.output.nbytes,
                elapsed,
            )
            return result

    def stop(self, afterwards: Callable[[], None] | None = None) -> None:
        """Take the plugin out of service, once no call is running; what it was doing it ends.

        Parameters
        ----------
        afterwards : callable, optional
            Called then: at once, or, when a call of the plugin stops it, as that call ends.
        """
        with self._lock:
            self._stopped = True
            if self._depth > 0:
                self._afterwards = afterwards
                return
        if afterwards is not None:
            afterwards()

    @contextmanager
    def _running(self) -> Iterator[None]:
        afterwards = None
        try:
            with self._lock:
                if self._stopped:
                    raise RunnerStoppedError(
                        "the plugin is not in service any more", plugin=plugin_name(self.plugin)
                    )
                if not self.enabled:
                    raise PluginDisabledError(
                        "the plugin is disabled", plugin=plugin_name(self.plugin)
                    )
                self._depth += 1
                try:
                    set_state(self.plugin, PluginState.RUNNING)
                    yield
                finally:
                    self._depth -= 1
                    if self._depth == 0:
                        # Not by get_state, which a plugin may override.
                        if self.plugin._dataflare_state is PluginState.RUNNING:
                            set_state(self.plugin, PluginState.READY)
                        afterwards, self._afterwards = self._afterwards, None
        finally:
            if afterwards is not None:
                afterwards()
