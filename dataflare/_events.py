"""An event that a signal's handler may set."""

from __future__ import annotations

import queue

__all__ = ["Event"]


class Event:
    """As `threading.Event`, which has a lock that a handler would wait for in vain.

    A handler runs in the main thread, maybe while that one is inside the event itself. The queue's
    operations can be interrupted by each other: see `queue.SimpleQueue`.
    """

    # Invariant: once `_is_set`, the queue has an entry, or a thread that took one puts it back.

    def __init__(self) -> None:
        self._is_set = False
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def set(self) -> None:
        """Let everybody go on who waits, now and later."""
        self._is_set = True
        self._queue.put(None)

    def wait(self, timeout: float) -> bool:
        """Wait until it is set, at most so many seconds; whether it is."""
        if self._is_set:
            return True
        try:
            self._queue.get(timeout=timeout)
        except queue.Empty:
            return self._is_set
        self._queue.put(None)  # for the others
        return True
