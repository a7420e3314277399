"""Bytes with pages around them that nobody may touch.

A value lies at the very end of its pages, or at their very beginning; the next page is one that the
processor refuses: whoever touches it dies of it. Output goes to a pool that looks after its
buffers itself, or to one whose loans lie like the values.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress

from dataflare._backend import MemoryPool, PluginRecord, RecordBatch
from dataflare.config import MemoryPoolConfig
from dataflare.errors import PluginMemoryError
from dataflare.types import BufferSize

__all__ = [
    "BEHIND",
    "IN_FRONT",
    "MIDDLE",
    "GuardedBatch",
    "GuardedBytes",
    "WatchedPool",
    "fenced_pool",
    "small_pool",
]

BEHIND, IN_FRONT, MIDDLE = "behind", "in front of", "in the middle"
_SLACK = 256
_FRONT = "output was written in front of what was reserved"
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class GuardedBytes:
    """A copy of some bytes with a forbidden page on either side.

    Parameters
    ----------
    data : bytes-like
    side : str
        `BEHIND` or `IN_FRONT`: where the forbidden page touches the bytes. With `MIDDLE` there is
        some room on both sides.

    Attributes
    ----------
    view : memoryview
        The bytes; as far as the processor is concerned, they can be written to.
    """

    def __init__(self, data: bytes | memoryview, side: str) -> None:
        page = mmap.PAGESIZE
        size = len(data)
        slack = _SLACK if side == MIDDLE else 0
        self._room = max(-(-(size + 2 * slack) // page), 1) * page
        pages = mmap.mmap(-1, self._room + 2 * page)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + page
        start = page + (slack if side != BEHIND else self._room - size)
        pages[start : start + size] = bytes(data)
        self.view = memoryview(pages)[start : start + size]
        _forbid(self._address - page, page)
        _forbid(self._address + self._room, page)

    def forbid(self) -> None:
        """From now on nobody may touch the bytes either."""
        _forbid(self._address, self._room)


def _forbid(address: int, size: int) -> None:
    if _libc.mprotect(address, size, _PROT_NONE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class GuardedBatch:
    """Records whose values and keys are guarded.

    Parameters
    ----------
    records : sequence of PluginRecord
    side : str
        As of `GuardedBytes`.

    Attributes
    ----------
    batch : RecordBatch
    records : list of PluginRecord
        The same: those that a batch makes of its own are copies.
    """

    def __init__(self, records: Sequence[PluginRecord], side: str) -> None:
        self._values = [GuardedBytes(record.value, side) for record in records]
        self._keys = [
            None if record.key is None else GuardedBytes(record.key, side) for record in records
        ]
        self.records = [
            PluginRecord(
                value.view,
                key=None if key is None else key.view,
                metadata=record.metadata,
                timestamp=record.timestamp,
                partition=record.partition,
                offset=record.offset,
            )
            for record, value, key in zip(records, self._values, self._keys, strict=True)
        ]
        self.batch = RecordBatch.from_values(
            [value.view for value in self._values],
            [None if key is None else key.view for key in self._keys],
            timestamps=[record.timestamp for record in records],
            partitions=[record.partition for record in records],
            offsets=[record.offset for record in records],
            metadata=[record.metadata for record in records],
        )

    def forbid(self) -> None:
        """From now on nobody may touch the records."""
        for each in (*self._values, *self._keys):
            if each is not None:
                each.forbid()


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
