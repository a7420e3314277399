"""Modules that are imported when they are first used, so that a job without them is spared them.

And files of users, each loaded by one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["Later", "Turns", "importing"]

importing = threading.RLock()
"""Held by who imports a module of DataFlare, and by who forks: in the child of a fork in the middle
of an import, that module would stay locked for ever. No code of a user runs under it: that may wait
for a thread that needs it, or forks."""


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


class Turns:
    """Whose turn it is to make a thing that many threads want, such as the module of a file.

    The others wait, but for one that waits for them: as in an import, who would wait for itself, in
    whatever way, goes on with what there is so far. A fork does not wait; in the child, what other
    threads were at is to be made anew.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._makers: dict[Hashable, int] = {}
        self._wanted: dict[int, Hashable] = {}
        os.register_at_fork(after_in_child=self._forget_others)

    @contextmanager
    def take(self, thing: Hashable) -> Iterator[bool]:
        """Wait until nobody makes it.

        Parameters
        ----------
        thing : hashable

        Yields
        ------
        bool
            False if this thread makes it already, or the one that does waits for this thread.
        """
        me = threading.get_ident()
        with self._changed:
            is_mine = self._wait(thing, me)
            if is_mine:
                self._makers[thing] = me
        try:
            yield is_mine
        finally:
            if is_mine:
                with self._changed:
                    del self._makers[thing]
                    self._changed.notify_all()

    def _wait(self, thing: Hashable, me: int) -> bool:
        try:
            while thing in self._makers:
                if self._waits_for(self._makers[thing], me):
                    return False
                self._wanted[me] = thing
                self._changed.wait()
        finally:
            self._wanted.pop(me, None)
        return True

    def _waits_for(self, thread: int | None, me: int) -> bool:
        """Whether a thread is this one, or waits for it, perhaps by way of others."""
        while thread is not None and thread != me:
            thread = self._makers.get(self._wanted.get(thread))
        return thread is not None

    def _forget_others(self) -> None:
        me = threading.get_ident()
        self._changed = threading.Condition()  # somebody may have held it
        self._makers = {thing: maker for thing, maker in self._makers.items() if maker == me}
        self._wanted.clear()


os.register_at_fork(
    before=importing.acquire,
    after_in_parent=importing.release,
    after_in_child=importing.release,
)
