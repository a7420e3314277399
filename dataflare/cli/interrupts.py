"""Ctrl-C between two steps of work instead of within one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupts"]


class Interrupts:
    """Lets a step that has begun end before Ctrl-C takes effect; a second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self._holding = False
        self._asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take over Ctrl-C, unless it is ignored, as it is in the background of a script."""
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One step of work."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._holding or self._asked:
            raise KeyboardInterrupt
        self._asked = True
