"""All plugins that have a name, and what each of them is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import get_type_hints

from dataflare._backend import DataFlarePlugin, NativePlugin
from dataflare._build_info import VERSION
from dataflare.discovery import InstalledPlugin, InstalledPlugins, read_installed
from dataflare.errors import PluginConfigurationError, PluginError, sentence_of
from dataflare.loading import make_plugin
from dataflare.specs import BUILTINS, NamedPlugin, is_name, named
from dataflare.types import PluginInfo, PluginType

__all__ = ["Catalogue", "ListedPlugin", "list_plugins"]

_UNSAID = PluginInfo("").version  # of a plugin that does not say which version it is


@dataclass(frozen=True)
class ListedPlugin:
    """A plugin that has a name.

    Attributes
    ----------
    name : str
    written : str
        With its arguments: ``"replace:OLD:NEW"``.
    version : str
        Its own, or that of its package.
    kind : PluginType or None
        None if only a plugin with arguments could tell.
    native : bool or None
        Whether it is a native one; None as above.
    package : str or None
        None: it is one of the library.
    package_version : str
    description : str
    problem : str or None
        Why it cannot be used by its name.
    """

    name: str
    written: str
    version: str
    kind: PluginType | None = None
    native: bool | None = None
    package: str | None = None
    package_version: str = VERSION
    description: str = ""
    problem: str | None = None

    def as_dict(self) -> dict[str, object]:
        """All of it as plain values."""
        return vars(self) | {"kind": None if self.kind is None else self.kind.value}


@dataclass(frozen=True)
class Catalogue:
    """What has a name.

    Attributes
    ----------
    plugins : tuple of ListedPlugin
        Those of the library first.
    problems : tuple of str
        A sentence for each package of which it cannot be said what it brings.
    """

    plugins: tuple[ListedPlugin, ...]
    problems: tuple[str, ...]


def list_plugins() -> Catalogue:
    """Look at the plugins of the library, and at those that installed packages bring.

    Returns
    -------
    Catalogue

    Notes
    -----
    The plugins of packages are imported, and made if they need no arguments, to learn what they
    are; none is initialized. What one of them raises is its `ListedPlugin.problem`.
    """
    installed = read_installed()
    return Catalogue(
        (
            *(_of_library(builtin) for builtin in BUILTINS.values()),
            *(_of_package(plugin, installed) for plugin in installed.plugins),
        ),
        installed.unreadable,
    )


def _of_library(builtin: NamedPlugin) -> ListedPlugin:
    listed = ListedPlugin(builtin.name, builtin.form, VERSION, description=builtin.description)
    try:
        made = make_plugin(builtin.source([], ":".join(builtin.arguments) or None))
    except PluginError as error:  # an extra is not installed
        return replace(listed, problem=str(error))
    return replace(listed, kind=made.info().plugin_type, native=isinstance(made, NativePlugin))


def _of_package(plugin: InstalledPlugin, installed: InstalledPlugins) -> ListedPlugin:
    listed = ListedPlugin(
        plugin.name,
        plugin.name,
        plugin.version,
        package=plugin.package,
        package_version=plugin.version,
    )
    if plugin.name in BUILTINS:
        return replace(listed, problem="the library has a plugin of this name, which comes first")
    if not is_name(plugin.name):
        return replace(listed, problem="its name has other characters than letters, digits, - or _")
    if conflict := installed.conflict(plugin.name):
        return replace(listed, problem=conflict)
    try:
        return _examined(listed, plugin.load())
    except PluginError as error:
        return replace(listed, problem=str(error))
    except (Exception, SystemExit) as error:
        return replace(listed, problem=sentence_of(error))


def _class_made_by(function: Callable[..., object]) -> type | None:
    """The class of plugins that a function says it returns."""
    with suppress(Exception):  # a name that only type checkers know, for one
        found = get_type_hints(function)["return"]
        if issubclass(found, DataFlarePlugin) and found is not DataFlarePlugin:
            return found  # type: ignore[no-any-return]
    return None


def _examined(listed: ListedPlugin, source: object) -> ListedPlugin:
    """With what the plugin itself, or the class of it, says."""
    if not isinstance(source, DataFlarePlugin) and callable(source):
        form = named(listed.name, source)
        listed = replace(listed, written=form.form, description=form.description)
        if isinstance(source, type) and not issubclass(source, DataFlarePlugin):
            raise PluginConfigurationError(f"{source.__name__} is no class of plugins")
        if kind := source if isinstance(source, type) else _class_made_by(source):
            listed = replace(listed, native=issubclass(kind, NativePlugin))
        if form.arguments or form.is_open:
            return listed
    made = make_plugin(source)
    info = made.info()
    return replace(
        listed,
        version=listed.version if info.version == _UNSAID else str(info.version),
        kind=info.plugin_type,
        native=isinstance(made, NativePlugin),
        description=str(info.description) or listed.description,
    )
