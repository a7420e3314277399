"""Plugins as the command line takes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dataflare._backend import DataFlarePlugin
from dataflare.errors import PluginConfigurationError, PluginError
from dataflare.loading import make_plugin, new_plugin
from dataflare.specs import find_source

__all__ = ["load_plugin", "load_source"]


def load_plugin(spec: str) -> DataFlarePlugin:
    """The plugin that `spec` describes; modules of the working directory are found as well.

    Raises
    ------
    PluginError
        There is none, or it cannot be made.
    """
    with _loading(spec):
        return make_plugin(find_source(spec))


def load_source(spec: str) -> object:
    """The plugin that `spec` describes, or what makes it; found as by `load_plugin`.

    Raises
    ------
    PluginError
        There is none, or it cannot be made.
    """
    with _loading(spec):
        source = find_source(spec)
        new_plugin(source)  # what is wrong is said here, as it is by `load_plugin`
        return source


@contextmanager
def _loading(spec: str) -> Iterator[None]:
    with suppress(OSError):  # the directory may be gone
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    try:
        yield
    except (PluginError, TypeError, ValueError) as error:
        raise PluginConfigurationError(f"the plugin {spec!r} cannot be used: {error}") from error
