"""Debug mode's book of a memory pool: who has which buffer, and what was found wrong.

Both backends keep it in the same way, so that both report the same sentences. They look at the
memory themselves. An operation of the pool first puts everything in its place and writes to the
book; then, without a lock, it lets the book speak (`Ledger.flush`), because a handler of a log may
do anything.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from dataflare.types import Loan

__all__ = ["Entry", "Ledger", "open_ledger"]

_logger = logging.getLogger("dataflare.pool")
_KEPT = 1000  # violations, the latest ones
_PACKAGE = __name__.partition(".")[0]
# Their frames say nothing about who called `get_buffer`.
_POOLS = {__name__, f"{_PACKAGE}._compiled.pool", f"{_PACKAGE}._pure.pool"}


@dataclass(slots=True)
class Entry:
    """One loan. `purpose` goes into the sentence behind the size: ``" of ..."``, or nothing."""

    size: int
    place: str
    since: float
    kind: str
    purpose: str = ""

    def __str__(self) -> str:
        return f"{self.size} byte{'' if self.size == 1 else 's'}{self.purpose}"


class Ledger:
    """The loans of one pool, and what was done wrong with them.

    Attributes
    ----------
    out : dict
        The loans that are out, by where they are, in the order in which they were taken.
    homes : dict
        The last loan of every slab that came back, by where it is.
    """

    # Every change is one operation on a dict or a deque, so that threads may come in between.

    def __init__(self) -> None:
        self.out: dict[Hashable, Entry] = {}
        self.homes: dict[Hashable, Entry] = {}
        self._violations: deque[str] = deque(maxlen=_KEPT)
        self._unsaid: deque[tuple[int, str, tuple[object, ...]]] = deque()

    @property
    def violations(self) -> tuple[str, ...]:
        return tuple(self._violations.copy())

    def entry(self, size: int) -> Entry:
        """A loan that is about to be taken by whoever called the pool."""
        place, kind = _place()
        return Entry(size, place, time.monotonic(), kind)

    def mark_batch(self, where: Hashable, purpose: str | None) -> None:
        """The loan there is memory that the library took for records or for a result."""
        entry = self.out[where]
        entry.kind = "batch"
        if purpose is not None:
            entry.purpose = f" for {purpose}"

    def lent(self, entry: Entry) -> None:
        self.step("lent %s, at %s", entry, entry.place)

    def returned(self, entry: Entry | None, overrun: int) -> str | None:
        """A loan came back. Its guard was overwritten at the offset `overrun`, if not negative."""
        if entry is None:  # it was not entered: there was no memory to do so
            return None
        self.step("took %s back, taken at %s", entry, entry.place)
        if overrun < 0:
            return None
        sentence = (
            f"a buffer of {entry} was written past its end, first at offset {overrun}; "
            f"it was taken at {entry.place}"
        )
        self._violations.append(sentence)
        return sentence

    def stale(self, where: Hashable, offset: int) -> None:
        """A slab was written to after it came back."""
        entry = self.homes.get(where)
        if entry is None:  # it was not entered: there was no memory to do so
            return
        sentence = (
            f"a buffer of {entry} was written to after its return, first at offset {offset}; "
            f"it was taken at {entry.place}"
        )
        self._violations.append(sentence)
        self.complain(sentence)

    def complain(self, sentence: str) -> None:
        """Say what nobody can be told by an exception."""
        self._unsaid.append((logging.ERROR, "%s", (sentence,)))

    def step(self, message: str, *arguments: object) -> None:
        """Say what the pool did."""
        if _logger.isEnabledFor(logging.DEBUG):
            self._unsaid.append((logging.DEBUG, message, arguments))

    def flush(self) -> None:
        """Log what there is to say. Needs no lock, and must be called with none held."""
        while self._unsaid:
            try:
                level, message, arguments = self._unsaid.popleft()
            except IndexError:  # another thread said it
                return
            _logger.log(level, message, *arguments)

    def loans(self) -> list[Loan]:
        """What is out, the oldest first."""
        now = time.monotonic()
        return [
            Loan(entry.size, entry.place, now - entry.since, entry.kind)
            for entry in self.out.copy().values()
        ]

    def closed(self) -> None:
        """Say what was not returned. What a batch holds goes back by itself, with the batch."""
        for entry in self.out.copy().values():
            if entry.kind == "buffer":
                age = time.monotonic() - entry.since
                message = "a buffer of %s was not returned; it was taken at %s, %.1f s ago"
                self._unsaid.append((logging.WARNING, message, (entry, entry.place, age)))


def open_ledger(debug: bool) -> Ledger | None:
    """A ledger in debug mode, else None.

    Raises
    ------
    TypeError
        `debug` is neither True nor False.
    """
    if not isinstance(debug, bool):
        raise TypeError(f"debug must be True or False, not {debug!r}")
    return Ledger() if debug else None


def _place() -> tuple[str, str]:
    """Where outside the package the current call comes from, and the kind of a loan made there.

    A string and no frame is kept: a frame would keep alive whatever its function holds.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _POOLS:
        frame = frame.f_back
    kind = "batch" if _is_ours(frame.f_globals.get("__name__")) else "buffer"
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}", kind


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and module.partition(".")[0] == _PACKAGE
