r"""Plugins as they are written on the command line.

A plugin of the library is ``name``, ``name:ARGUMENT`` or ``name:FIRST:LAST``, with options
``name,option=value:ARGUMENT``. The last argument is taken as it stands, colons included. One before
it ends at the next colon; there ``\:`` is a colon and ``\\`` a backslash. Everything else is
``module:attribute`` or ``file.py:attribute``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from dataflare import plugins
from dataflare._backend import DataFlarePlugin
from dataflare.errors import PluginConfigurationError, PluginError
from dataflare.loading import load_attribute, make_plugin

__all__ = ["BUILTINS", "Builtin", "load_plugin", "load_source"]

_UP_TO_COLON = re.compile(r"((?:\\.|[^:\\])*):", re.DOTALL)
_ESCAPED = re.compile(r"\\([:\\])")


@dataclass(frozen=True)
class Builtin:
    """How a plugin of the library is written."""

    name: str
    plugin: Callable[..., DataFlarePlugin]
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    kind: Callable[[str], object] = os.fsencode  # of an argument: the very bytes that were given

    @property
    def form(self) -> str:
        """Such as ``replace:OLD:NEW``."""
        options = "".join(f"[,{option}]" for option in self.options)
        return ":".join((self.name + options, *self.arguments))

    @property
    def description(self) -> str:
        """One line."""
        return (self.plugin.__doc__ or "").partition("\n")[0]

    def make(self, options: list[str], text: str | None) -> DataFlarePlugin:
        """The plugin with these options, and the arguments that stand in `text`."""
        values = dict(option.partition("=")[::2] for option in options)
        arguments = _split(text, len(self.arguments))
        if arguments is None or not values.keys() <= {
            option.partition("=")[0] for option in self.options
        }:
            raise PluginConfigurationError(f"it is written {self.form}")
        return self.plugin(
            *map(self.kind, arguments),
            **{name: int(value) if value.isdecimal() else value for name, value in values.items()},
        )


BUILTINS = {
    builtin.name: builtin
    for builtin in (
        Builtin("contains", plugins.Contains, ("TEXT",)),
        Builtin("startswith", plugins.StartsWith, ("TEXT",)),
        Builtin("upper", plugins.Upper),
        Builtin("lower", plugins.Lower),
        Builtin("replace", plugins.Replace, ("OLD", "NEW")),
        Builtin("regex", plugins.Regex, ("PATTERN",), ("group=GROUP",)),
        Builtin("json-field", plugins.JsonField, ("NAME",), ("missing=error|filter|skip",), str),
    )
}


def load_plugin(spec: str) -> DataFlarePlugin:
    """The plugin that `spec` describes.

    Raises
    ------
    PluginError
        There is none, or it cannot be made.
    """
    with _named(spec):
        make = _builtin(spec)
        return make_plugin(_load(spec)) if make is None else make()


def load_source(spec: str) -> object:
    """What makes the plugin that `spec` describes, or that plugin itself.

    Raises
    ------
    PluginError
        There is none.
    """
    with _named(spec):
        make = _builtin(spec)
        if make is None:
            return _load(spec)
        make()  # to see whether it can be made
        return make


@contextmanager
def _named(spec: str) -> Iterator[None]:
    """Say of every error which plugin it is about."""
    try:
        yield
    except (PluginError, TypeError, ValueError) as error:
        raise PluginConfigurationError(f"the plugin {spec!r} cannot be used: {error}") from error


def _builtin(spec: str) -> Callable[[], DataFlarePlugin] | None:
    """What makes a plugin of the library, if `spec` names one."""
    head, colon, text = spec.partition(":")
    name, *options = head.split(",")
    if name not in BUILTINS:
        return None
    return partial(BUILTINS[name].make, options, text if colon else None)


def _split(text: str | None, count: int) -> list[str] | None:
    """The arguments in `text`, if there are `count`."""
    if text is None or count == 0:
        return [] if text is None and count == 0 else None
    arguments: list[str] = []
    while len(arguments) < count - 1:
        found = _UP_TO_COLON.match(text)
        if found is None:
            return None
        arguments.append(_ESCAPED.sub(r"\1", found[1]))
        text = text[found.end() :]
    return [*arguments, text]


def _load(spec: str) -> object:
    """What stands in a module or file."""
    place, colon, attribute = spec.rpartition(":")
    if not colon:
        raise PluginConfigurationError(
            "it is neither one that 'dataflare plugins' lists nor module:attribute or "
            "file.py:attribute"
        )
    if not place.endswith(".py"):
        sys.path.append(os.getcwd())
        return load_attribute(spec)
    path = os.path.realpath(place)
    # Like its path, but without a dot: what stands before one would be a package, to pickle too.
    name = path.removesuffix(".py").replace(".", "_")
    if name not in sys.modules:
        _load_file(name, path)
    return load_attribute(f"{name}:{attribute}")


def _load_file(name: str, path: str) -> None:
    """Load a file as a module."""
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None or not os.path.isfile(path):
        raise PluginConfigurationError(f"there is no file {path}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    sys.path.append(os.path.dirname(path))  # for what it imports from beside it
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PluginConfigurationError(
            f"loading {path} failed: {type(error).__name__}: {error}"
        ) from error
