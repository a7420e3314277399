"""The manager: plugins by name, and records through them.

Locking
-------
``_lock`` guards the registry's changes; looking a name up needs none, because a dictionary is read
in one step. A plugin is guarded by its runner, which lets in as many calls as it has slots. The
manager's lock is never held while a plugin's code runs, so a plugin may call its manager. What is
called inside a plugin does not wait for the end of other calls: what is to follow that end is done
by whoever leaves last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, TypeVar

from dataflare._backend import (
    BatchResult,
    DataFlarePlugin,
    MemoryPool,
    PluginRecord,
    PluginResult,
    PluginRunner,
    RecordBatch,
    is_inside,
    set_state,
)
from dataflare._later import Later
from dataflare.batching import as_batch, is_arrow, members_of
from dataflare.config import PluginManagerConfig
from dataflare.errors import (
    DuplicatePluginError,
    PluginError,
    PluginInitializationError,
    RunnerStoppedError,
    UnknownPluginError,
    sentence_of,
)
from dataflare.loading import find_plugin, make_plugin
from dataflare.monitor import Monitor
from dataflare.recovery import SHARED_SLOTS
from dataflare.service import PluginService, each_once
from dataflare.streams import run_stream
from dataflare.types import PluginState, PoolStats
from dataflare.workers import Workers

if TYPE_CHECKING:
    from dataflare import dead_letters as _dead_letters
    from dataflare import observer as _observer
    from dataflare import report as _report
    from dataflare.health import HealthReport
    from dataflare.metrics import PluginHistograms, PluginMetrics
    from dataflare.observer import Observer, SystemStatus
    from dataflare.samples import Sample
else:
    _dead_letters = Later("dataflare.dead_letters")
    _observer = Later("dataflare.observer")
    _report = Later("dataflare.report")

__all__ = ["PluginManager"]

_logger = logging.getLogger("dataflare.manager")
_managers: weakref.WeakSet[PluginManager] = weakref.WeakSet()

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class PluginManager:
    """Runs plugins by name, over a memory pool of its own, and measures them.

    Parameters
    ----------
    config : PluginManagerConfig, optional

    Notes
    -----
    Safe to use from several threads: as many calls of a plugin run at once as it has instances, or
    more if it is thread-safe; others wait in line. Use it as a context manager, or call `close`.
    """

    def __init__(self, config: PluginManagerConfig | None = None) -> None:
        if config is None:
            config = PluginManagerConfig()
        elif not isinstance(config, PluginManagerConfig):
            raise TypeError(f"config must be a PluginManagerConfig, not {type(config).__name__}")
        self.config = config
        self._debug = config.enable_debug_mode
        self.pool = MemoryPool(config.memory_pool_config, debug=self._debug)
        batches = config.batch_config
        self._workers = (
            Workers(batches.parallelism)
            if batches.enable_parallel and batches.parallelism > 1
            else None
        )
        self._monitor = Monitor()
        self._observer: Observer | None = None  # made by `_observe`
        self._lock = threading.RLock()
        self._services: dict[str, PluginService] = {}
        self._claimed: dict[int, DataFlarePlugin] = {}  # every instance that is not cleaned up yet
        self._began = time.monotonic()
        self._closed = False
        _managers.add(self)

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
        state = "closed" if self._closed else f"plugins: {', '.join(self._services) or 'none'}"
        return f"PluginManager({state})"

    def register_plugin(
        self,
        name: str,
        plugin: object,
        config: Mapping[str, object] | None = None,
        *,
        fallback: object = None,
        dead_letters: object = None,
    ) -> None:
        """Put a plugin in service.

        Parameters
        ----------
        name : str
        plugin : DataFlarePlugin, class, callable without arguments, or str
            An instance, what makes one, or how it is written: a name with its arguments
            (``"contains:ERROR"``), ``"module:attribute"``, ``"file.py:attribute"`` or
            ``"file.pyx:class"``. Of a class, a callable or a name there will be as many instances
            as threads may work on a batch, at most ``max_plugin_instances``; one if they are
            thread-safe.
        config : Mapping, optional
            Given to `initialize` of the plugin, of its fallback and of a plugin for dead letters.
        fallback : DataFlarePlugin, class, callable or str, optional
            Processes the records that the plugin fails at, and all while its circuit is open.
        dead_letters : callable, path, DataFlarePlugin, or str, optional
            Gets the records that failed for good; see `DeadLetter`. A callable is called in the
            thread whose record failed, a file gets a line of JSON for each. A string is the path of
            a file, but ``"plugin:NAME"`` is the plugin that is written NAME.

        Raises
        ------
        DuplicatePluginError
            The name is taken.
        IncompatiblePluginError
            The plugin was written for another API version.
        PluginConfigurationError
            Nothing can be used that is written so; or the plugin, or a member of it, defines
            nothing that could process a record.
        PluginInitializationError
            The plugin could not be made, or its `initialize` raised; nothing is registered.
        TypeError
            `plugin` is nothing that makes a plugin, or `name` is not a string.
        OSError
            The file for dead letters cannot be written.
        """
        self._check(name)
        if name in self._services:
            raise DuplicatePluginError(f"a plugin {name!r} is registered already", plugin=name)
        sink = None
        if dead_letters is not None:
            sink = _dead_letters.DeadLetterSink(dead_letters, self.pool)
        started: list[DataFlarePlugin] = []
        try:
            slots = self._start(name, plugin, config, started)
            second = None
            if fallback is not None:
                second = self._start_one(name, make_plugin(fallback), config, started)
            if sink is not None and sink.plugin is not None:
                self._start_one(name, make_plugin(sink.plugin), config, started)
            service = PluginService(
                name,
                slots,
                self.pool,
                self.config.failure_recovery,
                self._workers,
                second,
                sink,
            )
            with self._lock:
                taken = self._closed or name in self._services
                if not taken:
                    self._services[name] = service
                    if len(self._services) == 1 and not self._monitor.is_running:
                        self._watch()
            if taken:  # by another thread, in the meantime
                self._check(name)
                raise DuplicatePluginError(f"a plugin {name!r} is registered already", plugin=name)
        except BaseException:
            self._stop(name, started)
            if sink is not None:
                sink.close()
            raise
        if self._debug:
            _logger.debug("registered the plugin %r", name)

    def replace_plugin(
        self, name: str, plugin: object, config: Mapping[str, object] | None = None
    ) -> None:
        """Put another plugin in the place of one; no record is lost or seen twice.

        The new plugin is ready before the old one goes; a call that is running ends with the old
        one. The metrics of the name go on, its fallback and dead letters stay, and its circuit is
        closed.

        Parameters
        ----------
        name, plugin, config
            As of `register_plugin`.

        Raises
        ------
        UnknownPluginError
            No plugin of that name is registered.
        PluginError
            As of `register_plugin`; the old plugin stays in service.
        """
        self._check(name)
        self._service(name)
        started: list[DataFlarePlugin] = []
        try:
            slots = self._start(name, plugin, config, started)
            old = None
            while old is None:
                service = self._service(name)  # unless it was unregistered meanwhile
                new = service.make_runner(slots)
                with self._lock:
                    if self._services.get(name) is service:
                        old = service.replace(new)
        except BaseException:
            self._stop(name, started)
            raise
        if self._debug:
            _logger.debug("replaced the plugin %r", name)
        retired = each_once(old.plugins)
        service.retire(old, lambda: self._stop(name, retired))

    def unregister_plugin(self, name: str) -> None:
        """Take a plugin out of service and clean it up, once the calls that are running have ended.

        Parameters
        ----------
        name : str

        Raises
        ------
        UnknownPluginError
            No plugin of that name is registered.
        """
        self._check(name)
        with self._lock:
            service = self._services.pop(name, None)
        if service is None:
            raise _unknown(name)
        if self._debug:
            _logger.debug("unregistered the plugin %r", name)
        self._retire(service)

    def list_plugins(self) -> list[str]:
        """The names of the plugins in service, in the order of their registration.

        Returns
        -------
        list of str
        """
        return list(self._services)

    def get_plugin(self, name: str) -> DataFlarePlugin:
        """The plugin of a name; of several instances the first.

        Parameters
        ----------
        name : str

        Returns
        -------
        DataFlarePlugin

        Raises
        ------
        UnknownPluginError
            No plugin of that name is registered.
        """
        return self._service(name).runner.plugin

    def enable_plugin(self, name: str) -> None:
        """Let a plugin that was disabled work again.

        Parameters
        ----------
        name : str

        Raises
        ------
        UnknownPluginError
            No plugin of that name is registered.
        """
        with self._lock:  # it could be replaced in between
            self._service(name).runner.enabled = True

    def disable_plugin(self, name: str) -> None:
        """Let a plugin raise `PluginDisabledError` until it is enabled again.

        Parameters
        ----------
        name : str

        Raises
        ------
        UnknownPluginError
            No plugin of that name is registered.
        """
        with self._lock:
            self._service(name).runner.enabled = False

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
            The record failed, and the plugin's own exception is the ``__cause__``; or the plugin is
            unknown or disabled, or its circuit open.
        TypeError
            `record` is no PluginRecord.
        """
        while True:
            try:
                runner = self._services[name].runner
            except (KeyError, TypeError):  # unknown, or no name at all
                runner = self._service(name).runner
            try:
                if self._debug:
                    return _logged("process_record", name, runner.process_record, record)
                return runner.process_record(record)
            except RunnerStoppedError:
                if self._is_current(name, runner):
                    raise
            except TypeError:
                if isinstance(record, PluginRecord):
                    raise
                raise TypeError(
                    f"process_record takes a PluginRecord, not {type(record).__name__}: make one "
                    f"by PluginRecord(value), or give process_batch a list of values"
                ) from None

    def process_batch(self, name: str, records: object) -> BatchResult:
        """Run a plugin on a batch; what fails is in the result.

        Parameters
        ----------
        name : str
        records : RecordBatch, Arrow data, numpy.ndarray, or iterable of PluginRecord, bytes, str \
                or bytes-like
            Of an Arrow table the only column, or the one named ``value``; `RecordBatch.from_arrow`
            takes any. Of a BatchResult, what goes on.

        Returns
        -------
        BatchResult

        Raises
        ------
        PluginError
            The plugin is unknown or disabled.
        TypeError
            `records` is nothing that can be a batch; see `RecordBatch.from_values` and
            `RecordBatch.from_arrow`.
        ValueError
            A value or a number cannot be expressed.
        """
        batch = records if type(records) is RecordBatch else as_batch(records)
        while True:
            try:
                runner = self._services[name].runner
            except (KeyError, TypeError):  # unknown, or no name at all
                runner = self._service(name).runner
            try:
                if self._debug:
                    return _logged("process_batch", name, runner.process_batch, batch)
                return runner.process_batch(batch)
            except RunnerStoppedError:
                if self._is_current(name, runner):
                    raise

    def process_stream(self, name: str, records: Iterable[object]) -> Iterator[BatchResult]:
        """Run a plugin over records that come one by one, batch by batch.

        The first batch has ``batch_config.default_batch_size`` records. How many the next one has
        follows from how long those before it took, unless ``enable_auto_optimization`` is False;
        see `dataflare.tuner`. A batch holds at most ``max_batch_bytes`` of values, but always a
        record.

        Parameters
        ----------
        name : str
        records : RecordBatch, Arrow data, or iterable of PluginRecord, or of bytes, str or \
                bytes-like
            May be without end; no more than a batch is held at a time, of an Arrow stream no more
            than the chunks that the batch lies in.

        Returns
        -------
        iterator of BatchResult

        Raises
        ------
        PluginError
            The plugin is unknown or disabled, when the stream begins or later.
        TypeError
            `records` is no iterable of records.
        """
        self._service(name)
        if isinstance(records, str | bytes | bytearray | memoryview | Mapping) or not (
            isinstance(records, Iterable) or is_arrow(records)
        ):
            raise TypeError(f"records must be an iterable of records, not {type(records).__name__}")
        config = self.config.batch_config
        if not self.config.enable_auto_optimization:
            config = replace(config, enable_auto_optimization=False)
        return run_stream(
            name,
            records,
            config,
            self.process_batch,
            self._plugin_of,
            _logger if self._debug else None,
        )

    def _plugin_of(self, name: str) -> DataFlarePlugin | None:
        service = self._services.get(name)
        return None if service is None else service.runner.plugin

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
        service = self._services.get(_checked(name))
        return None if service is None else self._observe().metrics(service)

    def get_all_metrics(self) -> dict[str, PluginMetrics]:
        """What every plugin did so far, by name.

        Returns
        -------
        dict of str to PluginMetrics
        """
        metrics = self._observe().metrics
        return {name: metrics(each) for name, each in self._services.copy().items()}

    def get_histograms(self, name: str) -> PluginHistograms | None:
        """How long a plugin took so far, as whole distributions.

        Parameters
        ----------
        name : str

        Returns
        -------
        PluginHistograms or None
            Copies, that do not change any more; None if there is no plugin of that name.
        """
        service = self._services.get(_checked(name))
        return None if service is None else self._observe().histograms(service)

    def get_memory_pool_stats(self) -> PoolStats | None:
        """The counts of the manager's memory pool.

        Returns
        -------
        PoolStats or None
            None when the pool does not count.
        """
        return self.pool.get_stats()

    def health_check(self, timeout: float | None = None) -> HealthReport:
        """Ask every plugin, the pool and the workers how they are.

        A plugin is asked in a thread of its own, also while it is processing.

        Parameters
        ----------
        timeout : float, optional
            Seconds that all plugins have to answer; ``config.health_check_timeout`` if not given.

        Returns
        -------
        HealthReport

        Raises
        ------
        TypeError, ValueError
            `timeout` is no duration.
        """
        return self._observe().check_health(self._services.copy(), timeout)

    @property
    def last_health(self) -> HealthReport | None:
        """HealthReport or None: What the latest health check found."""
        return None if self._observer is None else self._observer.last_health

    def take_sample(self) -> Sample:
        """Keep a sample of all metrics, as happens every ``config.monitoring_interval`` seconds.

        Returns
        -------
        Sample
        """
        return self._observe().take_sample(self._services.copy())

    @property
    def samples(self) -> list[Sample]:
        """list of Sample: The latest ``config.max_samples``, the oldest first."""
        return [] if self._observer is None else self._observer.samples

    def get_system_status(self) -> SystemStatus:
        """State, plugins, threads, memory and totals.

        Returns
        -------
        SystemStatus
        """
        state = "closed" if self._closed else "running"
        return self._observe().status(state, self._services.copy())

    def export_performance_report(self, path: str | os.PathLike[str]) -> None:
        """Write all figures to a file, after a last sample and a health check.

        Parameters
        ----------
        path : str or path-like
            Ends with ``.json``, for machines, or ``.html``: one page with plots over time that
            needs nothing beside it. A file of that name is replaced once the new one is complete.

        Raises
        ------
        PluginConfigurationError
            `path` has another ending, or the packages for a page are not installed.
        PluginError
            The manager is closed; export before.
        OSError
            The file cannot be written.
        """
        if self._closed:
            raise PluginError("the manager is closed, and so has nothing to report")
        with _report.ReportFile(path) as file:
            file.write(self)

    def close(self) -> None:
        """End the threads, clean every plugin up and close the pool; closing twice is fine.

        Calls that are running end first; inside a plugin this does not wait for them. Results stay
        valid.
        """
        with self._lock:
            self._closed = True
            services = self._services
            self._services = {}
        for service in services.values():
            service.warn()
        with ExitStack() as stack:  # an interrupt in one of these does not spare the others
            stack.callback(self.pool.close)
            if self._workers is not None:
                stack.callback(self._workers.close, wait=not is_inside())
            for service in reversed(services.values()):
                stack.callback(self._retire, service)
            stack.callback(self._monitor.stop, wait=not is_inside())
            if self._observer is not None:
                stack.callback(self._observer.close)
        if self._debug:
            _logger.debug("closed the manager")

    def _check(self, name: object) -> None:
        if self._closed:
            raise PluginError("the manager is closed")
        if not _checked(name):
            raise ValueError("the name of a plugin cannot be empty")

    def _service(self, name: str) -> PluginService:
        self._check(name)
        service = self._services.get(name)
        if service is None:
            raise _unknown(name)
        return service

    def _is_current(self, name: str, runner: PluginRunner) -> bool:
        service = self._services.get(name)
        return service is not None and service.runner is runner

    def _start(
        self,
        name: str,
        plugin: object,
        config: Mapping[str, object] | None,
        started: list[DataFlarePlugin],
    ) -> list[DataFlarePlugin]:
        """Instances that are ready, one for each slot; `started` gets each of them once."""
        source = find_plugin(plugin)  # once, for a file may change meanwhile
        first = self._start_one(name, make_plugin(source), config, started)
        if first.thread_safe:
            return [first] * SHARED_SLOTS
        batches = self.config.batch_config
        if first is source or self._workers is None:
            return [first]
        count = min(batches.parallelism, self.config.max_plugin_instances)
        while len(started) < count:
            instance = make_plugin(source)
            if any(instance is each for each in started):
                break  # the factory, or the attribute of the module, is always the same one
            self._start_one(name, instance, config, started)
        return list(started)

    def _start_one(
        self,
        name: str,
        instance: DataFlarePlugin,
        config: Mapping[str, object] | None,
        started: list[DataFlarePlugin],
    ) -> DataFlarePlugin:
        if config is not None and not isinstance(config, Mapping):
            raise TypeError(f"the configuration must be a mapping, not {type(config).__name__}")
        parts = each_once([instance, *members_of(instance)])
        with self._lock:
            if any(id(part) in self._claimed for part in parts):
                raise DuplicatePluginError(
                    "this plugin instance is registered already, or is part of one that is: "
                    "register another one",
                    plugin=name,
                )
            self._claimed.update((id(part), part) for part in parts)
        if self._debug:
            _logger.debug("initializing the plugin %r", name)
        set_state(instance, PluginState.INITIALIZING)
        for member in parts[1:]:
            set_state(member, instance)
        try:
            instance.initialize(MappingProxyType({} if config is None else config))
        except BaseException as error:
            self._release(instance, PluginState.ERROR)
            if not isinstance(error, Exception):
                raise
            raise PluginInitializationError(
                f"the plugin {name!r} failed to initialize: {sentence_of(error)}", plugin=name
            ) from error
        set_state(instance, PluginState.READY)
        started.append(instance)
        return instance

    def _observe(self) -> Observer:
        if self._observer is None:
            make = _observer.Observer  # imported without the lock
            with self._lock:
                if self._observer is None:
                    self._observer = make(self.config, self.pool, self._workers, self._began)
        return self._observer

    def _watch(self) -> None:
        self._monitor.watch(
            self,
            self.config.monitoring_interval,
            self.config.health_check_interval,
            self.config.monitoring_growth,
        )

    def _retire(self, service: PluginService) -> None:
        plugins = service.instances + service.helpers
        sink = service.dead_letters

        def at_end() -> None:
            try:
                self._stop(service.name, plugins)
            finally:
                if sink is not None:
                    sink.close()

        service.end(at_end)

    def _stop(self, name: str, plugins: Iterable[DataFlarePlugin]) -> None:
        with ExitStack() as stack:
            for plugin in plugins:
                stack.callback(self._stop_one, name, plugin)

    def _stop_one(self, name: str, plugin: DataFlarePlugin) -> None:
        if self._debug:
            _logger.debug("cleaning the plugin %r up", name)
        ended = PluginState.ERROR
        try:
            plugin.cleanup()
            ended = PluginState.STOPPED
        except Exception:
            _logger.exception("cleaning the plugin %r up failed", name)
        finally:
            self._release(plugin, ended)

    def _release(self, plugin: DataFlarePlugin, state: PluginState) -> None:
        """Let a plugin and its members be registered again."""
        for part in (plugin, *members_of(plugin)):
            set_state(part, state)
            self._claimed.pop(id(part), None)

    def _after_fork(self) -> None:
        """In the child of a fork, where other threads are gone."""
        self._lock = threading.RLock()
        if self._observer is not None:
            self._observer.after_fork()
        for service in self._services.values():
            service.after_fork()
        if self._workers is not None:
            self._workers.after_fork()
        if self._monitor.after_fork() and not self._closed:
            self._watch()


def _after_fork() -> None:
    for manager in list(_managers):
        manager._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _checked(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a plugin must be str, not {type(name).__name__}")
    return name


def _unknown(name: str) -> UnknownPluginError:
    return UnknownPluginError(f"no plugin {name!r} is registered", plugin=name)


def _logged(step: str, name: str, call: Callable[[_In], _Out], argument: _In) -> _Out:
    """Call, and log how it ended: in text, because a handler may keep what it gets."""
    try:
        result = call(argument)
    except RunnerStoppedError:  # goes to the plugin that took its place
        raise
    except PluginError as error:
        _logger.debug("%s of %r failed: %s", step, name, str(error))
        raise
    if isinstance(result, BatchResult):
        _logger.debug("%s of %r: %s in %.6f s", step, name, str(result), result.processing_time)
    elif isinstance(result, PluginResult):
        outcomes = {"success": result.is_success, "filtered": result.is_filtered, "skip": True}
        _logger.debug("%s of %r: %s", step, name, next(filter(outcomes.get, outcomes)))
    return result
