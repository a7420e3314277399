"""The manager: plugins by name, and records through them.

Locking
-------
``_lock`` guards the registry's changes; looking a name up needs none, because a dictionary is read
in one step. A plugin is guarded by its runner, which lets one call in at a time. The manager's lock
is never held while a plugin's code runs, so a plugin may call its manager.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import TypeVar

from dataflare._backend import (
    BatchResult,
    DataFlarePlugin,
    MemoryPool,
    PluginRecord,
    PluginResult,
    PluginRunner,
    RecordBatch,
    set_state,
)
from dataflare.batching import BatchPlugin, as_batch
from dataflare.config import PluginManagerConfig
from dataflare.errors import (
    DuplicatePluginError,
    PluginError,
    PluginInitializationError,
    RunnerStoppedError,
    UnknownPluginError,
)
from dataflare.loading import make_plugin
from dataflare.metrics import PluginMetrics
from dataflare.tuner import next_batch_size
from dataflare.types import PluginState, PoolStats

__all__ = ["PluginManager"]

_logger = logging.getLogger("dataflare")
_steps = logging.getLogger("dataflare.manager")  # debug mode alone writes here

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PluginManager:
    """Runs plugins by name, over a memory pool of its own, and measures them.

    Parameters
    ----------
    config : PluginManagerConfig, optional

    Notes
    -----
    Safe to use from several threads; calls of the same plugin wait for each other. Use it as a
    context manager, or call `close`.
    """

    def __init__(self, config: PluginManagerConfig | None = None) -> None:
        if config is None:
            config = PluginManagerConfig()
        elif not isinstance(config, PluginManagerConfig):
            raise TypeError(f"config must be a PluginManagerConfig, not {type(config).__name__}")
        self.config = config
        self._debug = config.enable_debug_mode
        self.pool = MemoryPool(config.memory_pool_config, debug=self._debug)
        self._lock = threading.Lock()
        self._runners: dict[str, PluginRunner] = {}
        self._closed = False

    def __enter__(self) -> PluginManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"plugins: {', '.join(self._runners) or 'none'}"
        return f"PluginManager({state})"

    def register_plugin(
        self, name: str, plugin: object, config: Mapping[str, object] | None = None
    ) -> None:
        """Put a plugin in service.

        Parameters
        ----------
        name : str
        plugin : DataFlarePlugin, class, callable without arguments, or str
            An instance, what makes one, or where it is: ``"module:attribute"``.
        config : Mapping, optional
            Given to the plugin's `initialize`.

        Raises
        ------
        DuplicatePluginError
            The name is taken.
        IncompatiblePluginError
            The plugin was written for another API version.
        PluginInitializationError
            The plugin could not be made, or its `initialize` raised; nothing is registered.
        TypeError
            `plugin` is nothing that makes a plugin, or `name` is not a string.
        """
        self._check(name)
        if name in self._runners:
            raise DuplicatePluginError(f"a plugin {name!r} is registered already", plugin=name)
        instance = self._start(name, plugin, config)
        with self._lock:
            taken = self._closed or name in self._runners
            if not taken:
                self._runners[name] = PluginRunner(instance, self.pool)
        if taken:  # by another thread, in the meantime
            self._stop(name, instance)
            self._check(name)
            raise DuplicatePluginError(f"a plugin {name!r} is registered already", plugin=name)
        if self._debug:
            _steps.debug("registered the plugin %r", name)

    def replace_plugin(
        self, name: str, plugin: object, config: Mapping[str, object] | None = None
    ) -> None:
        """Put another plugin in the place of one; no record is lost or seen twice.

        The new plugin is ready before the old one goes; a call that is running ends with the old
        one. The metrics of the name go on.

        Parameters
        ----------
        name, plugin, config
            As of `register_plugin`.
        """
        self._check(name)
        self._runner(name)
        instance = self._start(name, plugin, config)
        with self._lock:
            old = self._runners.get(name)
            if old is not None:
                new = PluginRunner(instance, self.pool, old.counters)
                new.enabled = old.enabled
                self._runners[name] = new
        if old is None:  # unregistered by another thread, in the meantime
            self._stop(name, instance)
            raise _unknown(name)
        if self._debug:
            _steps.debug("replaced the plugin %r", name)
        self._retire(name, old)

    def unregister_plugin(self, name: str) -> None:
        """Take a plugin out of service and clean it up, once the call that is running has ended.

        Parameters
        ----------
        name : str
        """
        self._check(name)
        with self._lock:
            runner = self._runners.pop(name, None)
        if runner is None:
            raise _unknown(name)
        if self._debug:
            _steps.debug("unregistered the plugin %r", name)
        self._retire(name, runner)

    def list_plugins(self) -> list[str]:
        """The names of the plugins in service, in the order of their registration.

        Returns
        -------
        list of str
        """
        return list(self._runners)

    def get_plugin(self, name: str) -> DataFlarePlugin:
        """The plugin of a name.

        Parameters
        ----------
        name : str

        Returns
        -------
        DataFlarePlugin
        """
        return self._runner(name).plugin

    def enable_plugin(self, name: str) -> None:
        """Let a plugin that was disabled work again.

        Parameters
        ----------
        name : str
        """
        self._runner(name).enabled = True

    def disable_plugin(self, name: str) -> None:
        """Let a plugin raise `PluginDisabledError` until it is enabled again.

        Parameters
        ----------
        name : str
        """
        self._runner(name).enabled = False

    def process_record(self, name: str, record: PluginRecord) -> PluginResult:
        """Run a plugin on one record.

        Parameters
        ----------
        name : str
        record : PluginRecord

        Returns
        -------
        PluginResult

        Raises
        ------
        PluginError
            The record failed; the plugin's own exception is the ``__cause__``.
        """
        while True:
            runner = self._runners.get(name) or self._runner(name)
            try:
                if self._debug:
                    return _logged("process_record", name, runner.process_record, record)
                return runner.process_record(record)
            except RunnerStoppedError:
                if self._runners.get(name) is runner:
                    raise

    def process_batch(self, name: str, records: object) -> BatchResult:
        """Run a plugin on a batch; what fails is in the result.

        Parameters
        ----------
        name : str
        records : RecordBatch, numpy.ndarray, or iterable of PluginRecord, bytes, str or bytes-like

        Returns
        -------
        BatchResult

        Raises
        ------
        PluginError
            The plugin is unknown or disabled, or takes whole batches and failed as a whole.
        TypeError, ValueError
            `records` cannot be a batch; see `RecordBatch.from_values`.
        """
        batch = as_batch(records)
        while True:
            runner = self._runners.get(name) or self._runner(name)
            try:
                if self._debug:
                    return _logged("process_batch", name, runner.process_batch, batch)
                return runner.process_batch(batch)
            except RunnerStoppedError:
                if self._runners.get(name) is runner:
                    raise

    def process_stream(self, name: str, records: Iterable[object]) -> Iterator[BatchResult]:
        """Run a plugin over records that come one by one, batch by batch.

        The first batch has ``batch_config.default_batch_size`` records. How many the next one has
        follows from how long the last one took, unless ``enable_auto_optimization`` is False.

        Parameters
        ----------
        name : str
        records : RecordBatch, or iterable of PluginRecord, or of bytes, str or bytes-like
            May be without end; no more than a batch is held at a time.

        Returns
        -------
        iterator of BatchResult
        """
        self._runner(name)
        if isinstance(records, str | bytes | bytearray | memoryview | Mapping) or not isinstance(
            records, Iterable
        ):
            raise TypeError(f"records must be an iterable of records, not {type(records).__name__}")
        return self._stream(name, records)

    def _stream(self, name: str, records: Iterable[object]) -> Iterator[BatchResult]:
        size = self.config.batch_config.default_batch_size
        take = _taker(records)
        while len(batch := take(size)):
            result = self.process_batch(name, batch)
            before, size = size, self._next_size(name, size, result)
            if self._debug:
                _steps.debug(
                    "stream of %r: a batch of up to %d records done, the next of up to %d",
                    name, before, size,
                )  # fmt: skip
            yield result

    def _next_size(self, name: str, size: int, result: BatchResult) -> int:
        config = self.config.batch_config
        if not config.enable_auto_optimization:
            return size
        latency, throughput = result.processing_time, result.throughput_per_second
        plugin = self.get_plugin(name)
        if not isinstance(plugin, BatchPlugin):
            return next_batch_size(size, latency, throughput, config)
        wanted = plugin.optimize_batch_size(size, latency, throughput)
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            raise PluginError(
                f"optimize_batch_size returned {type(wanted).__name__}, not int", plugin=name
            )
        return min(max(wanted, 1), config.max_batch_size)

    def get_metrics(self, name: str) -> PluginMetrics | None:
        """What a plugin did so far.

        Parameters
        ----------
        name : str

        Returns
        -------
        PluginMetrics or None
            None if there is no plugin of that name.
        """
        runner = self._runners.get(name)
        return None if runner is None else PluginMetrics.of(runner.counters)

    def get_all_metrics(self) -> dict[str, PluginMetrics]:
        """What every plugin did so far, by name.

        Returns
        -------
        dict of str to PluginMetrics
        """
        return {
            name: PluginMetrics.of(runner.counters) for name, runner in self._runners.copy().items()
        }

    def get_memory_pool_stats(self) -> PoolStats | None:
        """The counts of the manager's memory pool.

        Returns
        -------
        PoolStats or None
            None when the pool does not count.
        """
        return self.pool.get_stats()

    def close(self) -> None:
        """Clean every plugin up and close the pool; closing twice is fine.

        Results stay valid.
        """
        with self._lock:
            self._closed = True
            runners = self._runners
            self._runners = {}
        for name, runner in runners.items():
            self._retire(name, runner)
        self.pool.close()
        if self._debug:
            _steps.debug("closed the manager")

    def _check(self, name: object) -> None:
        if self._closed:
            raise PluginError("the manager is closed")
        if not isinstance(name, str):
            raise TypeError(f"the name of a plugin must be str, not {type(name).__name__}")
        if not name:
            raise ValueError("the name of a plugin cannot be empty")

    def _runner(self, name: str) -> PluginRunner:
        self._check(name)
        runner = self._runners.get(name)
        if runner is None:
            raise _unknown(name)
        return runner

    def _start(
        self, name: str, plugin: object, config: Mapping[str, object] | None
    ) -> DataFlarePlugin:
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"the configuration must be a mapping, not {type(config).__name__}")
        instance = make_plugin(plugin)
        if any(runner.plugin is instance for runner in self._runners.copy().values()):
            raise DuplicatePluginError(
                "this plugin instance is registered already: register another one", plugin=name
            )
        if self._debug:
            _steps.debug("initializing the plugin %r", name)
        set_state(instance, PluginState.INITIALIZING)
        try:
            instance.initialize(MappingProxyType({} if config is None else config))
        except Exception as error:
            set_state(instance, PluginState.ERROR)
            raise PluginInitializationError(
                f"the plugin {name!r} failed to initialize: {type(error).__name__}: {error}",
                plugin=name,
            ) from error
        set_state(instance, PluginState.READY)
        _logger.debug("plugin %r is ready", name)
        return instance

    def _retire(self, name: str, runner: PluginRunner) -> None:
        runner.stop()
        if self._debug:
            _steps.debug("cleaning the plugin %r up", name)
        self._stop(name, runner.plugin)

    @staticmethod
    def _stop(name: str, plugin: DataFlarePlugin) -> None:
        try:
            plugin.cleanup()
        except Exception:
            set_state(plugin, PluginState.ERROR)
            _logger.exception("cleaning the plugin %r up failed", name)
        else:
            set_state(plugin, PluginState.STOPPED)
            _logger.debug("plugin %r is stopped", name)


def _unknown(name: str) -> UnknownPluginError:
    return UnknownPluginError(f"no plugin {name!r} is registered", plugin=name)


def _logged(step: str, name: str, call: Callable[[_In], _Out], argument: _In) -> _Out:
    """Call, and log how it ended: in text, because a handler may keep what it gets."""
    try:
        result = call(argument)
    except RunnerStoppedError:  # goes to the plugin that took its place
        raise
    except PluginError as error:
        _steps.debug("%s of %r failed: %s", step, name, str(error))
        raise
    if isinstance(result, BatchResult):
        _steps.debug("%s of %r: %s in %.6f s", step, name, str(result), result.processing_time)
    elif isinstance(result, PluginResult):
        outcomes = {"success": result.is_success, "filtered": result.is_filtered, "skip": True}
        _steps.debug("%s of %r: %s", step, name, next(filter(outcomes.get, outcomes)))
    return result


def _taker(records: Iterable[object]) -> Callable[[int], RecordBatch]:
    """A function that takes the next so many records, and at the end none."""
    if not isinstance(records, RecordBatch):
        iterator = iter(records)
        return lambda size: as_batch(tuple(itertools.islice(iterator, size)))
    position = 0

    def take(size: int) -> RecordBatch:
        nonlocal position
        batch = records[position : position + size]
        position += len(batch)
        return batch

    return take
