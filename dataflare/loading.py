"""From what names a plugin to the plugin."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from dataflare._backend import DataFlarePlugin, NativePlugin, let_strings_name_plugins, undefined
from dataflare._later import Later
from dataflare.batching import BatchPlugin, members_of
from dataflare.errors import (
    IncompatiblePluginError,
    PluginConfigurationError,
    PluginError,
    PluginInitializationError,
)
from dataflare.types import API_VERSION

if TYPE_CHECKING:
    from dataflare import specs as _specs
else:
    _specs = Later("dataflare.specs")

# What a class in Cython says, which shows its arguments to nobody before.
_TOO_FEW = re.compile(r"^__c?init__\(\) takes .* \(0 given\)$")

__all__ = ["find_plugin", "make_plugin", "new_plugin"]


def find_plugin(plugin: object) -> object:
    """What a string stands for; anything else as it is.

    Parameters
    ----------
    plugin : object
        A plugin, what makes one, or how it is written: a name with its arguments, or a place. See
        `dataflare.specs`.

    Returns
    -------
    object
        What `make_plugin` takes, and no string.

    Raises
    ------
    PluginConfigurationError
        Nothing can be used that is written so.
    """
    if not isinstance(plugin, str):
        return plugin
    try:
        return _specs.find_source(plugin)
    except PluginConfigurationError as error:
        raise PluginConfigurationError(f"the plugin {plugin!r} cannot be used: {error}") from (
            error.__cause__
        )


def make_plugin(plugin: object) -> DataFlarePlugin:
    """A plugin from an instance, a class or factory without arguments, or a string for one.

    Raises
    ------
    TypeError
        It is none of these.
    PluginConfigurationError
        Nothing can be used that is written so; or the plugin, or a member of it, defines nothing
        that could process a record.
    PluginInitializationError
        The class or factory raised.
    IncompatiblePluginError
        The plugin was written for another API version.
    """
    made = new_plugin(plugin)
    try:
        wanted = made.info().api_version
    except PluginError:
        raise
    except Exception as error:
        raise PluginInitializationError(
            f"the plugin's info() failed: {type(error).__name__}: {error}"
        ) from error
    if wanted != API_VERSION:
        raise IncompatiblePluginError(
            f"the plugin {made.info().name!r} was written for API version {wanted}, "
            f"this DataFlare has version {API_VERSION}"
        )
    for part in (made, *members_of(made)):
        _check_process(part)  # what it has to define is said by the version of the API
    _check_retryable_errors(made)
    return made


def new_plugin(plugin: object) -> DataFlarePlugin:
    """`make_plugin`, but nothing is asked about the version of the API.

    Raises
    ------
    TypeError
        It is nothing that makes a plugin.
    PluginConfigurationError
        Nothing can be used that is written so.
    PluginInitializationError
        The class or factory raised.
    """
    plugin = find_plugin(plugin)
    return plugin if isinstance(plugin, DataFlarePlugin) else _call(plugin)


def _check_process(plugin: DataFlarePlugin) -> None:
    """Refuse what would fail at every record: most likely its method has another name."""
    missing = undefined(plugin)
    # Of the methods that `BatchPlugin` has, one calls the other, and that one only says so.
    if isinstance(plugin, BatchPlugin) and _is_missing(plugin):
        missing = "does not define process_batch(self, records)"
    if missing is not None:
        raise PluginConfigurationError(f"the plugin class {type(plugin).__name__} {missing}")


def _is_missing(plugin: BatchPlugin) -> bool:
    method = plugin.process_batch
    return getattr(method, "__func__", method) is BatchPlugin.process_batch


def _check_retryable_errors(plugin: DataFlarePlugin) -> None:
    kinds: object = plugin.retryable_errors
    if not isinstance(kinds, tuple) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise PluginConfigurationError(
            f"retryable_errors of the plugin {plugin.info().name!r} must be a tuple of exception "
            f"types, not {kinds!r}"
        )


def _is_c_function(value: object) -> bool:
    """Whether it is one of ctypes, cffi or Numba, which need not be loaded to tell."""
    makers = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return not isinstance(value, type) and not makers.isdisjoint(
        {"_ctypes", "_cffi_backend", "numba"}
    )


def _needs(name: str, what: str) -> str:
    return (
        f"{name} needs {what}: name a function that makes it, such as: "
        f"def make(): return {name}(...)"
    )


def _call(factory: object) -> DataFlarePlugin:
    if not callable(factory):
        raise TypeError(
            f"a plugin must be a plugin, a class or factory of one, or a string that names one, "
            f"not {type(factory).__name__}"
        )
    name = getattr(factory, "__name__", type(factory).__name__)
    if _is_c_function(factory):  # called without its arguments, it would end the process
        raise TypeError(
            f"{name} is a C function: make a plugin of it by "
            f"dataflare.NativePlugin.from_function({name})"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        if isinstance(factory, type):
            missing = str(error).rpartition(": ")[2]
            raise TypeError(_needs(name, f"the argument {missing}")) from None
        raise TypeError(
            f"{name} cannot be called without arguments: give an instance, or, if it is the "
            f"function itself, decorate it with dataflare.map_plugin or dataflare.filter_plugin"
        ) from None
    except ValueError:
        pass  # a class without a signature to look at: calling it will tell
    try:
        made = factory()
    except PluginError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(factory, type) and _TOO_FEW.search(str(error)):
            raise TypeError(_needs(name, "arguments")) from None
        raise PluginInitializationError(
            f"{name} failed to make a plugin: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, DataFlarePlugin):
        if any(base.__name__.startswith("NativePluginABI") for base in type(made).__mro__):
            NativePlugin()  # of the pure backend, which cannot run it, and says what to do
        if isinstance(factory, type):
            raise TypeError(f"{name} is not derived from DataFlarePlugin")
        raise TypeError(f"{name} made {type(made).__name__}, not a plugin")
    return made


let_strings_name_plugins(make_plugin)  # as members of chains, too
