"""Ctrl-C between two steps of work, or while waiting for one, and an end in good order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EndedError", "Interrupts"]

ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class EndedError(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


class Interrupts:
    """Lets work that has begun end before Ctrl-C takes effect; a second Ctrl-C does not wait.

    An exception at any moment would come out of anything, such as a function that C calls and that
    has nowhere to raise it. So it is raised where it does no harm: `waiting`, and at a `check`.
    """

    def __init__(self) -> None:
        self._waiting = False
        self._asked = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take over Ctrl-C, unless it is ignored, as it is in the background of a script.

        SIGTERM and SIGHUP raise `EndedError` at once; a second one ends the process.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDINGS)}
        if before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
        for number in ENDINGS:
            if before[number] is signal.SIG_DFL:
                signal.signal(number, self._end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What may be broken off at any moment, since it only waits."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if there was a Ctrl-C that waits to take effect."""
        if self._asked:
            raise KeyboardInterrupt

    @staticmethod
    def _end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise EndedError(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True  # also where it is raised: the next does not wait
        if again or self._waiting:
            raise KeyboardInterrupt
