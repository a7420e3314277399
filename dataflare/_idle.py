"""The one thread of the process that gives idle pool memory back to the operating system."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import threading
import time
import weakref
from typing import Protocol

_logger = logging.getLogger("dataflare")


class _Pool(Protocol):
    @property
    def closed(self) -> bool: ...
    def trim(self) -> int: ...


class _Watcher:
    """Calls `trim` of every live pool at its interval, and keeps none of them alive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, float, weakref.ref[_Pool]]] = []
        self._ticket = itertools.count()  # orders entries that are due at the same time
        self._thread: threading.Thread | None = None

    def watch(self, pool: _Pool, interval: float) -> None:
        if math.isinf(interval):
            return
        with self._changed:
            self._push(interval, weakref.ref(pool))
            self._start()
            self._changed.notify()

    def restart(self) -> None:
        """In the child of a fork, where threads are gone and a lock may be held by none."""
        self._changed = threading.Condition()
        self._thread = None
        if self._due:
            self._start()

    def _push(self, interval: float, pool: weakref.ref[_Pool]) -> None:
        entry = (time.monotonic() + interval, next(self._ticket), interval, pool)
        heapq.heappush(self._due, entry)

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="dataflare-idle-memory", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads; the next pool tries again
                _logger.warning("idle memory is not given back: %s", error)
            else:
                self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due:
                    self._changed.wait()
                wait = self._due[0][0] - time.monotonic()
                if wait > 0:
                    self._changed.wait(min(wait, threading.TIMEOUT_MAX))
                    continue
                _, _, interval, reference = heapq.heappop(self._due)
            if self._trim(reference):
                with self._changed:
                    self._push(interval, reference)

    @staticmethod
    def _trim(reference: weakref.ref[_Pool]) -> bool:
        pool = reference()
        if pool is None or pool.closed:
            return False
        try:
            freed = pool.trim()
        except Exception:
            _logger.exception("giving idle pool memory back failed")
        else:
            if freed:
                _logger.debug("gave %d bytes of idle pool memory back", freed)
        return True


_watcher = _Watcher()
watch = _watcher.watch
os.register_at_fork(after_in_child=_watcher.restart)
