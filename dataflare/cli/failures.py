"""Records that failed: where they stood, what they were, and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

from dataflare._backend import BatchResult
from dataflare.errors import PluginError
from dataflare.files import LineBlock

__all__ = ["Failure", "failures"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A record that failed."""

    name: str
    line: int
    offset: int
    record: bytes
    error: PluginError

    def __str__(self) -> str:
        plugin = f"{self.error.plugin}: " if self.error.plugin else ""
        return f"{self.name}, line {self.line}, byte {self.offset}: {plugin}{self.error}"

    def letter(self) -> bytes:
        """A line of JSON that says all of it."""
        letter: dict[str, object] = {"input": self.name, "line": self.line, "offset": self.offset}
        try:
            letter["record"] = self.record.decode()
        except UnicodeDecodeError:
            letter["record_base64"] = base64.b64encode(self.record).decode()
        letter |= {
            "plugin": self.error.plugin,
            "error": self.error.message,
            "code": self.error.code,
        }
        return json.dumps(letter).encode() + b"\n"


def failures(name: str, block: LineBlock, start: int, result: BatchResult) -> Iterator[Failure]:
    """What failed in a batch that begins at record `start` of the block."""
    indices = [start + index for index, _ in result.errors]
    for index, offset, (_, error) in zip(
        indices, block.offsets(indices), result.errors, strict=True
    ):
        yield Failure(name, block.line + index, offset, bytes(block.batch[index].value), error)
