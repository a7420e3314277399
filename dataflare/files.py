"""Lines in, lines out: inputs as batches of their lines, outputs that appear when complete.

Design
------
a. An input is read in blocks into pool buffers, and a block is cut behind its last newline; what is
   left begins the next one. What a pipe has is handed on at once, without waiting for more.
b. An output is written under a temporary name beside its own and renamed at the end. Devices and
   pipes are written directly.
c. What the system refuses is an `OSError` whose `strerror` is the whole sentence.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from types import TracebackType

from dataflare._backend import MemoryPool, RecordBatch

__all__ = ["BLOCK_SIZE", "STANDARD", "InputFile", "LineBlock", "OutputFile"]

STANDARD = "-"
"""The name of standard input and standard output."""

BLOCK_SIZE = 1 << 20
"""Bytes read at a time."""

# Standard output may have been opened to append: opening it again would write from its beginning.
_STANDARD_OUTPUTS = {STANDARD: 1, "/dev/stdout": 1, "/dev/stderr": 2}
_SEARCH_STEP = 4096
_STEP_OF_WAITING = 100  # milliseconds
_LONGEST_NAME = 255


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines of an input.

    Attributes
    ----------
    batch : RecordBatch
        A record per line.
    memory : memoryview
        The lines as they stand in the input.
    newline : bytes
        What ends the first line of the input: ``b"\\n"`` or ``b"\\r\\n"``.
    line : int
        Number of the first line here, counted from 1.
    offset : int
        Where that begins in the input, in bytes.
    """

    batch: RecordBatch
    memory: memoryview
    newline: bytes
    line: int
    offset: int

    def offsets(self, indices: Iterable[int]) -> Iterator[int]:
        """Where some of the records begin in the input.

        Parameters
        ----------
        indices : iterable of int
            Ascending.

        Returns
        -------
        iterator of int
            In bytes.
        """
        # Cut at bare newlines, lines show their true sizes even where line ends are mixed.
        lines = RecordBatch.from_lines(self.memory, newline=b"\n")
        offset, last = self.offset, 0
        for index in indices:
            offset += lines[last:index].nbytes + index - last
            last = index
            yield offset


class InputFile:
    """A file whose lines are read in blocks.

    Parameters
    ----------
    path : str
        A file, a device or pipe, or ``"-"`` for standard input.

    Attributes
    ----------
    path : str
    name : str
        For messages.
    status : os.stat_result
    size : int or None
        Bytes; None of what is not a regular file.

    Raises
    ------
    OSError
        It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "standard input" if path == STANDARD else path
        with _sentence("read", self.name):
            self.status = os.stat(0 if path == STANDARD else path)
            if stat.S_ISDIR(self.status.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path != STANDARD and not os.access(path, os.R_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    @property
    def size(self) -> int | None:
        return self.status.st_size if stat.S_ISREG(self.status.st_mode) else None

    def blocks(
        self,
        pool: MemoryPool,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
        block_size: int = BLOCK_SIZE,
    ) -> Iterator[LineBlock]:
        """Read the file from its beginning to its end.

        Parameters
        ----------
        pool : MemoryPool
            Where the blocks come from.
        waiting : callable
            Makes a context in which there is only a wait: for a writer of a named pipe, for input.
        block_size : int
            Bytes; a block grows when a line is longer.

        Returns
        -------
        iterator of LineBlock
        """
        newline = None
        line, offset = 1, 0
        for memory in self._read(pool, waiting, block_size):
            if newline is None:
                newline = _first_newline(memory)
            batch = RecordBatch.from_lines(memory, newline=newline, pool=pool)
            yield LineBlock(batch, memory, newline, line, offset)
            line += len(batch)
            offset += len(memory)

    def _open(self) -> FileIO:
        with _sentence("read", self.name):
            if self.path == STANDARD:
                return open(0, "rb", buffering=0, closefd=False)
            return open(self.path, "rb", buffering=0)

    def _read(
        self,
        pool: MemoryPool,
        waiting: Callable[[], AbstractContextManager[None]],
        block_size: int,
    ) -> Iterator[memoryview]:
        """Pieces of the file that end with a newline, or with the file."""
        rest = memoryview(b"")
        ended = False
        with waiting():
            opened = self._open()
        with opened as file:
            wait = _waiter(file, self.status)
            while not ended:
                memory = memoryview(pool.get_buffer(max(block_size, 2 * len(rest))))
                memory[: len(rest)] = rest
                filled, cut = len(rest), 0
                while cut == 0 and filled < len(memory) and not ended:
                    with waiting():
                        wait()
                    with _sentence("read", self.name):
                        count = os.readv(file.fileno(), [memory[filled:]])
                    ended = count == 0
                    cut = filled if ended else _last_line_end(memory, filled, filled + count)
                    filled += count
                if cut > 0:
                    yield memory[:cut]
                rest = memory[cut:filled]


def _waiter(file: FileIO, status: os.stat_result) -> Callable[[], None]:
    """What waits until a file can be read; of a regular file, nothing.

    In steps: a signal that arrives just before a thread goes to sleep in a read does not wake it,
    and its handler would have to wait for the next input.
    """
    if stat.S_ISREG(status.st_mode):
        return lambda: None
    poll = select.poll()
    poll.register(file, select.POLLIN)

    def wait() -> None:
        while not poll.poll(_STEP_OF_WAITING):
            pass

    return wait


def _last_line_end(memory: memoryview, start: int, stop: int) -> int:
    """Where the last line that ends between `start` and `stop` does so, or 0."""
    while start < stop:
        step = max(stop - _SEARCH_STEP, start)
        found = bytes(memory[step:stop]).rfind(b"\n")
        if found >= 0:
            return step + found + 1
        stop = step
    return 0


def _first_newline(memory: memoryview) -> bytes:
    found = re.search(b"\n", memory)
    end = 0 if found is None else found.start()
    return b"\r\n" if end > 0 and memory[end - 1] == ord("\r") else b"\n"


class OutputFile:
    """A file that appears under its name once it is complete.

    As a context manager it completes the file, or, after an exception, keeps what was written so
    far under another name.

    Parameters
    ----------
    path : str
        A file, which is replaced if it exists and keeps its permissions; a device or pipe, which is
        written directly; or ``"-"`` for standard output.

    Attributes
    ----------
    name : str
        For messages.
    size : int
        Bytes written so far.
    target : str or None
        The file that is replaced at the end; None if it is written directly.
    kept : str or None
        Where the incomplete file is, after an exception.

    Raises
    ------
    OSError
        It cannot be written.
    """

    def __init__(self, path: str) -> None:
        if not path:
            raise OSError(errno.ENOENT, "the name of the output is empty")
        self.name = "standard output" if path == STANDARD else path
        self.size = 0
        self.kept: str | None = None
        self.target: str | None = None
        self._partial: str | None = None
        with _sentence("write", self.name):
            self._fd = self._open(path)

    def _open(self, path: str) -> int:
        if path in _STANDARD_OUTPUTS:
            return os.dup(_STANDARD_OUTPUTS[path])
        if not os.path.basename(path):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            mode = None
        if path.startswith("/dev/fd/") or not (mode is None or stat.S_ISREG(mode)):
            return os.open(path, os.O_WRONLY | os.O_APPEND)
        if mode is not None and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        target = os.path.realpath(path)  # of a link, what it leads to is replaced
        directory = os.path.dirname(target)
        if not os.path.isdir(directory):
            raise OSError(errno.ENOENT, f"there is no directory {directory}")
        ending = os.fsencode(f".{os.urandom(4).hex()}.partial")
        # Names are limited in length; what does not fit is cut off.
        name = os.fsencode(os.path.basename(target))[: _LONGEST_NAME - len(ending)] + ending
        partial = os.path.join(directory, os.fsdecode(name))
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if mode is not None:
            os.fchmod(fd, stat.S_IMODE(mode))
        self.target, self._partial = target, partial
        return fd

    def would_overwrite(self, other: OutputFile) -> bool:
        """Whether both write to one file, of which only this one's or the other's would be left."""
        if self.target is None or other.target is None:
            return (self.target is not other.target) and (
                self.is_file(os.fstat(other._fd)) or other.is_file(os.fstat(self._fd))
            )
        return self.target == other.target

    def is_file(self, status: os.stat_result) -> bool:
        """Whether `status` is that of the regular file that is written, or will be replaced."""
        if not stat.S_ISREG(status.st_mode):
            return False
        if self.target is None:
            return os.path.samestat(status, os.fstat(self._fd))
        return os.path.exists(self.target) and os.path.samestat(status, os.stat(self.target))

    def is_terminal(self) -> bool:
        """Whether somebody reads along."""
        return os.isatty(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`.

        Raises
        ------
        OSError
            The device is full, the reader of the pipe is gone, ...
        """
        rest = memoryview(data)
        with _sentence("write", self.name):
            while rest:
                count = os.write(self._fd, rest)
                self.size += count
                rest = rest[count:]

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with _sentence("write", self.name):
                os.close(self._fd)
                if self.target is None or self._partial is None:
                    return
                if kind is None:
                    os.replace(self._partial, self.target)
                elif self.size == 0:
                    os.unlink(self._partial)
                else:
                    self.kept = self._partial
        except BaseException:
            if self._partial is not None and os.path.exists(self._partial):
                self.kept = self._partial
            raise


@contextmanager
def _sentence(action: str, name: str) -> Iterator[None]:
    """Let an `OSError` say what could not be done with which file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot {action} {name}: {error.strerror}") from error
