"""Plugins: the base classes, and plain functions as plugins."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, overload

from dataflare._pure.record import PluginRecord, PluginResult, require
from dataflare.errors import PluginConfigurationError, PluginProcessingError, refuse_coroutine
from dataflare.types import PluginInfo, PluginState, PluginType


def first_line(docstring: str | None) -> str:
    """The first line of a docstring that has text, or nothing."""
    lines = (docstring or "").strip().splitlines()
    return lines[0].strip() if lines else ""


class DataFlarePlugin:
    """Base class of every plugin. A plugin in Python overrides `process`, and what else it needs.

    Attributes
    ----------
    thread_safe : bool
        Whether several threads may run one instance at the same time. False by default: then the
        manager lets one thread at a time have it.
    releases_gil : bool
        Whether processing spends its time without the GIL, waiting or computing. Only then, or
        where the interpreter has no GIL, does the manager share a batch out among threads. False
        by default for plugins in Python; native ones know.
    retryable_errors : tuple of exception types
        What is worth another attempt; see `FailureRecoveryConfig`. An exception with a true
        attribute ``retryable`` is so, too.
    """

    thread_safe: bool = False
    releases_gil: bool = False
    retryable_errors: tuple[type[BaseException], ...] = ()
    # A name that no plugin has for its own. A member's state is the plugin whose member it is.
    _dataflare_state: PluginState | DataFlarePlugin = PluginState.UNINITIALIZED

    def process(self, record: PluginRecord) -> PluginResult:
        """Say what becomes of one record.

        Parameters
        ----------
        record : PluginRecord

        Returns
        -------
        PluginResult

        Notes
        -----
        An exception that this raises is the failure of that record alone.
        """
        raise PluginConfigurationError(f"{type(self).__name__} does not define process(record)")

    def info(self) -> PluginInfo:
        """Who this plugin is.

        Returns
        -------
        PluginInfo
            By default the class's name and the first line of its docstring.
        """
        return PluginInfo(name=type(self).__name__, description=first_line(type(self).__doc__))

    def get_state(self) -> PluginState:
        """Where in its life the plugin is, kept true by the manager.

        Returns
        -------
        PluginState
        """
        state = self._dataflare_state
        return DataFlarePlugin.get_state(state) if isinstance(state, DataFlarePlugin) else state

    def initialize(self, config: Mapping[str, object]) -> None:
        """Called once by the manager before the first record.

        Parameters
        ----------
        config : Mapping
            What was given to `PluginManager.register_plugin`, or an empty mapping.
        """

    def cleanup(self) -> None:
        """Called once by the manager after the last record."""

    def health_check(self) -> bool:
        """Whether the plugin is fit for work.

        Returns
        -------
        bool
        """
        return True


def set_state(plugin: DataFlarePlugin, state: PluginState | DataFlarePlugin) -> None:
    """Note where in its life a plugin is: a state, or the plugin whose member it is.

    For the manager alone.
    """
    require(plugin, DataFlarePlugin, "plugin")
    plugin._dataflare_state = state


def undefined(plugin: DataFlarePlugin) -> str | None:
    """What a plugin would have to define to process anything; None if it does.

    Parameters
    ----------
    plugin : DataFlarePlugin

    Returns
    -------
    str or None
        What is said behind the name of its class.
    """
    for name in ("process", "process_batch"):
        # In the order in which Python looks for it; an instance may have one of its own.
        if name in getattr(plugin, "__dict__", ()):
            return None
        for kind in type(plugin).__mro__:
            if kind is DataFlarePlugin:
                break
            if name in vars(kind):
                return None
    return "defines neither process nor process_batch: let it define process(self, record)"


class NativePlugin(DataFlarePlugin):
    """Base class of plugins in Cython, C and the like, which only the compiled backend can run."""

    def __new__(cls, *args: object, **kwargs: object) -> NativePlugin:
        raise native_refused()

    @staticmethod
    def from_function(
        function: object,
        *,
        name: str | None = None,
        state: object = None,
        thread_safe: bool = False,
        description: str = "",
    ) -> NativePlugin:
        """A plugin of a C function: on the compiled backend.

        Raises
        ------
        PluginConfigurationError
            Always.
        """
        raise native_refused()

    @staticmethod
    def from_capsule(
        capsule: object, *, name: str | None = None, config: str | bytes = ""
    ) -> NativePlugin:
        """A plugin of a capsule: on the compiled backend.

        Raises
        ------
        PluginConfigurationError
            Always.
        """
        raise native_refused()


def native_refused() -> PluginConfigurationError:
    """What there is to say of a native plugin here."""
    return PluginConfigurationError(
        "a native plugin needs the compiled backend: unset DATAFLARE_PURE_PYTHON, or install "
        "a DataFlare that was built without -Dpure_python=true"
    )


def new_capsule(address: int, owner: object) -> object:
    """Refused, as all native plugins are."""
    raise native_refused()


def c_functions() -> dict[str, int]:
    """Addresses of the functions of dataflare.h: on the compiled backend.

    Raises
    ------
    PluginConfigurationError
        Always.
    """
    raise native_refused()


def plugin_name(plugin: Any) -> str:
    """The name a plugin gives itself, or that of its class if it fails to."""
    try:
        return str(plugin.info().name)
    except Exception:  # an error report must not fail because the plugin's info does
        return type(plugin).__name__


class _FunctionPlugin(DataFlarePlugin):
    """What the plugins made of a function have in common."""

    _plugin_type: PluginType

    def __init__(
        self, function: Callable[..., Any], name: str | None = None, thread_safe: bool = False
    ) -> None:
        if not callable(function):
            raise TypeError(f"a plugin is made of a function, not of {type(function).__name__}")
        functools.update_wrapper(self, function)
        self.function = function
        self.thread_safe = bool(thread_safe)
        self.name: str = name or getattr(function, "__name__", None) or type(function).__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def info(self) -> PluginInfo:
        """Name and docstring of the function."""
        return PluginInfo(
            name=self.name,
            plugin_type=self._plugin_type,
            description=first_line(self.function.__doc__),
        )


class MapPlugin(_FunctionPlugin):
    """A function from the value of a record to its new value; made by `map_plugin`."""

    _plugin_type = PluginType.TRANSFORMER

    def process(self, record: PluginRecord) -> PluginResult:
        """The function's value for the record."""
        return PluginResult.success(as_bytes(self.function(plain(record.value))))

    def __repr__(self) -> str:
        return f"map_plugin({self.name})"


class FilterPlugin(_FunctionPlugin):
    """A function from the value of a record to whether it goes on; made by `filter_plugin`."""

    _plugin_type = PluginType.FILTER

    def process(self, record: PluginRecord) -> PluginResult:
        """Whether the record goes on."""
        keep = as_truth(self.function(plain(record.value)))
        return PluginResult.skip() if keep else PluginResult.filtered()

    def __repr__(self) -> str:
        return f"filter_plugin({self.name})"


def plain(value: bytes | memoryview) -> bytes:
    return value if type(value) is bytes else bytes(value)


def as_bytes(data: object) -> bytes:
    """What a map function returned, as `bytes`."""
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    refuse_coroutine(data, "the function")
    raise PluginProcessingError(f"the function returned {type(data).__name__}, not bytes")


def as_truth(answer: object) -> bool:
    """Whether a filter function keeps the record."""
    if answer is None:  # most likely, nothing was returned at all
        raise PluginProcessingError("the function returned NoneType, not bool")
    if type(answer) is not bool:
        refuse_coroutine(answer, "the function")
    return bool(answer)


@overload
def map_plugin(
    function: Callable[[bytes], Any], /, *, name: str | None = None, thread_safe: bool = False
) -> MapPlugin: ...
@overload
def map_plugin(
    function: None = None, /, *, name: str | None = None, thread_safe: bool = False
) -> Callable[[Callable[[bytes], Any]], MapPlugin]: ...
def map_plugin(
    function: Callable[[bytes], Any] | None = None,
    /,
    *,
    name: str | None = None,
    thread_safe: bool = False,
) -> MapPlugin | Callable[[Callable[[bytes], Any]], MapPlugin]:
    """Make a plugin of a function ``bytes -> bytes``.

    Parameters
    ----------
    function : callable
        Gets the value of a record, returns the new one.
    name : str, optional
        The function's own name if not given.
    thread_safe : bool
        Whether several threads may call the function at the same time.

    Returns
    -------
    MapPlugin
        Still callable as the function.

    Examples
    --------
    >>> @map_plugin
    ... def shout(value):
    ...     return value + b"!"
    """
    if function is None:
        return functools.partial(MapPlugin, name=name, thread_safe=thread_safe)
    return MapPlugin(function, name, thread_safe)


@overload
def filter_plugin(
    function: Callable[[bytes], Any], /, *, name: str | None = None, thread_safe: bool = False
) -> FilterPlugin: ...
@overload
def filter_plugin(
    function: None = None, /, *, name: str | None = None, thread_safe: bool = False
) -> Callable[[Callable[[bytes], Any]], FilterPlugin]: ...
def filter_plugin(
    function: Callable[[bytes], Any] | None = None,
    /,
    *,
    name: str | None = None,
    thread_safe: bool = False,
) -> FilterPlugin | Callable[[Callable[[bytes], Any]], FilterPlugin]:
    """Make a plugin of a function ``bytes -> bool``.

    Parameters
    ----------
    function : callable
        Gets the value of a record; the record goes on if it returns something true.
    name : str, optional
        The function's own name if not given.
    thread_safe : bool
        Whether several threads may call the function at the same time.

    Returns
    -------
    FilterPlugin
        Still callable as the function.

    Examples
    --------
    >>> @filter_plugin
    ... def is_error(value):
    ...     return b"ERROR" in value
    """
    if function is None:
        return functools.partial(FilterPlugin, name=name, thread_safe=thread_safe)
    return FilterPlugin(function, name, thread_safe)
