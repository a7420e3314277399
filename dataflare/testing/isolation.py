"""Work in a child process, so that a crash is an answer and not the end.

The child is forked: it has the plugin as it is, which need not be importable or picklable. It comes
back with what JSON can say. It leads a session of its own, and what the plugin started in it ends
with it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
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
from typing import IO, NoReturn

__all__ = ["Death", "Progress", "in_child"]

_HEADER = struct.Struct("=Q")
_LAST = 1 << 12  # bytes of what a child wrote that are read for its last line
_PAUSE = 0.02  # seconds between two looks at a child that says nothing
_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it


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
    _flush()  # what is unwritten would be written twice
    reader, writer = map(_no_standard_stream, os.pipe())
    with tempfile.TemporaryFile() as complaints:
        parent = os.getpid()
        with warnings.catch_warnings():
            # Of a process with threads. Those of the library are made for it, and those of others
            # are not needed by what the child does.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = _Child(os.fork())
        if child.pid == 0:
            _answer(work, writer, complaints.fileno(), parent)
        try:
            os.close(writer)
            answer = _hear(child, reader, time.monotonic() + timeout)
        finally:  # Ctrl-C, too
            child.end()
            os.close(reader)
        if answer is not None:
            complaints.seek(0)
            # Whoever has closed standard error does not want to know.
            with suppress(AttributeError, OSError, ValueError):
                sys.stderr.write(complaints.read().decode(errors="replace"))
            return json.loads(answer)
        if child.was_ended:
            return Death(f"the plugin did not come to an end within {timeout:g} s", hung=True)
        return Death(f"the plugin ended the process{child.how}{_last_line(complaints)}")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # there may be none, or a closed one, or one of the plugin's
            stream.flush()


def _no_standard_stream(descriptor: int) -> int:
    """The descriptor, or another one if the number is that of a stream that was closed."""
    if descriptor > 2:
        return descriptor
    other = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return other


def _answer(work: Callable[[], object], writer: int, complaints: int, parent: int) -> NoReturn:
    """What the child does."""
    status = 1
    try:
        os.setsid()
        _end_with(parent)
        faulthandler.disable()  # a crash is expected
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        for stream in (1, 2):
            os.dup2(complaints, stream)
        child = os.getpid()
        answer = json.dumps(work()).encode()
        _flush()  # after the answer there is no time
        if os.getpid() == child:  # a plugin that forks may have both go on
            with open(writer, "wb") as pipe:
                pipe.write(_HEADER.pack(len(answer)) + answer)
        status = 0
    except BaseException:
        _flush()
        with suppress(OSError):
            os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(status)


def _end_with(parent: int) -> None:
    """A session of its own outlives what ends the parent's, and would go on for ever."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


class _Child:
    """A child process, and what it started.

    Attributes
    ----------
    pid : int
    was_ended : bool
        Whether it had to be.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.was_ended = False
        self._is_gone = False
        self._code: int | None = None

    @property
    def is_gone(self) -> bool:
        """bool: Whether it has come to its end."""
        return self._is_gone or self._wait(os.WNOHANG)

    def _wait(self, flags: int) -> bool:
        try:
            pid, status = os.waitpid(self.pid, flags)
        except ChildProcessError:  # SIGCHLD is ignored, or somebody waits for all there are
            self._is_gone = True
        else:
            self._is_gone = pid == self.pid
            if self._is_gone:
                self._code = os.waitstatus_to_exitcode(status)
        return self._is_gone

    @property
    def how(self) -> str:
        """str: What its end was, once it is gone."""
        if self._code is None:
            return ", and the system does not say how"
        if self._code >= 0:
            return f" by exit({self._code})"
        try:
            return f" by {signal.Signals(-self._code).name}"
        except ValueError:  # most signals for real time have no name
            return f" by signal {-self._code}"

    def end(self) -> None:
        """End it, if it is there, and what is left of its session."""
        if not self.is_gone:
            self.was_ended = True
            os.kill(self.pid, signal.SIGKILL)  # it may not have come to its session
        with suppress(ProcessLookupError, PermissionError):  # on macOS of a child that is gone
            os.killpg(self.pid, signal.SIGKILL)
        if not self._is_gone:
            self._wait(0)


def _hear(child: _Child, reader: int, until: float) -> bytes | None:
    """What a child answers, or None if it is gone or its time over without an answer.

    The end of the pipe says neither that it is gone, since it may close all it has, nor the other
    way round, since what it started may hold the pipe.
    """
    ear = select.poll()  # select() fails with many descriptors
    ear.register(reader, select.POLLIN)
    heard, is_open, pause = b"", True, 0.001
    while len(heard) < _HEADER.size or len(heard) < _length(heard):
        is_gone = child.is_gone  # first, for it may answer and end in between
        if time.monotonic() >= until:
            return None
        if is_open and ear.poll(0 if is_gone else 1000 * _PAUSE):
            piece = os.read(reader, 1 << 16)
            heard += piece
            is_open = bool(piece)
        elif is_gone:
            return None
        elif not is_open:
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE)
    return heard[_HEADER.size : _length(heard)]


def _length(heard: bytes) -> int:
    """Of the whole answer."""
    size: int = _HEADER.unpack(heard[: _HEADER.size])[0]
    return _HEADER.size + size


def _last_line(complaints: IO[bytes]) -> str:
    """The last line that a child wrote, in brackets."""
    complaints.seek(max(complaints.seek(0, os.SEEK_END) - _LAST, 0))
    last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    return f" ({last[0][:100]})" if last else ""
