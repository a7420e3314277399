"""Quantities as a reader wants them: three digits and a unit."""

from __future__ import annotations

__all__ = ["counted", "duration", "short", "size"]

_SIZES = ("B", "kB", "MB", "GB", "TB")
_PREFIXES = ("", "k", "M", "G", "T")


def _scaled(number: float, units: tuple[str, ...]) -> tuple[float, str]:
    unit = 0
    while abs(number) >= 999.5 and unit < len(units) - 1:
        number /= 1000
        unit += 1
    return number, units[unit]


def size(count: float) -> str:
    """Bytes, such as ``2.47 kB``."""
    number, unit = _scaled(count, _SIZES)
    return f"{number:.3g} {unit}"


def short(number: float) -> str:
    """A number for little space, such as ``12.5k``."""
    scaled, prefix = _scaled(number, _PREFIXES)
    return f"{scaled:.3g}{prefix}"


def counted(count: int, noun: str) -> str:
    """A number of things, such as ``1 record`` and ``2 records``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Seconds, such as ``1.5 ms``; from nanoseconds to as many seconds as it takes."""
    if seconds == 0:
        return "0 s"
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
