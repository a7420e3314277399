"""Modules that are imported when they are first used, so that a job without them is spared them."""

from __future__ import annotations

import os
import threading
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["Later", "importing"]

importing = threading.RLock()
"""Held by who imports, and by who forks: in the child of a fork in the middle of an import, that
module would stay locked for ever."""


class Later:
    """Stands for a module and has its attributes.

    Parameters
    ----------
    name : str
        Of the module.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._module: ModuleType | None = None

    def load(self) -> ModuleType:
        """The module itself.

        Returns
        -------
        ModuleType
        """
        if self._module is None:
            with importing:
                self._module = import_module(self._name)
        return self._module

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.load(), attribute)


os.register_at_fork(
    before=importing.acquire,
    after_in_parent=importing.release,
    after_in_child=importing.release,
)
