r"""Plugins as they are written: names with arguments, and places.

A name is that of a plugin of the library, or of one that an installed package brings. It is written
``name``, ``name:ARGUMENT`` or ``name:FIRST:LAST``, with options ``name,option=value:ARGUMENT``. The
last argument is taken as it stands, colons included. One before it ends at the next colon; there
``\:`` is a colon and ``\\`` a backslash.

Everything else is a place: ``module:attribute``, ``file.py:attribute`` or ``file.pyx:class``. What
is both is the name: `dataflare plugins` shows the names, and a place can be written in other ways.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from dataflare import plugins
from dataflare._backend import DataFlarePlugin, NativePlugin
from dataflare._later import Later
from dataflare.errors import PluginConfigurationError, PluginError
from dataflare.places import load_place

if TYPE_CHECKING:
    from dataflare import discovery as _discovery
else:
    _discovery = Later("dataflare.discovery")  # what reads metadata takes long to import

__all__ = ["BUILTINS", "NamedPlugin", "find_source", "is_name", "named"]

_NAME = re.compile(r"[^\W_][\w-]*")
_IN_FILE = re.compile(r".+\.pyx?:[^:]+:", re.DOTALL)
_UP_TO_COLON = re.compile(r"((?:\\.|[^:\\])*):", re.DOTALL)
_ESCAPED = re.compile(r"\\([:\\])")

Reader = Callable[[str], object]


def _integer_or_text(value: str) -> object:
    return int(value) if value.isdecimal() else value


def _truth(value: str) -> bool:
    try:
        return {"true": True, "false": False}[value]
    except KeyError:
        raise ValueError(value) from None


_READERS: dict[str, Reader] = {
    "bytes": os.fsencode,  # the very bytes that were given
    "str": str,
    "int": int,
    "float": float,
    "bool": _truth,
}


_KINDS: dict[Reader, str] = {int: "a whole number", float: "a number", _truth: "true or false"}


@dataclass(frozen=True)
class NamedPlugin:
    """How a plugin that has a name is written, and made.

    Attributes
    ----------
    name : str
    plugin : callable
        What makes it.
    arguments : tuple of str
        Such as ``("OLD", "NEW")``: all must be given.
    options : tuple of str
        Such as ``("group=GROUP",)``.
    readers : dict
        From the text of an argument, or of an option, to its value.
    required : frozenset of str
        The names of the options that must be given.
    is_open : bool
        Whether other options, and one argument more, may be given: nobody knows what it takes.
    """

    name: str
    plugin: Callable[..., object]
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    readers: dict[str, Reader] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    is_open: bool = False

    @property
    def form(self) -> str:
        """Such as ``replace:OLD:NEW``, or ``cut[,end=END],size=SIZE``."""
        options = "".join(
            f",{option}" if option.partition("=")[0] in self.required else f"[,{option}]"
            for option in self.options
        )
        return ":".join((self.name + options, *self.arguments)) + "[:ARGUMENT]" * self.is_open

    @property
    def description(self) -> str:
        """One line."""
        return (self.plugin.__doc__ or "").strip().partition("\n")[0]

    def source(self, options: list[str], text: str | None) -> Callable[[], object]:
        """What makes the plugin with these options, and the arguments that stand in `text`.

        Raises
        ------
        PluginConfigurationError
            They are not those that it takes.
        """
        given: dict[str, str] = {}
        for option in options:
            name, sign, value = option.partition("=")
            if name in given:
                raise PluginConfigurationError(f"{name} is given twice: it is written {self.form}")
            if not sign:
                raise PluginConfigurationError(f"{name} has no value: it is written {self.form}")
            given[name] = value
        names = ("ARGUMENT",) * (text is not None) if self.is_open else self.arguments
        texts = _split(text, len(names))
        known = {option.partition("=")[0] for option in self.options}
        if text is not None and not (self.is_open or self.arguments or self.options or options):
            raise PluginConfigurationError(f"{self.name} takes no argument")
        if (
            texts is None
            or not self.required <= given.keys()
            or not (self.is_open or given.keys() <= known)
        ):
            raise PluginConfigurationError(f"it is written {self.form}")
        return Recipe(
            self,
            tuple(self._read(*pair, str) for pair in zip(names, texts, strict=True)),
            {name: self._read(name, value, _integer_or_text) for name, value in given.items()},
        )

    def _read(self, name: str, text: str, default: Reader) -> object:
        reader = self.readers.get(name, default)
        try:
            return reader(text)
        except ValueError as error:
            if reader in _KINDS:
                raise PluginConfigurationError(
                    f"{name} is {_KINDS[reader]}, not {text!r}"
                ) from error
            raise PluginConfigurationError(f"{name} cannot be {text!r}: {error}") from error


@dataclass(frozen=True)
class Recipe:
    """A named plugin and its arguments; call it for the plugin."""

    plugin: NamedPlugin
    arguments: tuple[object, ...]
    options: dict[str, object]

    @property
    def __name__(self) -> str:
        return self.plugin.name

    def __call__(self) -> object:
        try:
            return self.plugin.plugin(*self.arguments, **self.options)
        except PluginError:
            raise
        except ValueError as error:  # about an argument
            raise PluginConfigurationError(f"{self.plugin.name}: {error}") from error


def _builtin(
    name: str,
    plugin: Callable[..., object],
    *arguments: str,
    options: tuple[str, ...] = (),
    reader: Reader = os.fsencode,
) -> NamedPlugin:
    return NamedPlugin(name, plugin, arguments, options, dict.fromkeys(arguments, reader))


BUILTINS = {
    builtin.name: builtin
    for builtin in (
        _builtin("contains", plugins.Contains, "TEXT"),
        _builtin("startswith", plugins.StartsWith, "TEXT"),
        _builtin("upper", plugins.Upper),
        _builtin("lower", plugins.Lower),
        _builtin("replace", plugins.Replace, "OLD", "NEW"),
        _builtin("regex", plugins.Regex, "PATTERN", options=("group=GROUP",)),
        _builtin(
            "json-field",
            plugins.JsonField,
            "NAME",
            options=("missing=error|filter|skip",),
            reader=str,
        ),
    )
}
"""The plugins of the library that have a name."""


def is_name(text: str) -> bool:
    """Whether a plugin can be named so: neither its arguments nor a place are written like that."""
    return _NAME.fullmatch(text) is not None


def find_source(spec: str) -> object:
    """A plugin, or what makes it.

    Parameters
    ----------
    spec : str
        A name with its arguments, or a place.

    Returns
    -------
    object
        What stands at the place, or under the name; or, with arguments, a callable without any.

    Raises
    ------
    PluginConfigurationError
        There is none, it cannot be loaded, or its arguments are written in another way.
    """
    head, colon, text = spec.partition(":")
    name, *options = head.split(",")
    arguments = text if colon else None
    if name in BUILTINS:
        return BUILTINS[name].source(options, arguments)
    problems: tuple[str, ...] = ()
    if is_name(name):  # a path or a dotted module is none: the packages need not be looked at
        installed = _discovery.read_installed(name)
        if found := installed.find(name):
            source = found.load()
            if isinstance(source, DataFlarePlugin) or not callable(source):
                if options:
                    raise PluginConfigurationError(f"it is written {name}")
                if colon:
                    raise PluginConfigurationError(f"{name} takes no argument")
                return source
            return named(name, source).source(options, arguments)
        problems = installed.unreadable
    where = spec.rpartition(":")[0]  # the path of a file may have colons
    in_file = where.endswith((".py", ".pyx"))
    if is_name(name) and not in_file and not (colon and _is_module(name)):
        kinds = "neither a plugin nor a module" if colon else "no plugin"
        raise PluginConfigurationError(
            f"there is {kinds} {name!r}{_suggestion(name)} 'dataflare plugins' lists the names"
            + "".join(f"; {problem}" for problem in problems)
        )
    if not colon and spec.endswith((".py", ".pyx")):
        raise PluginConfigurationError(f"{spec} is a file: say which plugin in it, as {spec}:NAME")
    if not colon:
        raise PluginConfigurationError(
            "it is neither one that 'dataflare plugins' lists nor module:attribute, "
            "file.py:attribute or file.pyx:class"
        )
    if _IN_FILE.match(spec) and not in_file:
        raise PluginConfigurationError(
            "a plugin in a file takes no arguments: write a function in it that makes the plugin, "
            "or give it a name by a package"
        )
    found_there = load_place(spec)
    if not isinstance(found_there, DataFlarePlugin) and not callable(found_there):
        kind = type(found_there).__name__
        article = "an" if kind[0].lower() in "aeiou" else "a"
        raise PluginConfigurationError(
            f"{spec} is {article} {kind}: neither a plugin nor a class or function that makes one"
        )
    return found_there


def _is_module(name: str) -> bool:
    with suppress(ValueError):  # one that was made by hand, and does not say where it comes from
        return name in sys.modules or find_spec(name) is not None
    return True


def _suggestion(name: str) -> str:
    """What may have been meant, as a part of a sentence."""
    names = [*BUILTINS, *(plugin.name for plugin in _discovery.read_installed().plugins)]
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else ":"


def named(name: str, plugin: Callable[..., object]) -> NamedPlugin:
    """How a plugin of a package is written: as the plugins of the library are.

    Parameters
    ----------
    name : str
    plugin : callable
        What must be given to it are the arguments; what may be left out are the options, and what
        must be given by its name. Both are of the type that the parameter is annotated with:
        ``bytes``, ``str``, ``int``, ``float`` or ``bool``. One without such a type is text, an
        option also a whole number.
    """
    if _takes_nothing(plugin):
        return NamedPlugin(name, plugin)
    try:
        signature = inspect.signature(plugin)
    except ValueError:  # a class in Cython, most likely: they do not tell
        return NamedPlugin(name, plugin, is_open=True)
    arguments: list[str] = []
    options: list[str] = []
    readers: dict[str, Reader] = {}
    required: set[str] = set()
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        shown = parameter.name.upper()
        is_needed = parameter.default is parameter.empty
        is_argument = is_needed and parameter.kind is not parameter.KEYWORD_ONLY
        reader = _reader(parameter.annotation)
        values = "true|false" if reader is _truth else shown
        (arguments if is_argument else options).append(
            shown if is_argument else f"{parameter.name}={values}"
        )
        if is_needed and not is_argument:
            required.add(parameter.name)
        if reader:
            readers[shown if is_argument else parameter.name] = reader
    return NamedPlugin(name, plugin, tuple(arguments), tuple(options), readers, frozenset(required))


def _takes_nothing(plugin: object) -> bool:
    """Whether it is a class that gets no arguments, which one on a compiled base does not tell."""
    return isinstance(plugin, type) and not any(
        "__init__" in vars(base)
        or ("__new__" in vars(base) and base not in (DataFlarePlugin, NativePlugin))
        for base in plugin.__mro__[:-1]
    )


def _reader(annotation: object) -> Reader | None:
    """What reads a value so annotated; an annotation may be text, or a union: ``int | None``."""
    written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _READERS.get(written.partition("|")[0].strip())


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
