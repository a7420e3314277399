"""What stands at a place: ``module:attribute``, ``file.py:attribute``, ``file.pyx:class``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING

from dataflare._abi import why_not_loaded
from dataflare._later import Later, Turns
from dataflare.errors import PluginConfigurationError

if TYPE_CHECKING:
    from dataflare import building as _building
else:
    _building = Later("dataflare.building")

__all__ = ["load_place"]

_turns = Turns()
_files: dict[str, ModuleType] = {}  # by path; those that are loaded


def load_place(place: str, *, files: bool = True) -> object:
    """What stands in a module or in a file.

    Parameters
    ----------
    place : str
        The attribute may be dotted. A file is loaded once; a ``.pyx`` file is built if it was not
        before. What a ``.py`` file imports from beside it is found, as by a script.
    files : bool, optional
        Whether it may be a file. Otherwise ``x.py`` is a module ``py`` of a package.

    Raises
    ------
    PluginConfigurationError
        There is no such module, file or attribute, or it fails to load.
    """
    where, _, attribute = place.rpartition(":")  # the path of a file may have colons
    if not where or not attribute:
        raise PluginConfigurationError(f"{place!r} does not have the form 'module:attribute'")
    if files and where.endswith(".pyx"):
        return _attribute(_building.import_file(where), f"the file {where!r}", attribute)
    if files and where.endswith(".py"):
        return _attribute(_load_file(where), f"the file {where!r}", attribute)
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise PluginConfigurationError(
            f"the module {where!r} cannot be loaded: {why_not_loaded(error)}"
        ) from error
    return _attribute(module, f"the module {where!r}", attribute)


def _attribute(module: ModuleType, described: str, attribute: str) -> object:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise PluginConfigurationError(f"{described} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _load_file(path: str) -> ModuleType:
    """A file as a module that is named like its path."""
    shown = path
    try:
        path = os.path.realpath(path)
        is_there = os.path.isfile(path)
    except (OSError, ValueError) as error:  # no working directory; characters that no path has
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PluginConfigurationError(f"{shown!r} is not the path of a file: {reason}") from error
    if not is_there:
        raise PluginConfigurationError(f"there is no file {path}")
    with _turns.take(path) as is_mine:
        name = _name(path)
        module = sys.modules.get(name)
        if module is None or (is_mine and module is not _files.get(path)):
            if not is_mine:
                raise PluginConfigurationError(f"loading {path} needs what is in it already")
            module = _files[path] = _execute(name, path)
        return module


def _name(path: str) -> str:
    """A name for the module of a path, and of no other path.

    Without a dot: what stands before one would be a package, to pickle too.
    """
    stem = path.removesuffix(".py")
    quoted = stem.replace("%", "%25").replace(".", "%2E")
    return quoted if stem != path else f"{quoted}%"  # which has another end, behind a link


def _execute(name: str, path: str) -> ModuleType:
    loader = SourceFileLoader(name, path)  # whatever its end is: a link may lead to it
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (folder := os.path.dirname(path)) not in sys.path:
        sys.path.append(folder)
    try:
        loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if not isinstance(error, Exception | SystemExit):
            raise
        raise PluginConfigurationError(f"loading {path} failed: {why_not_loaded(error)}") from error
    return module
