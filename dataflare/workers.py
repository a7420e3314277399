"""Threads that share a batch: they live as long as their manager and own nothing between batches.

Design
------
a. **The caller works too.** It takes parts like everybody else, so a batch never waits for a thread
   that is busy elsewhere, and batches inside batches cannot wait for each other.
b. **A part is taken once**, off a deque, and whoever took it finishes it.
c. **A thread that dies** takes the part it had with it and no other: the caller sees the thread
   dead and gives the part an error. The next batch starts a thread in its place.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from dataflare.errors import PluginError, PluginProcessingError, drop_frames

__all__ = ["Workers", "has_gil"]

_logger = logging.getLogger("dataflare.workers")
_Part = TypeVar("_Part")
_Outcome = TypeVar("_Outcome")

LOOK_AFTER = 0.5
"""Seconds that a caller waits for parts before it looks whether their threads are alive."""


def has_gil() -> bool:
    """Whether threads of this interpreter run Python code one at a time."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return True if enabled is None else bool(enabled())


class _Job(Generic[_Part, _Outcome]):
    """The parts of one batch.

    Invariant: `left` parts have no outcome yet; each of them is in `todo` or taken by a thread.
    """

    def __init__(
        self,
        function: Callable[[_Part], _Outcome],
        parts: Sequence[_Part],
        lost: Callable[[_Part, PluginError], _Outcome],
    ) -> None:
        self._function = function
        self._lost = lost
        self._parts = parts
        self._todo = deque(range(len(parts)))
        self._taken: dict[int, threading.Thread] = {}
        self._left = len(parts)
        self._lock = threading.Lock()
        self._all_done = threading.Event()
        self.outcomes: list[_Outcome | None] = [None] * len(parts)
        self.failure: BaseException | None = None

    def work(self) -> None:
        """Take parts until there are none."""
        me = threading.current_thread()
        while True:
            try:
                index = self._todo.popleft()
            except IndexError:
                return
            self._taken[index] = me
            try:
                outcome = self._function(self._parts[index])
            except Exception as error:  # not of a record: the whole part could not be run
                self.failure = self.failure or error
                self._finish(index, None)
            except BaseException as error:
                # Meant for this thread: to the batch it is a thread that died.
                self._finish(index, self._death(index, error))
                raise
            else:
                self._finish(index, outcome)

    def _death(self, index: int, error: BaseException | None) -> _Outcome:
        why = "" if error is None else f": {type(error).__name__}"
        failure = PluginProcessingError(f"the worker thread died{why}")
        if error is not None:
            drop_frames(error)
            failure.__cause__ = error
        return self._lost(self._parts[index], failure)

    def _finish(self, index: int, outcome: _Outcome | None) -> None:
        with self._lock:
            if self._taken.pop(index, None) is None:
                return
            self.outcomes[index] = outcome
            self._left -= 1
            if self._left == 0:
                self._all_done.set()

    def cancel(self) -> None:
        """Leave what nobody has taken yet undone."""
        while True:
            try:
                index = self._todo.popleft()
            except IndexError:
                return
            self._taken[index] = threading.current_thread()
            self._finish(index, None)

    def wait(self) -> None:
        """Wait for the parts that other threads took."""
        while not self._all_done.wait(LOOK_AFTER):
            for index, thread in list(self._taken.items()):
                if not thread.is_alive():
                    self._finish(index, self._death(index, None))


class Workers:
    """Threads that run the parts of batches.

    Parameters
    ----------
    size : int
        How many threads work on a batch, the caller's among them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._jobs: queue.SimpleQueue[_Job[Any, Any] | None] = queue.SimpleQueue()
        self._watch()

    def _watch(self) -> None:
        # The threads know the queue alone, and end when nobody else does.
        self._finalizer = weakref.finalize(self, _end, self._jobs, self._threads)
        self._finalizer.atexit = False

    @property
    def alive(self) -> int:
        """int: Threads that run now, beside those of callers."""
        return sum(thread.is_alive() for thread in self._threads)

    def run(
        self,
        function: Callable[[_Part], _Outcome],
        parts: Sequence[_Part],
        lost: Callable[[_Part, PluginError], _Outcome],
    ) -> list[_Outcome]:
        """Run a function on every part.

        Parameters
        ----------
        function : callable
        parts : sequence
        lost : callable
            Makes the outcome of a part whose thread died, from the part and an error.

        Returns
        -------
        list
            The outcomes, in the order of the parts.

        Raises
        ------
        Exception
            What the function raised, once all parts have ended.
        """
        job = _Job(function, parts, lost)
        self._start(min(len(parts), self.size) - 1, job)
        try:
            job.work()
        except BaseException:
            job.cancel()
            job.wait()
            raise
        job.wait()
        if job.failure is not None:
            raise job.failure
        return [outcome for outcome in job.outcomes if outcome is not None]

    def _start(self, count: int, job: _Job[_Part, _Outcome]) -> None:
        """Let `count` threads know of a job; start those that are missing."""
        if self._closed:
            return
        with self._lock:
            self._threads[:] = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < self.size - 1:
                thread = threading.Thread(
                    target=_work,
                    args=(self._jobs,),
                    name=f"dataflare-worker-{len(self._threads) + 1}",
                    daemon=True,
                )
                thread.start()
                self._threads.append(thread)
        for _ in range(count):
            self._jobs.put(job)

    def close(self) -> None:
        """End the threads; batches that come later are run by their callers alone."""
        self._closed = True
        if self._finalizer.detach() is None:
            return
        _end(self._jobs, self._threads)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def after_fork(self) -> None:
        """In the child of a fork, where the threads are gone."""
        self._lock = threading.Lock()
        self._finalizer.detach()
        self._threads = []
        self._jobs = queue.SimpleQueue()
        self._watch()


def _end(jobs: queue.SimpleQueue[_Job[Any, Any] | None], threads: list[threading.Thread]) -> None:
    for _ in threads:
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[_Job[Any, Any] | None]) -> None:
    """What a worker thread does."""
    while True:
        job = jobs.get()
        if job is None:
            return
        try:
            job.work()
        except BaseException as error:
            _logger.error("a worker thread died: %s", type(error).__name__)
            return
        del job  # it holds the batch
