"""Threads that share a batch: they live as long as their manager and own nothing between batches.

Design
------
a. **The caller works too.** It takes parts like everybody else, so a batch never waits for a thread
   that is busy elsewhere, and batches inside batches cannot wait for each other.
b. **A part is taken once**, off a deque, and whoever took it finishes it.
c. **A thread that dies** takes the part it had with it and no other: the caller sees the thread
   dead and gives the part an error. The next batch starts a thread in its place. An exception from
   outside may end a thread between any two steps, so a thread says that it works on a batch before
   it takes anything.
d. **No lock is held while anything else is done**, and a fork finds none held by a thread that is
   gone: what threads write is appended, or set under an index of its own.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from dataflare.errors import PluginError, PluginProcessingError, drop_frames

__all__ = ["Workers", "has_gil"]

_logger = logging.getLogger("dataflare.workers")
_Part = TypeVar("_Part")
_Outcome = TypeVar("_Outcome")

MOST_OFFERS = 64
"""Offers of batches that lie in the queue at most, per thread: all are busy anyway."""

LOOK_AFTER = 0.5
"""Seconds that a caller waits for parts before it looks whether their threads are alive."""


def has_gil() -> bool:
    """Whether threads of this interpreter run Python code one at a time."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return True if enabled is None else bool(enabled())


class _DiedError(BaseException):
    """Ends a thread in the place of what struck it, which the batch has, without its frames."""


class _Job(Generic[_Part, _Outcome]):
    """The parts of one batch.

    Invariant: a part is in `todo`, taken by a thread that is in `inside`, or in `done`. A thread
    that is gone, or left without its part being done, has lost it.
    """

    def __init__(
        self,
        function: Callable[[_Part], _Outcome],
        parts: Sequence[_Part],
        lost: Callable[[_Part, PluginError], _Outcome],
    ) -> None:
        self._caller = threading.current_thread()
        self._function = function
        self._lost = lost
        self._parts = parts
        self._count = len(parts)
        self._todo = deque(range(len(parts)))
        self._taken: dict[int, threading.Thread] = {}
        self._inside: dict[threading.Thread, None] = {}
        self._done: list[int] = []
        self._all_done = threading.Lock()
        self._all_done.acquire()
        self.outcomes: list[_Outcome | None] = [None] * len(parts)
        self.failure: Exception | None = None

    def work(self) -> None:
        """Take parts until there are none."""
        me = threading.current_thread()
        self._inside[me] = None
        try:
            while True:
                try:
                    index = self._todo.popleft()
                except IndexError:
                    return
                self._taken[index] = me
                self._run(index)
        finally:
            self._inside.pop(me, None)

    def _run(self, index: int) -> None:
        try:
            outcome = self._function(self._parts[index])
        except Exception as error:  # not of a record: the whole part could not be run
            self.failure = self.failure or error
            self._finish(index, None)
        except BaseException as error:
            # Meant for this thread: to the batch it is a thread that died.
            if threading.current_thread() is self._caller:
                self._finish(index, None)
                raise
            self._finish(index, self._death(index, error))
            raise _DiedError(type(error).__name__) from None
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
        self.outcomes[index] = outcome
        self._done.append(index)
        if len(self._done) >= self._count:
            with suppress(RuntimeError):  # another thread saw it, too
                self._all_done.release()

    def cancel(self) -> None:
        """Leave what nobody has taken yet undone."""
        while True:
            try:
                index = self._todo.popleft()
            except IndexError:
                return
            self._finish(index, None)

    def wait(self) -> None:
        """Wait for the parts that other threads took; the caller has none any more."""
        me = threading.current_thread()
        while not self._all_done.acquire(timeout=LOOK_AFTER):
            if len(self._done) >= self._count:  # whoever was to say so did not come to it
                return
            at_work = {thread for thread in list(self._inside) if thread.is_alive()} - {me}
            for index in set(range(self._count)) - set(self._done) - set(self._todo):
                taker = self._taken.get(index)
                if taker not in at_work and (taker is not None or not at_work):
                    self._finish(index, self._death(index, None))

    def forget(self) -> None:
        """Hold nothing of the batch any more: an offer of it may lie in the queue for long."""
        del self._function, self._lost, self._parts, self.outcomes


class Workers:
    """Threads that run the parts of batches.

    Parameters
    ----------
    size : int
        How many threads work on a batch, the caller's among them.

    Attributes
    ----------
    refused : bool
        Whether the system did not start a thread when one was last needed. Batches then have
        fewer threads, or that of their caller alone.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.refused = False
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

    @property
    def dead(self) -> int:
        """int: Threads that died, and are replaced when the next batch is shared out."""
        return 0 if self._closed else sum(not thread.is_alive() for thread in self._threads)

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
        if not parts:
            return []
        job = _Job(function, parts, lost)
        self._offer(min(len(parts), self.size) - 1, job)
        try:
            job.work()
        except BaseException:
            job.cancel()
            job.wait()
            raise
        job.wait()
        outcomes = [outcome for outcome in job.outcomes if outcome is not None]
        job.forget()
        if job.failure is not None:
            raise job.failure
        return outcomes

    def _offer(self, count: int, job: _Job[_Part, _Outcome]) -> None:
        """Let `count` threads know of a job; start those that are missing."""
        with self._lock:
            if self._closed:
                return
            self._threads[:] = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < self.size - 1:
                thread = threading.Thread(
                    target=_work,
                    args=(self._jobs,),
                    name=f"dataflare-worker-{len(self._threads) + 1}",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    if not self.refused:
                        _logger.warning("a worker thread cannot be started: %s", error)
                    self.refused = True
                    break
                self.refused = False
                self._threads.append(thread)
        if self._jobs.qsize() < MOST_OFFERS * self.size:
            for _ in range(count):
                self._jobs.put(job)

    def close(self, wait: bool = True) -> None:
        """End the threads; batches that come later are run by their callers alone.

        Parameters
        ----------
        wait : bool
            Whether to return only when they have ended.
        """
        with self._lock:
            self._closed = True
        if self._finalizer.detach() is not None:
            _end(self._jobs, self._threads)
        if wait:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()

    def after_fork(self) -> None:
        """In the child of a fork, where the threads are gone."""
        self._lock = threading.RLock()
        self._finalizer.detach()
        self._jobs.put(None)  # for this thread, if it was one of them
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
            died = isinstance(error, _DiedError)
            _logger.error("a worker thread died: %s", error if died else type(error).__name__)
            return
        del job  # it holds the batch
