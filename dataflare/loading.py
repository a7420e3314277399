"""From what names a plugin to the plugin."""

from __future__ import annotations

import importlib
import inspect

from dataflare._backend import DataFlarePlugin
from dataflare.errors import (
    IncompatiblePluginError,
    PluginConfigurationError,
    PluginError,
    PluginInitializationError,
)
from dataflare.types import API_VERSION

__all__ = ["load_attribute", "make_plugin", "new_plugin"]


def load_attribute(spec: str) -> object:
    """What ``"module:attribute"`` names.

    Parameters
    ----------
    spec : str
        The attribute may be dotted.

    Raises
    ------
    PluginConfigurationError
        There is no such module or attribute, or the module fails to load.
    """
    module_name, _, attribute = spec.rpartition(":")  # the path of a file may have colons
    if not module_name or not attribute:
        raise PluginConfigurationError(f"{spec!r} does not have the form 'module:attribute'")
    try:
        found: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise PluginConfigurationError(
            f"the module {module_name!r} of the plugin {spec!r} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginConfigurationError(f"the module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    return found


def make_plugin(plugin: object) -> DataFlarePlugin:
    """A plugin from an instance, a class or factory without arguments, or ``"module:attribute"``.

    Raises
    ------
    TypeError
        It is none of these.
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
    _check_retryable_errors(made)
    return made


def new_plugin(plugin: object) -> DataFlarePlugin:
    """`make_plugin`, but nothing is asked about the version of the API.

    Raises
    ------
    TypeError
        It is nothing that makes a plugin.
    PluginInitializationError
        The class or factory raised.
    """
    if isinstance(plugin, str):
        plugin = load_attribute(plugin)
    return plugin if isinstance(plugin, DataFlarePlugin) else _call(plugin)


def _check_retryable_errors(plugin: DataFlarePlugin) -> None:
    kinds: object = plugin.retryable_errors
    if not isinstance(kinds, tuple) or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise PluginConfigurationError(
            f"retryable_errors of the plugin {plugin.info().name!r} must be a tuple of exception "
            f"types, not {kinds!r}"
        )


def _call(factory: object) -> DataFlarePlugin:
    if not callable(factory):
        raise TypeError(
            f"a plugin must be a plugin, a class or factory of one, or 'module:attribute', "
            f"not {type(factory).__name__}"
        )
    name = getattr(factory, "__name__", type(factory).__name__)
    try:
        inspect.signature(factory).bind()
    except TypeError:
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
        raise PluginInitializationError(
            f"{name} failed to make a plugin: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, DataFlarePlugin):
        raise TypeError(f"{name} made {type(made).__name__}, not a plugin")
    return made
