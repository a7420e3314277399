"""Where records go that failed for good: a callable, a file, or another plugin."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from dataflare._backend import DataFlarePlugin, MemoryPool, PluginRecord, PluginRunner
from dataflare.errors import PluginError
from dataflare.loading import make_plugin
from dataflare.recovery import SHARED_SLOTS

__all__ = ["NAMES_PLUGIN", "DeadLetter", "DeadLetterSink"]

NAMES_PLUGIN = "plugin:"
"""What a string begins with that names a plugin for dead letters, and not a file."""

_logger = logging.getLogger("dataflare.recovery")


@dataclass(frozen=True)
class DeadLetter:
    """A record that failed for good.

    Attributes
    ----------
    plugin : str
        The name under which the plugin is registered.
    record : PluginRecord
    index : int
        Position in its batch; 0 for a record that was processed alone.
    error : PluginError
    attempts : int
        How often the plugin was called for it; 0 if the circuit was open.
    """

    plugin: str
    record: PluginRecord
    index: int
    error: PluginError
    attempts: int

    def to_json(self) -> str:
        """All of it as a line of JSON, without the line end.

        Bytes that are not UTF-8 are in ``record_base64`` and ``key_base64``.

        Returns
        -------
        str
        """
        letter: dict[str, object] = {
            "plugin": self.plugin,
            "index": self.index,
            **as_text("record", bytes(self.record.value)),
        }
        if self.record.key is not None:
            letter |= as_text("key", bytes(self.record.key))
        for name in ("timestamp", "partition", "offset"):
            if getattr(self.record, name):
                letter[name] = getattr(self.record, name)
        if self.record.metadata:
            letter["metadata"] = {str(key): entry for key, entry in self.record.metadata.items()}
        letter |= {
            "failed_in": self.error.plugin,
            "error": self.error.message,
            "code": self.error.code,
            "attempts": self.attempts,
        }
        return json.dumps(letter, default=str)


def as_text(name: str, value: bytes) -> dict[str, object]:
    """Bytes as an entry of JSON: text where they are UTF-8, else base64."""
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


class _Sink(Protocol):
    def deliver(self, letter: DeadLetter) -> None: ...
    def close(self) -> None: ...


class _CallableSink:
    def __init__(self, function: Callable[[DeadLetter], object]) -> None:
        self._function = function

    def deliver(self, letter: DeadLetter) -> None:
        self._function(letter)

    def close(self) -> None:
        pass


class _FileSink:
    """A line of JSON for each letter, appended to a file.

    Each line is handed to the operating system at once and whole, so that neither a crash nor a
    fork can lose or double it, and lines of several processes do not mix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        self._broken = _breaks_off(path)  # after a part of a line: that one is lost

    def deliver(self, letter: DeadLetter) -> None:
        line = letter.to_json().encode("utf-8", "backslashreplace") + b"\n"
        if self._broken:  # by a full disk, as a rule; the next letter is not part of that line
            line = b"\n" + line
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        finally:
            self._broken = written < len(line) and (written > 0 or self._broken)

    def close(self) -> None:
        self._file.close()


def _breaks_off(path: str | os.PathLike[str]) -> bool:
    """Whether the last line of a file has no end."""
    with suppress(OSError), open(path, "rb") as file:  # a pipe has no end to look at
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
    return False


class _PluginSink:
    """A plugin that gets the record, with what happened as metadata."""

    def __init__(self, plugin: DataFlarePlugin, pool: MemoryPool) -> None:
        self._runner = PluginRunner(
            (plugin,) * SHARED_SLOTS if plugin.thread_safe else (plugin,), pool
        )

    def deliver(self, letter: DeadLetter) -> None:
        record = letter.record
        story = {
            "dataflare.plugin": letter.plugin,
            "dataflare.index": letter.index,
            "dataflare.error": letter.error.message,
            "dataflare.attempts": letter.attempts,
        }
        self._runner.attempt_record(
            PluginRecord(
                record.value,
                key=record.key,
                metadata={**(record.metadata or {}), **story},
                timestamp=record.timestamp,
                partition=record.partition,
                offset=record.offset,
            )
        )

    def close(self) -> None:
        pass

    def after_fork(self) -> None:
        self._runner.after_fork()


class DeadLetterSink:
    """Where records go that failed for good.

    Parameters
    ----------
    target : callable, path, DataFlarePlugin, or str
        A callable gets each `DeadLetter`, from the thread whose record failed. A file gets a line
        of JSON for each. A plugin gets the record, with ``dataflare.plugin``, ``dataflare.index``,
        ``dataflare.error`` and ``dataflare.attempts`` in its metadata. A string is the path of a
        file; but ``"plugin:NAME"`` is the plugin that NAME stands for, with arguments or as a
        place, if it is to be written so. The file of that name is ``"./plugin:NAME"``.
    pool : MemoryPool
        Where a plugin's output is written.

    Raises
    ------
    TypeError
        It is none of these.
    PluginError
        The plugin that is named cannot be used.
    OSError
        The file cannot be written.
    """

    # No lock is held while the target is called: it may use the manager, and fail at a record.

    def __init__(self, target: object, pool: MemoryPool) -> None:
        if isinstance(target, str) and target.startswith(NAMES_PLUGIN):
            target = make_plugin(target.removeprefix(NAMES_PLUGIN))
        self.plugin = target if isinstance(target, DataFlarePlugin) else None
        self._sink: _Sink
        if isinstance(target, DataFlarePlugin):
            self._sink = _PluginSink(target, pool)
        elif isinstance(target, str | os.PathLike):
            self._sink = _FileSink(target)
        elif isinstance(target, type) and issubclass(target, DataFlarePlugin):
            raise TypeError(
                "dead letters go to a plugin, not to a class of plugins: give an instance"
            )
        elif callable(target):
            self._sink = _CallableSink(target)
        else:
            raise TypeError(
                f"dead letters go to a callable, a path or a plugin, not {type(target).__name__}"
            )

    def deliver(
        self, plugin: str, record: PluginRecord, index: int, error: PluginError, attempts: int
    ) -> bool:
        """Hand a letter over.

        Parameters
        ----------
        plugin, record, index, error, attempts
            As of `DeadLetter`.

        Returns
        -------
        bool
            Whether it was accepted; why it was not is in the log.
        """
        try:
            self._sink.deliver(DeadLetter(plugin, record, index, error, attempts))
        except Exception:
            _logger.exception("a dead letter of the plugin %r was not accepted", plugin)
            return False
        return True

    def close(self) -> None:
        """No more letters will come."""
        self._sink.close()

    def after_fork(self) -> None:
        """In the child of a fork, where the calls of other threads are gone."""
        if isinstance(self._sink, _PluginSink):
            self._sink.after_fork()
