"""Plugins that installed packages bring, found by their metadata.

A package names them as entry points of the group ``dataflare.plugins``. Nothing of a package is
imported until one of its plugins is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

from dataflare.errors import PluginConfigurationError
from dataflare.places import load_place

__all__ = ["GROUP", "InstalledPlugin", "InstalledPlugins", "read_installed"]

GROUP = "dataflare.plugins"
"""The group of entry points."""


@dataclass(frozen=True, order=True)
class InstalledPlugin:
    """A plugin that a package brings.

    Attributes
    ----------
    name : str
    package : str
        The distribution, as pip names it.
    version : str
        Of the package.
    place : str
        ``"module:attribute"``.
    """

    name: str
    package: str
    version: str
    place: str

    @property
    def origin(self) -> str:
        """str: Package and version."""
        return f"{self.package} {self.version}".rstrip()

    def load(self) -> object:
        """Import what stands at the place.

        Raises
        ------
        PluginConfigurationError
            It cannot be imported.
        """
        try:
            return load_place(self.place, files=False)
        except PluginConfigurationError as error:
            raise PluginConfigurationError(
                f"the package {self.origin} is broken: {error}"
            ) from error.__cause__


@dataclass(frozen=True)
class InstalledPlugins:
    """What all packages bring.

    Attributes
    ----------
    plugins : tuple of InstalledPlugin
        By name.
    unreadable : tuple of str
        A sentence for each package whose list of entry points cannot be read.
    """

    plugins: tuple[InstalledPlugin, ...]
    unreadable: tuple[str, ...]

    def find(self, name: str) -> InstalledPlugin | None:
        """The plugin of a name, if a package brings it.

        Raises
        ------
        PluginConfigurationError
            More than one does.
        """
        found = [plugin for plugin in self.plugins if plugin.name == name]
        if conflict := self.conflict(name):
            raise PluginConfigurationError(conflict)
        return found[0] if found else None

    def conflict(self, name: str) -> str | None:
        """A sentence about those that bring the name, if they are several."""
        found = [plugin for plugin in self.plugins if plugin.name == name]
        if len(found) < 2:
            return None
        claims = " and ".join(f"{plugin.origin} ({plugin.place})" for plugin in found)
        return (
            f"the name {name!r} is claimed by {claims}: uninstall one of them, or write "
            f"module:attribute instead of the name"
        )


def read_installed(name: str | None = None) -> InstalledPlugins:
    """Read what the packages that are installed say of their plugins.

    Parameters
    ----------
    name : str, optional
        Only of plugins of this name. That takes less time: which package brings a plugin is read
        for those that are found.

    Returns
    -------
    InstalledPlugins
        As it is now: nothing is kept, because packages come and go while a process runs.
    """
    unreadable: list[str] = []
    try:
        entries: Iterable[metadata.EntryPoint] = metadata.entry_points(group=GROUP)
    except Exception:  # the list of one package cannot be read, and hides those of all others
        entries = _one_by_one(unreadable)
    if name is not None:
        entries = [entry for entry in entries if entry.name == name]
    found = {
        InstalledPlugin(
            entry.name,
            _field(entry.dist, "Name") or "a package without a name",
            _field(entry.dist, "Version"),
            entry.value.partition("[")[0].strip(),  # without extras
        )
        for entry in entries
    }
    return InstalledPlugins(tuple(sorted(found)), tuple(unreadable))


def _one_by_one(unreadable: list[str]) -> list[metadata.EntryPoint]:
    """The entry points of each package that can be read; of the others, what is wrong."""
    found: list[metadata.EntryPoint] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        name = _field(distribution, "Name")
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized and normalized in seen:  # hidden by one that comes earlier in the path
            continue
        seen.add(normalized)
        try:
            found += distribution.entry_points.select(group=GROUP)
        except Exception as error:
            # Whose list has nothing of ours concerns others.
            with suppress(Exception):
                if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                    continue
            origin = f"{name} {_field(distribution, 'Version')}".strip()
            unreadable.append(
                f"the entry points of {origin or 'a package without a name'} cannot be read: "
                f"{type(error).__name__}: {error}"
            )
    return found


def _field(distribution: metadata.Distribution | None, name: str) -> str:
    """A field of a package's metadata; empty where it is missing or cannot be read."""
    with suppress(Exception):
        if distribution is not None:
            return str(distribution.metadata.get(name, ""))  # type: ignore[attr-defined]
    return ""
