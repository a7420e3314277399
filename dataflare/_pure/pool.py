"""The memory pool: five classes of preallocated slabs, handed out last in, first out.

Design
------
a. **One mapping per class.** The slabs of a class are one private anonymous mapping. Its pages can
   be given back to the operating system one slab at a time.
b. **One lock for all pools**, so that a fork can wait for it. A buffer that is dropped does not: it
   only queues its slab, and whoever takes the lock next takes the queue in first. What the garbage
   collector or a signal calls may find that its own thread is within the pool already (`nested`).
   It then touches no slabs: what it takes is unpooled, what it returns is queued.
c. **Wrappers are never shared.** A stale reference cannot reach memory that belongs to someone
   else: it finds a buffer that says it was returned.
d. **No clock on the hot path.** Each class notes the least number of free slabs since the last
   clean-up; the slabs below that mark were not touched, because the stack works at its top.
e. **In debug mode** a slab is followed by a guard, and the pool's `Guard` looks at every loan that
   is taken or comes back. All counts are of slabs without their guards.
"""

import mmap
import operator
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Any

import numpy as np

from dataflare import _idle
from dataflare._ledger import open_ledger
from dataflare._pure.exporter import Exporter, refusing
from dataflare._pure.guard import MARGIN, POISON, Guard, Memory, stride_of
from dataflare.config import MemoryPoolConfig, seconds
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize, ClassStats, Loan, PoolStats
from dataflare.units import counted

_SIZES = tuple(BufferSize)
_OVERSIZE = len(_SIZES)  # where requests larger than HUGE are counted
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python does not name it

_lock = threading.RLock()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def _kind_of(size: int) -> int:
    """The smallest class that holds `size` bytes, or _OVERSIZE."""
    return next((kind for kind, limit in enumerate(_SIZES) if size <= limit), _OVERSIZE)


class _SlabClass:
    """The slabs of one size, their free list and what is needed to see which ones are idle.

    Invariants: `free` has the indices of the free slabs, last returned last; `low` is the least
    ``len(free)`` since the last clean-up, so the slabs in ``free[:low]`` were not touched since.
    """

    def __init__(self, size: int, count: int, guarded: bool) -> None:
        self.size = size
        self.stride = stride_of(size) if guarded else size
        self.count = count
        length = max(self.stride * count, mmap.PAGESIZE)
        self.mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = np.frombuffer(self.mapping, np.uint8)
        self.free = list(reversed(range(count)))
        self.low = count
        self.idle_since = [0.0] * count  # by position in the stack
        self.released = [True] * count  # by slab: its pages are with the operating system
        self.poisoned: set[int] = set()  # free and full of POISON, in debug mode

    def take(self) -> int:
        index = self.free.pop()
        self.low = min(self.low, len(self.free))
        return index

    def room(self, index: int) -> Memory:
        """A slab, and in debug mode the guard behind it."""
        return self.memory[index * self.stride : (index + 1) * self.stride]

    def restart_clocks(self, now: float) -> None:
        """Note what was touched since the last call: it is idle from now on, at the earliest."""
        for position in range(self.low, len(self.free)):
            self.idle_since[position] = now
            self.released[self.free[position]] = False
        self.low = len(self.free)

    def release_idle(self, now: float, max_idle_time: float) -> int:
        """Give back the pages on which every slab is free and idle for `max_idle_time`."""
        self.restart_clocks(now)
        idle = {
            index
            for position, index in enumerate(self.free)
            if now - self.idle_since[position] >= max_idle_time
        }
        # Slabs smaller than a page go in groups that share one.
        group = max(mmap.PAGESIZE // self.size, 1)
        freed = 0
        for first in range(0, self.count, group):
            slabs = range(first, min(first + group, self.count))
            if idle.issuperset(slabs) and not all(self.released[index] for index in slabs):
                freed += self.give_back(slabs)
        return freed

    def give_back(self, slabs: range) -> int:
        try:
            self.mapping.madvise(
                mmap.MADV_DONTNEED, slabs.start * self.stride, len(slabs) * self.stride
            )
        except OSError:
            return 0
        for index in slabs:
            self.released[index] = True
        self.poisoned.difference_update(slabs)
        return len(slabs) * self.size

    def populate(self) -> None:
        """Make every slab resident, without changing a byte of those in use."""
        if self.count == 0:
            return
        try:
            if sys.platform != "linux":
                raise OSError("only Linux has MADV_POPULATE_WRITE")
            self.mapping.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # write to the pages of the free slabs, whose bytes nobody needs
            for index in self.free:
                self.room(index)[:: mmap.PAGESIZE] = POISON if index in self.poisoned else 0
        self.low = 0
        self.restart_clocks(time.monotonic())

    def inspect(self, guard: Guard, kind: int) -> None:
        """Look at the free slabs that are poisoned."""
        for index in self.free:
            if index in self.poisoned:
                guard.inspect((kind, index), self.room(index))


class _Within:
    """Tells, with the lock held, whether its thread was within the pool already."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> bool:
        self.depth += 1
        return self.depth > 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1


class _Tally:
    """Counts of one size class."""

    def __init__(self) -> None:
        self.hits = self.misses = self.returns = self.requested = self.handed_out = self.peak = 0

    @property
    def in_use(self) -> int:
        return self.hits + self.misses - self.returns


class MemoryPool:
    """Warm buffers in five size classes.

    A request takes a slab of the smallest class that holds it. A request larger than 4 MiB, or made
    while every slab of its class is out, is served by an exact allocation of its own and counted as
    a miss. The bytes of a buffer are what its last user left there, in debug mode 0xCD.

    Parameters
    ----------
    config : MemoryPoolConfig, optional
        How many slabs each class has, and when idle ones give their memory back.
    debug : bool, default False
        Find what is written past the end of a buffer or after its return, and buffers that are
        not returned. Each is named with the place where the buffer was taken. Slow.

    Notes
    -----
    Safe to use from several threads. Creating a pool reserves address space only; memory becomes
    resident when a slab is first used, or at once by `warmup`.
    """

    def __init__(self, config: MemoryPoolConfig | None = None, *, debug: bool = False) -> None:
        if config is None:
            config = MemoryPoolConfig()
        elif not isinstance(config, MemoryPoolConfig):
            raise TypeError(f"config must be a MemoryPoolConfig, not {type(config).__name__}")
        counts = (
            config.max_tiny_buffers, config.max_small_buffers, config.max_medium_buffers,
            config.max_large_buffers, config.max_huge_buffers,
        )  # fmt: skip
        self.config = config
        self._closed = False
        ledger = open_ledger(debug)
        self._guard = None if ledger is None else Guard(ledger)
        self._classes = [_SlabClass(*pair, debug) for pair in zip(_SIZES, counts, strict=True)]
        self._tallies = [_Tally() for _ in range(_OVERSIZE + 1)]
        self._dropped: deque[tuple[int, int, int]] = deque()
        self._within = _Within()
        self._in_use = self._peak = self._bytes_in_use = self._peak_bytes = 0
        _idle.watch(self, config.cleanup_interval)

    @property
    def closed(self) -> bool:
        """bool: Whether the pool refuses new requests."""
        return self._closed

    @property
    def debug(self) -> bool:
        """bool: Whether the pool is in debug mode."""
        return self._guard is not None

    @property
    def violations(self) -> tuple[str, ...]:
        """tuple of str: What debug mode found wrong, the latest thousand; empty without it."""
        if self._guard is None:
            return ()
        self._take_in()
        return self._guard.ledger.violations

    def __enter__(self) -> "MemoryPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        with _lock, self._within as nested:
            self._take_dropped(nested)
            state = "closed" if self._closed else f"{self._in_use} in use"
        reserved = sum(slabs.size * slabs.count for slabs in self._classes)
        return f"MemoryPool({state}, {reserved} bytes reserved)"

    def get_buffer(self, size: int, /) -> "Buffer":
        """Borrow a writable buffer.

        Parameters
        ----------
        size : int
            Bytes wanted; ``len()`` of the buffer is exactly this.

        Returns
        -------
        Buffer

        Raises
        ------
        TypeError
            `size` is not an integer.
        ValueError
            `size` is negative.
        PluginMemoryError
            The pool is closed.
        MemoryError
            The system has no memory for a request that no slab could serve.
        """
        size = operator.index(size)
        if size < 0:
            raise ValueError(f"the size of a buffer cannot be negative, it was {size}")
        kind = _kind_of(size)
        guard = self._guard
        entry = None if guard is None else guard.ledger.entry(size)
        with _lock, self._within as nested:
            self._take_dropped(nested)
            if self._closed:
                raise PluginMemoryError("the memory pool is closed")
            poisoned = False
            if kind < _OVERSIZE and self._classes[kind].free and not nested:
                slabs = self._classes[kind]
                index = slabs.take()
                room, capacity = slabs.room(index), slabs.size
                if index in slabs.poisoned:
                    slabs.poisoned.remove(index)
                    poisoned = True
            else:
                room, capacity = _allocate(size if guard is None else size + MARGIN), size
                index = -1 if guard is None else guard.ticket()
            self._in_use += 1
            if self.config.enable_metrics:
                self._count_loan(self._tallies[kind], index, size, capacity)
            if guard is not None and entry is not None:
                guard.lend((kind, index), room, entry, poisoned)
            buffer = Buffer._lend(self, kind, index, room, size, capacity)
        self._speak()
        return buffer

    def _count_loan(self, tally: _Tally, index: int, size: int, capacity: int) -> None:
        if index >= 0:
            tally.hits += 1
        else:
            tally.misses += 1
        tally.requested += size
        tally.handed_out += capacity
        tally.peak = max(tally.peak, tally.in_use)
        self._peak = max(self._peak, self._in_use)
        self._bytes_in_use += capacity
        self._peak_bytes = max(self._peak_bytes, self._bytes_in_use)

    def _take_back(self, kind: int, index: int, capacity: int) -> str | None:
        """Take a loan in; returns what is wrong with it, if debug mode found something."""
        wrong = None
        if self._guard is not None:
            wrong = self._guard.take_back((kind, index), index >= 0)
            if index >= 0:
                self._classes[kind].poisoned.add(index)
        if index >= 0:
            self._classes[kind].free.append(index)
        self._in_use -= 1
        if self.config.enable_metrics:
            self._tallies[kind].returns += 1
            self._bytes_in_use -= capacity
        return wrong

    def _take_dropped(self, nested: bool) -> None:
        while self._dropped and not nested:
            wrong = self._take_back(*self._dropped.popleft())
            if wrong is not None and self._guard is not None:
                self._guard.ledger.complain(wrong)

    def _take_in(self, blocking: bool = True) -> None:
        """In debug mode: take in what was dropped, and say what was wrong with it."""
        if _lock.acquire(blocking):
            try:
                with self._within as nested:
                    self._take_dropped(nested)
            finally:
                _lock.release()
            self._speak()

    def _speak(self) -> None:
        """Log what debug mode has to say; not with the lock held, for a log may use the pool."""
        if self._guard is not None:
            self._guard.ledger.flush()

    def return_buffer(self, buffer: "Buffer", /) -> None:
        """Give a buffer back.

        Parameters
        ----------
        buffer : Buffer
            One that `get_buffer` of this pool handed out.

        Raises
        ------
        PluginMemoryError
            It was returned before, comes from another pool, or a view of it is still alive. The
            buffer and both pools stay as they were. Or, in debug mode, somebody wrote past its
            end; it is returned then.
        """
        if not isinstance(buffer, Buffer):
            raise TypeError(f"buffer must be a Buffer, not {type(buffer).__name__}")
        if buffer._pool is not self:
            raise PluginMemoryError("the buffer belongs to another memory pool")
        buffer._give_back()

    def warmup(self) -> None:
        """Make every slab resident, so that its first use faults no page.

        Raises
        ------
        PluginMemoryError
            The pool is closed.
        """
        with _lock, self._within as nested:
            self._take_dropped(nested)
            if self._closed:
                raise PluginMemoryError("the memory pool is closed")
            for slabs in self._classes:
                slabs.populate()
            if self._guard is not None:
                self._guard.ledger.step("warmed all slabs up")
        self._speak()

    def trim(self, max_idle_time: float | timedelta | None = None) -> int:
        """Give the pages of idle slabs back to the operating system.

        This runs by itself every ``config.cleanup_interval`` seconds. A slab's idle time is counted
        from the first call after its last use.

        Parameters
        ----------
        max_idle_time : float or timedelta, optional
            Seconds a slab must have been idle; ``config.max_idle_time`` if not given, 0 for all
            that are free.

        Returns
        -------
        int
            Bytes given back.

        Raises
        ------
        TypeError, ValueError
            `max_idle_time` is no duration.
        """
        limit = seconds(
            "max_idle_time", self.config.max_idle_time if max_idle_time is None else max_idle_time
        )
        with _lock, self._within as nested:
            self._take_dropped(nested)
            if nested:
                return 0
            if self._guard is not None:  # before the traces are gone
                for kind, slabs in enumerate(self._classes):
                    slabs.inspect(self._guard, kind)
            now = time.monotonic()
            freed = sum(slabs.release_idle(now, limit) for slabs in self._classes)
            if self._guard is not None:
                message = "gave %d bytes of idle slabs back to the system"
                self._guard.ledger.step(message, freed)
        self._speak()
        return freed

    def get_stats(self) -> PoolStats | None:
        """Exact counts since the pool was made.

        Returns
        -------
        PoolStats or None
            None when ``config.enable_metrics`` is False.
        """
        if not self.config.enable_metrics:
            return None
        with _lock, self._within as nested:
            self._take_dropped(nested)
            hits = sum(tally.hits for tally in self._tallies)
            allocations = hits + sum(tally.misses for tally in self._tallies)
            requested = sum(tally.requested for tally in self._tallies)
            handed_out = sum(tally.handed_out for tally in self._tallies)
            return PoolStats(
                allocations=allocations,
                returns=sum(tally.returns for tally in self._tallies),
                hits=hits,
                misses=allocations - hits,
                in_use=self._in_use,
                cached=sum(len(slabs.free) for slabs in self._classes),
                peak_in_use=self._peak,
                bytes_requested=requested,
                bytes_allocated=handed_out,
                bytes_in_use=self._bytes_in_use,
                peak_bytes_in_use=self._peak_bytes,
                bytes_reserved=sum(slabs.size * slabs.count for slabs in self._classes),
                cache_hit_rate=hits / allocations if allocations else 0.0,
                memory_efficiency=requested / handed_out if handed_out else 0.0,
                classes={
                    size: _class_stats(slabs, tally)
                    for size, slabs, tally in zip(
                        _SIZES, self._classes, self._tallies[:_OVERSIZE], strict=True
                    )
                },
            )

    def close(self) -> None:
        """Refuse new requests and give all idle memory back.

        Buffers that are out stay valid until they are returned or dropped; in debug mode the log
        names each. Closing twice is fine.
        """
        first, self._closed = not self._closed, True
        self.trim(0)
        if first and self._guard is not None:
            self._guard.ledger.closed()
            self._speak()

    def outstanding(self) -> list[Loan] | None:
        """What is out, in debug mode.

        Returns
        -------
        list of Loan, or None
            The oldest first; None without debug mode.
        """
        if self._guard is None:
            return None
        self._take_in()
        return self._guard.ledger.loans()


def _allocate(size: int) -> Memory:
    try:
        return np.empty(size, np.uint8)
    except (MemoryError, ValueError):  # the latter for more than the address space
        raise MemoryError(f"no memory for a buffer of {size} bytes") from None


def _class_stats(slabs: _SlabClass, tally: _Tally) -> ClassStats:
    return ClassStats(
        capacity=slabs.count,
        allocations=tally.hits + tally.misses,
        returns=tally.returns,
        hits=tally.hits,
        misses=tally.misses,
        in_use=tally.in_use,
        cached=len(slabs.free),
        peak_in_use=tally.peak,
        bytes_requested=tally.requested,
    )


class Buffer(Exporter):
    """Memory on loan from a `MemoryPool`.

    Speaks the writable buffer protocol: ``memoryview(buffer)``, ``numpy.frombuffer(buffer)`` and
    ``file.readinto(buffer)`` work on it. Use it as a context manager, give it to
    `MemoryPool.return_buffer`, or drop it: each returns it.
    """

    # Invariant: `_memory` is None if and only if the buffer was returned.
    __slots__ = ("_capacity", "_index", "_kind", "_length", "_memory", "_pool", "_views")

    _pool: MemoryPool
    _kind: int
    _index: int
    _capacity: int
    _length: int
    _memory: Memory | None
    _views: list[None]  # one for each export that is alive; a list changes without the lock

    def __new__(cls, *args: Any, **kwargs: Any) -> "Buffer":
        raise TypeError("buffers come from MemoryPool.get_buffer")

    @staticmethod
    def _lend(
        pool: MemoryPool, kind: int, index: int, room: Memory, length: int, capacity: int
    ) -> "Buffer":
        buffer: Buffer = Exporter.__new__(Buffer)
        buffer._pool = pool
        buffer._kind = kind
        buffer._index = index
        buffer._capacity = capacity
        buffer._length = length
        buffer._memory = room[:length]
        buffer._views = []
        return buffer

    def __del__(self) -> None:
        if self._memory is not None:
            self._pool._dropped.append((self._kind, self._index, self._capacity))
            if self._pool._guard is not None:  # sooner than the next call, if nobody is at it
                self._pool._take_in(blocking=False)

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> "Buffer":
        self._usable_memory()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.returned:
            self._give_back()

    def __repr__(self) -> str:
        if self.returned:
            return f"Buffer({counted(self._length, 'byte')}, returned)"
        kind = "unpooled" if self.size_class is None else self.size_class.name
        return f"Buffer({counted(self._length, 'byte')}, {kind})"

    def __buffer__(self, flags: int, /) -> memoryview:
        with _lock:
            memory = self._usable_memory()
            self._views.append(None)
        return memory.data

    def __release_buffer__(self, view: memoryview, /) -> None:
        with suppress(AttributeError):  # the garbage collector clears it first, in a cycle
            self._views.pop()
        view.release()

    def _give_back(self) -> None:
        with _lock, self._pool._within as nested:
            self._usable_memory()
            views = len(self._views)
            if views:
                raise PluginMemoryError(
                    f"the buffer cannot be returned while {views} view(s) of it are alive"
                )
            self._memory = None
            self.__class__ = _Returned
            wrong = None
            if nested:  # the pool is in the middle of something: it takes this in afterwards
                self._pool._dropped.append((self._kind, self._index, self._capacity))
            else:
                self._pool._take_dropped(nested)
                wrong = self._pool._take_back(self._kind, self._index, self._capacity)
        self._pool._speak()
        if wrong is not None:
            raise PluginMemoryError(wrong)

    def _usable_memory(self) -> Memory:
        if self._memory is None:
            raise PluginMemoryError("the buffer was returned to its memory pool")
        return self._memory

    @property
    def size(self) -> int:
        """int: Bytes asked for."""
        return self._length

    @property
    def capacity(self) -> int:
        """int: Bytes of the memory behind it, at least `size`."""
        return self._capacity

    @property
    def size_class(self) -> BufferSize | None:
        """BufferSize or None: The class of its slab; None if it was allocated for itself alone."""
        return BufferSize(self._capacity) if self._index >= 0 else None

    @property
    def returned(self) -> bool:
        """bool: Whether it went back to its pool, and so must not be used any more."""
        return self._memory is None


_Returned = refusing(Buffer)
