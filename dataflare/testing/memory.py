"""Bytes with pages around them that nobody may touch.

A value lies at the very end of its pages, or at their very beginning; the next page is one that the
processor refuses. The rest of its own pages is filled with a pattern, to see whether it was written
to.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence

from dataflare._backend import PluginRecord, RecordBatch

__all__ = ["BEHIND", "IN_FRONT", "GuardedBatch", "GuardedBytes"]

BEHIND, IN_FRONT = "behind", "in front of"
_PATTERN = b"\xa5"
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class GuardedBytes:
    """A copy of some bytes with a forbidden page on either side.

    Parameters
    ----------
    data : bytes-like
    side : str
        `BEHIND` or `IN_FRONT`: where the forbidden page touches the bytes.

    Attributes
    ----------
    view : memoryview
        The bytes. Writable, as far as the processor is concerned.
    """

    def __init__(self, data: bytes | memoryview, side: str) -> None:
        page = mmap.PAGESIZE
        size = len(data)
        room = max(-(-size // page), 1) * page
        self._pages = mmap.mmap(-1, room + 2 * page)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages)) + page
        self._room = room
        self._start = page + (room - size if side == BEHIND else 0)
        self._stop = self._start + size
        self._pages[page : page + room] = _PATTERN * room
        self._pages[self._start : self._stop] = bytes(data)
        self.view = memoryview(self._pages)[self._start : self._stop]
        _forbid(self._address - page, page)
        _forbid(self._address + room, page)

    @property
    def margin_is_intact(self) -> bool:
        """bool: Whether nobody wrote to what is around the bytes."""
        page = mmap.PAGESIZE
        margin = self._pages[page : self._start] + self._pages[self._stop : page + self._room]
        return margin.count(_PATTERN) == len(margin)

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
        `BEHIND` or `IN_FRONT`.

    Attributes
    ----------
    batch : RecordBatch
    """

    def __init__(self, records: Sequence[PluginRecord], side: str) -> None:
        self._values = [GuardedBytes(record.value, side) for record in records]
        self._keys = [
            None if record.key is None else GuardedBytes(record.key, side) for record in records
        ]
        self.batch = RecordBatch.from_values(
            [value.view for value in self._values],
            [None if key is None else key.view for key in self._keys],
            timestamps=[record.timestamp for record in records],
            partitions=[record.partition for record in records],
            offsets=[record.offset for record in records],
            metadata=[record.metadata for record in records],
        )

    def _all(self) -> Iterable[GuardedBytes]:
        yield from self._values
        yield from (key for key in self._keys if key is not None)

    def written_at(self) -> int | None:
        """The first record around which somebody wrote, or None."""
        for index, (value, key) in enumerate(zip(self._values, self._keys, strict=True)):
            if not value.margin_is_intact or not (key is None or key.margin_is_intact):
                return index
        return None

    def forbid(self) -> None:
        """From now on nobody may touch the records."""
        for each in self._all():
            each.forbid()
