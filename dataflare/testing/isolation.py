"""Work in a child process, so that a crash is an answer and not the end.

The child is forked: it has the plugin as it is, which need not be importable or picklable. It comes
back with what JSON can say, because classes may mean something else by then.
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
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

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
    with warnings.catch_warnings():
        # Of a process with threads. The library's own are made for it, and those of others are not
        # asked for anything in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _answer(work, writer)
    os.close(writer)
    try:
        return _hear(child, reader, timeout)
    finally:
        os.close(reader)


def _answer(work: Callable[[], object], writer: int) -> NoReturn:
    status = 1
    try:
        faulthandler.disable()  # a crash is expected
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        answer = json.dumps(work()).encode()
        with open(writer, "wb") as pipe:
            pipe.write(_HEADER.pack(len(answer)) + answer)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # nobody reads it
                status = status or 1
        os._exit(status)


def _hear(child: int, reader: int, timeout: float) -> object:
    """The child's answer; the child is gone afterwards."""
    try:
        heard = _read(reader, time.monotonic() + timeout)
    except BaseException:  # Ctrl-C
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if heard is None:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if heard is None:
        return Death(f"the plugin did not come to an end within {timeout:g} s", hung=True)
    return json.loads(heard[_HEADER.size :]) if _complete(heard) else Death(_how(code))


def _read(reader: int, until: float) -> bytes | None:
    """What comes out of a pipe before its end; None if it does not end in time."""
    heard = b""
    while not _complete(heard):
        ready, _, _ = select.select([reader], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        heard += piece
    return heard


def _complete(heard: bytes) -> bool:
    return len(heard) >= _HEADER.size and (
        len(heard) - _HEADER.size >= _HEADER.unpack(heard[: _HEADER.size])[0]
    )


def _how(code: int) -> str:
    if code >= 0:
        return f"the plugin ended the process with the status {code}"
    return f"the plugin ended the process by {signal.Signals(-code).name}"

