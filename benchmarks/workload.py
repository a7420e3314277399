"""The work that is measured: log lines of 59 bytes, one in ten of them an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from dataflare.plugins import Chain, Contains, Upper

LINES = 1_000_000
NEEDLE = b"ERROR"
JOBS = {
    "F": "keep the lines that contain ERROR",
    "U": "upper-case",
    "FU": "keep the lines that contain ERROR, upper-case them",
}
PLUGINS = {"F": Contains(NEEDLE), "U": Upper(), "FU": Chain(Contains(NEEDLE), Upper())}
"""The jobs as ours do them."""


def log_lines(count: int) -> list[bytes]:
    """The same lines at every call, the levels in random order.

    Parameters
    ----------
    count : int
        At most 10 million: from noon to midnight, a line in 4 ms.

    Returns
    -------
    list of bytes
        Without line ends.
    """
    random = Random(20261123).random
    return [
        (
            f"2026-11-23 {12 + i // 900_000:02}:{i // 15_000 % 60:02}:{i // 250 % 60:02}."
            f"{i % 250 * 4:03} {'ERROR' if random() < 0.1 else 'INFO '} "
            f"worker-{int(random() * 10)} request {1_000_000 + int(random() * 9_000_000)} done"
        ).encode()
        for i in range(count)
    ]


def answer(job: str, lines: list[bytes]) -> list[bytes]:
    """What a job must make of the lines."""
    if "F" in job:
        lines = [line for line in lines if NEEDLE in line]
    return [line.upper() for line in lines] if "U" in job else lines


def as_block(lines: list[bytes]) -> bytes:
    """The lines as they stand in a file."""
    return b"".join([line + b"\n" for line in lines])


def write_repeated(path: Path, block: bytes, times: int) -> None:
    """Write a block of lines several times in a row."""
    with path.open("wb") as file:
        for _ in range(times):
            file.write(block)


def is_repeated(path: Path, block: bytes, times: int) -> bool:
    """Whether that is what the file holds."""

    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(len(block)):
                yield piece

    return path.stat().st_size == times * len(block) and all(piece == block for piece in pieces())
