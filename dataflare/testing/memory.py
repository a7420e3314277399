"""Bytes with pages around them that nobody may touch.

A value lies at the very end of its pages, or at their very beginning; the next page is one that the
processor refuses: whoever touches it dies of it. Output goes to a pool that looks after its
buffers itself, or to one whose loans lie like the values.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from dataflare._backend import MemoryPool, PluginRecord, RecordBatch
from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError, sentence_of
from dataflare.testing.subject import NotReadyError
from dataflare.types import BufferSize

__all__ = [
    "BEHIND",
    "IN_FRONT",
    "MIDDLE",
    "Guarded",
    "GuardedBatch",
    "WatchedPool",
    "fenced_pool",
    "guarded_lines",
    "parts",
    "small_pool",
]

BEHIND, IN_FRONT, MIDDLE = "behind", "in front of", "in the middle"
_SLACK = 256
_AT_ONCE = 1000
_FRONT = "output was written in front of what was reserved"
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """Copies of some bytes, each with a forbidden page on either side.

    All lie in one mapping, for the system lends a process no more than some 65,000 stretches of
    memory that differ in what is allowed.

    Parameters
    ----------
    data : sequence of bytes-like
    side : str
        `BEHIND` or `IN_FRONT`: where the forbidden page touches the bytes. With `MIDDLE` there is
        some room on both sides.

    Attributes
    ----------
    views : list of memoryview
        The bytes; as far as Python is concerned, they can be written to.

    Raises
    ------
    NotReadyError
        There is not as much memory.
    """

    def __init__(self, data: Sequence[bytes | memoryview], side: str) -> None:
        page = mmap.PAGESIZE
        slack = _SLACK if side == MIDDLE else 0
        rooms = [max(-(-(len(each) + 2 * slack) // page), 1) * page for each in data]
        self._size = sum(rooms) + (len(rooms) + 1) * page
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, self._size, flags=flags)
        except (OSError, OverflowError) as error:
            raise _no_room(error) from error
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self._rooms: list[tuple[int, int]] = []
        self.views: list[memoryview] = []
        at = page
        for each, room in zip(data, rooms, strict=True):
            start = at + (slack if side != BEHIND else room - len(each))
            view = memoryview(self._pages)[start : start + len(each)]
            view[:] = each
            self.views.append(view)
            self._rooms.append((at, room))
            at += room + page
        # Only now: the system does not join again what was first written to in parts.
        for fence in (0, *(at + room for at, room in self._rooms)):
            self._allow(fence, page, _PROT_NONE)

    def _allow(self, start: int, size: int, protection: int) -> None:
        if _libc.mprotect(self._address + start, size, protection) != 0:
            number = ctypes.get_errno()
            raise _no_room(OSError(number, os.strerror(number)))

    def seal(self) -> None:
        """From now on nobody may write to the bytes."""
        for at, room in self._rooms:
            self._allow(at, room, mmap.PROT_READ)

    def forbid(self) -> None:
        """From now on nobody may touch the bytes either."""
        self._allow(0, self._size, _PROT_NONE)

    def release(self) -> None:
        """From now on everybody may touch everything; it stays where it is, as one stretch."""
        self._allow(0, self._size, mmap.PROT_READ | mmap.PROT_WRITE)


def _no_room(error: Exception) -> NotReadyError:
    return NotReadyError(f"there is no memory for pages around the records: {sentence_of(error)}")


class GuardedBatch:
    """Records whose values and keys are guarded.

    Parameters
    ----------
    records : sequence of PluginRecord
    side : str
        As of `Guarded`.

    Attributes
    ----------
    batch : RecordBatch
    records : list of PluginRecord
        The same: those that a batch makes of its own are copies.

    Raises
    ------
    NotReadyError
        There is not as much memory.
    """

    def __init__(self, records: Sequence[PluginRecord], side: str) -> None:
        keys = [record.key for record in records]
        given = [key for key in keys if key is not None]
        self._guarded = Guarded([*(record.value for record in records), *given], side)
        values = self._guarded.views[: len(records)]
        rest = iter(self._guarded.views[len(records) :])
        views = [None if key is None else next(rest) for key in keys]
        self.records = [
            PluginRecord(
                value,
                key=key,
                metadata=record.metadata,
                timestamp=record.timestamp,
                partition=record.partition,
                offset=record.offset,
            )
            for record, value, key in zip(records, values, views, strict=True)
        ]
        self.batch = RecordBatch.from_values(
            values,
            views,
            timestamps=[record.timestamp for record in records],
            partitions=[record.partition for record in records],
            offsets=[record.offset for record in records],
            metadata=[record.metadata for record in records],
        )
        self.seal = self._guarded.seal
        self.forbid = self._guarded.forbid
        self.release = self._guarded.release


def guarded_lines(records: Sequence[PluginRecord], side: str) -> tuple[Guarded, RecordBatch]:
    """The values without a line break as the lines of a guarded block.

    Raises
    ------
    NotReadyError
        There is not as much memory.
    """
    lines = [bytes(record.value) for record in records if b"\n" not in bytes(record.value)]
    block = Guarded([b"\n".join(lines)], side)
    return block, RecordBatch.from_lines(block.views[0], newline=b"\n")


def parts(records: Sequence[PluginRecord]) -> Iterator[Sequence[PluginRecord]]:
    """So few at a time that their pages are no burden; none at all too."""
    for start in range(0, max(len(records), 1), _AT_ONCE):
        yield records[start : start + _AT_ONCE]


class WatchedPool:
    """A pool for output that finds writes behind and in front of what was reserved.

    A pool in debug mode looks behind each buffer. The one in front of a buffer is that of the slab
    before it, and in front of the first slab there is none: so the first ones are held here.

    Parameters
    ----------
    records : sequence of PluginRecord
        Which shall be processed with it.

    Attributes
    ----------
    pool : MemoryPool
    faults : list of str
        What was found, in sentences; complete when the pool is closed.
    """

    def __init__(self, records: Sequence[PluginRecord]) -> None:
        self.pool = small_pool()
        self.faults: list[str] = []
        longest = max((len(record.value) for record in records), default=0)
        self._first = [
            self.pool.get_buffer(size)
            for size in BufferSize
            if size <= BufferSize.MEDIUM or longest > BufferSize.MEDIUM // 2
        ]

    def __enter__(self) -> WatchedPool:
        return self

    def __exit__(self, *_: object) -> None:
        for buffer in self._first:
            with suppress(PluginMemoryError):  # it is among the violations
                self.pool.return_buffer(buffer)
        self.pool.close()
        for fault in self.pool.violations:
            # Nobody but the plugin writes, so behind other buffers it wrote in front of its own.
            is_behind = " for output of the plugin " in fault
            self.faults.append(fault.partition("; it was taken")[0] if is_behind else _FRONT)


def small_pool() -> MemoryPool:
    """A pool that finds misuse."""
    config = MemoryPoolConfig(
        max_tiny_buffers=64,
        max_small_buffers=32,
        max_medium_buffers=8,
        max_large_buffers=4,
        max_huge_buffers=2,
        cleanup_interval=float("inf"),
    )
    return MemoryPool(config, debug=True)


def fenced_pool(side: str) -> MemoryPool:
    """A pool for output whose loans touch a forbidden page, and are one themselves when returned.

    Parameters
    ----------
    side : str
        `BEHIND` or `IN_FRONT`: where that page is.
    """
    config = MemoryPoolConfig(
        max_tiny_buffers=0,
        max_small_buffers=0,
        max_medium_buffers=0,
        max_large_buffers=0,
        max_huge_buffers=0,
        cleanup_interval=float("inf"),
    )
    pool = MemoryPool(config, debug=True)
    pool._fence_loans(side == BEHIND)
    return pool
