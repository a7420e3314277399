"""What stands at a place: ``module:attribute``, ``file.py:attribute``, ``file.pyx:class``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from dataflare._later import Later, importing
from dataflare.errors import PluginConfigurationError

if TYPE_CHECKING:
    from dataflare import building as _building
else:
    _building = Later("dataflare.building")

__all__ = ["load_place"]


def load_place(place: str) -> object:
    """What stands in a module or in a file.

    Parameters
    ----------
    place : str
        The attribute may be dotted. A file is loaded once; a ``.pyx`` file is built if it was not
        before. What a ``.py`` file imports from beside it is found, as by a script.

    Raises
    ------
    PluginConfigurationError
        There is no such module, file or attribute, or it fails to load.
    """
    where, _, attribute = place.rpartition(":")  # the path of a file may have colons
    if not where or not attribute:
        raise PluginConfigurationError(f"{place!r} does not have the form 'module:attribute'")
    if where.endswith(".pyx"):
        return _attribute(_building.import_file(where), f"the file {where!r}", attribute)
    if where.endswith(".py"):
        with importing:
            file = _load_file(where)
        return _attribute(file, f"the file {where!r}", attribute)
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        raise PluginConfigurationError(
            f"the module {where!r} cannot be loaded: {type(error).__name__}: {error}"
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
    path = os.path.realpath(path)
    # Without a dot: what stands before one would be a package, to pickle too.
    name = path.removesuffix(".py").replace(".", "_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise PluginConfigurationError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PluginConfigurationError(
            f"loading {path} failed: {type(error).__name__}: {error}"
        ) from error
    return module
