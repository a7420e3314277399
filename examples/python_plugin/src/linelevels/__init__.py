"""Plugins that know the levels of log lines."""

import re

from dataflare import DataFlarePlugin, PluginRecord, PluginResult, map_plugin

__all__ = ["AtLeast", "without_level"]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LEVEL = re.compile(rb"\b(%s)\b ?" % "|".join(LEVELS).encode())


class AtLeast(DataFlarePlugin):
    """Keeps the lines of a level and of those above it; a line without one fails."""

    thread_safe = True  # nothing is written to it after it was made

    def __init__(self, level: str) -> None:
        if level not in LEVELS:  # who named the plugin is told, before the first record
            raise ValueError(f"{level!r} is no level: there are {', '.join(LEVELS)}")
        self.kept = {name.encode() for name in LEVELS[LEVELS.index(level) :]}

    def process(self, record: PluginRecord) -> PluginResult:
        """Say whether the line goes on."""
        found = _LEVEL.search(record.value)
        if found is None:
            raise ValueError("the line has no level")
        return PluginResult.skip() if found[1] in self.kept else PluginResult.filtered()


@map_plugin(thread_safe=True)
def without_level(value: bytes) -> bytes:
    """Takes the level out of a line."""
    return _LEVEL.sub(b"", value, count=1)
