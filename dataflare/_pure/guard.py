"""The debug side of a memory pool: guards behind every loan, poison in every returned slab.

A loan's room is ``[size bytes | guard]``. In a slab the guard reaches to the end of its stride,
which in debug mode is longer than the slab, so that a request of exactly 256 bytes has one too.
"""

import itertools
import mmap
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from dataflare._ledger import Entry, Ledger

Memory = npt.NDArray[np.uint8]

POISON = 0xDD  # what a returned slab is full of
CANARY = 0xFD  # what stands behind the bytes that were asked for
FRESH = 0xCD  # what a loan is full of, until its borrower writes to it
MARGIN = 64  # bytes behind a loan that has no slab


def stride_of(size: int) -> int:
    """From slab to slab: with its guard too one begins at a page, or so many of them fill one."""
    return size + min(size, mmap.PAGESIZE)


def _first_other(memory: Memory, byte: int) -> int:
    """Where the first byte that is not `byte` stands, or -1."""
    others = memory != byte
    return int(others.argmax()) if others.any() else -1


class Guard:
    """What a pool asks in debug mode. Needs the pool's lock, as the pool's own state does.

    Invariant: `_rooms` and the ledger's `out` have every loan of the pool, by where it is.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._rooms: dict[Hashable, Memory] = {}
        self._tickets = itertools.count(1)

    def ticket(self) -> int:
        """A number for a loan that has no slab: negative, and no other has it."""
        return -next(self._tickets)

    def lend(self, where: Hashable, room: Memory, entry: Entry, poisoned: bool) -> None:
        """Get a room ready, and write down who takes it."""
        stale = _first_other(room, POISON) if poisoned else -1
        room[: entry.size] = FRESH
        room[entry.size :] = CANARY
        self._rooms[where] = room
        self.ledger.out[where] = entry
        if stale >= 0:
            self.ledger.stale(where, stale)
        self.ledger.lent(entry)

    def take_back(self, where: Hashable, pooled: bool) -> str | None:
        """Look at a room whose loan ends, and poison it; returns what is wrong with it, if so."""
        entry = self.ledger.out.pop(where)
        room = self._rooms.pop(where)
        overrun = _first_other(room[entry.size :], CANARY)
        room[:] = POISON
        if pooled:
            self.ledger.homes[where] = entry
        return self.ledger.returned(entry, overrun if overrun < 0 else entry.size + overrun)

    def inspect(self, where: Hashable, room: Memory) -> None:
        """Look at a poisoned room, and make it whole."""
        stale = _first_other(room, POISON)
        if stale >= 0:
            room[:] = POISON
            self.ledger.stale(where, stale)
