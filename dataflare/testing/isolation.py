"""Work in a child process, so that a crash is an answer and not the end.

The child is forked: it has the plugin as it is, which need not be importable or picklable. It comes
back with what JSON can say.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

__all__ = ["Death", "Progress", "in_child"]

_HEADER = struct.Struct("=Q")


@dataclass(frozen=True)
class Death:
    """How a child ended that was to give an answer.

    Attributes
    ----------
    sentence : str
        What ended it.
    hung : bool
        Whether it was ended because it took too long.
    """

    sentence: str
    hung: bool = False


class Progress:
    """A number that a child writes and its parent reads."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEADER.size)

    @property
    def at(self) -> int:
        """int: The last number that was written, 0 before the first."""
        number: int = _HEADER.unpack(self._memory[:])[0]
        return number

    @at.setter
    def at(self, number: int) -> None:
        self._memory[:] = _HEADER.pack(number)


def in_child(work: Callable[[], object], timeout: float) -> object:
    """Call a function in a child process.

    Parameters
    ----------
    work : callable
        Returns what JSON can say.
    timeout : float
        Seconds after which the child is ended.

    Returns
    -------
    object
        What it returned, or a `Death`.
    """
    for stream in (sys.stdout, sys.stderr):  # what is unwritten would be written twice
        if stream is not None:
            stream.flush()
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as complaints:
        with warnings.catch_warnings():
            # Of a process with threads. Those of the library are made for it, and those of others
            # are not needed by what the child does.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _answer(work, writer, complaints.fileno())
        os.close(writer)
        try:
            answer = _hear(child, reader, timeout)
        finally:
            os.close(reader)
        complaints.seek(0)
        return _told(answer, complaints, timeout)


def _answer(work: Callable[[], object], writer: int, complaints: int) -> NoReturn:
    """What the child does."""
    status = 1
    try:
        faulthandler.disable()  # a crash is expected
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        os.dup2(complaints, 2)
        answer = json.dumps(work()).encode()
        with open(writer, "wb") as pipe:
            pipe.write(_HEADER.pack(len(answer)) + answer)
        status = 0
    except BaseException:
        with suppress(OSError):
            os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)


def _hear(child: int, reader: int, timeout: float) -> bytes | int | None:
    """What the child says, or its exit code, or None if it took too long; it is gone afterwards."""
    try:
        heard = _read(reader, time.monotonic() + timeout)
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if heard is None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return heard if heard is None or _is_complete(heard) else code


def _read(reader: int, until: float) -> bytes | None:
    """What comes out of a pipe before its end; None if it does not end in time."""
    heard = b""
    while not _is_complete(heard):
        ready, _, _ = select.select([reader], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        heard += piece
    return heard


def _is_complete(heard: bytes) -> bool:
    return len(heard) >= _HEADER.size and (
        len(heard) - _HEADER.size >= _HEADER.unpack(heard[: _HEADER.size])[0]
    )


def _told(answer: bytes | int | None, complaints: BinaryIO, timeout: float) -> object:
    """The answer, or what became of the child; what it wrote to standard error is not lost."""
    if isinstance(answer, bytes):
        sys.stderr.write(complaints.read().decode(errors="replace"))
        return json.loads(answer[_HEADER.size :])
    if answer is None:
        return Death(f"the plugin did not come to an end within {timeout:g} s", hung=True)
    how = signal.Signals(-answer).name if answer < 0 else f"exit({answer})"
    last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    said = f" ({last[0][:100]})" if last else ""
    return Death(f"the plugin ended the process by {how}{said}")
