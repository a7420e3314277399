"""The thread that looks at a manager every so often."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from dataflare._events import Event

__all__ = ["Monitor"]

_logger = logging.getLogger("dataflare.monitor")


class _Sampled(Protocol):
    """What a monitor watches."""

    def take_sample(self) -> object: ...
    def health_check(self) -> object: ...


class Monitor:
    """Has a manager take samples of itself and check its health, from a thread of its own."""

    def __init__(self) -> None:
        self._stop = Event()
        self._thread: threading.Thread | None = None

    def watch(
        self, manager: _Sampled, sample_every: float, check_every: float, growth: float = 0.0
    ) -> None:
        """Take a sample and check the health every so often, until `stop` or the manager is gone.

        Parameters
        ----------
        manager : object
            Has ``take_sample()`` and ``health_check()``. It is not kept alive.
        sample_every, check_every : float
            Seconds; infinity for never.
        growth : float
            Part of the time that passed so far that lies between two samples at least.
        """
        if math.isinf(sample_every) and math.isinf(check_every):
            return
        stop = self._stop
        reference = weakref.ref(manager, lambda _: stop.set())
        thread = threading.Thread(
            target=_run,
            args=(reference, stop, sample_every, check_every, growth),
            name="dataflare-monitor",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: all else works without it
            _logger.warning("the manager is not monitored: %s", error)
        else:
            self._thread = thread

    @property
    def is_running(self) -> bool:
        """bool: Whether its thread is."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, wait: bool = True) -> None:
        """End the thread.

        Parameters
        ----------
        wait : bool
            Whether to return only when it has ended.
        """
        self._stop.set()
        thread = self._thread
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def after_fork(self) -> bool:
        """In the child of a fork, where the thread is gone; whether there was one."""
        self._stop = Event()
        watched, self._thread = self._thread, None
        return watched is not None


def _run(
    reference: weakref.ref[_Sampled],
    stop: Event,
    sample_every: float,
    check_every: float,
    growth: float,
) -> None:
    """What the thread does; between two looks it holds nothing but a weak reference."""
    began = time.monotonic()
    sample_due, check_due = began + sample_every, began + check_every
    while True:
        wait = min(sample_due, check_due) - time.monotonic()
        if stop.wait(max(min(wait, threading.TIMEOUT_MAX), 0)):
            return
        now = time.monotonic()
        if now >= sample_due:
            _call(reference, lambda manager: manager.take_sample())
            sample_due = max(sample_due + max(sample_every, growth * (now - began)), now)
        if now >= check_due:
            _call(reference, lambda manager: manager.health_check())
            check_due = max(check_due + check_every, now)


def _call(reference: weakref.ref[_Sampled], look: Callable[[_Sampled], object]) -> None:
    manager = reference()
    if manager is None:
        return
    try:
        look(manager)
    except Exception:
        _logger.exception("monitoring failed")
