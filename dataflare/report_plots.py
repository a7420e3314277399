"""Plots over time as SVG that takes its colours from the page it stands in.

Drawn by pygal, without its style sheet and scripts: one style sheet of the page serves all plots,
by pygal's class names, and colours are CSS variables there, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pygal
from pygal.style import Style

from dataflare import units

__all__ = ["Line", "Points", "plot", "stairs"]

Points = Sequence[tuple[float, float | None]]

WIDTH, HEIGHT = 420, 220
FONT_SIZE = 11
MOST_POINTS = 240
MOST_DOTS = 40
_LOOK = Style(font_family="sans-serif", label_font_size=FONT_SIZE, major_label_font_size=FONT_SIZE)
# Units of time, their lengths, and up to which time they serve.
_TIMES = (("ms", 1e-3, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0))
_DAY = ("d", 86400.0)


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Parameters
    ----------
    name : str
        For the legend.
    points : sequence of (float, float or None)
        Seconds and values, in the order of time; None where there is no value.
    """

    name: str
    points: Points


def plot(
    title: str,
    lines: Sequence[Line],
    value: Callable[[float], str] = units.short,
    *,
    top: float | None = None,
    levels: Sequence[str] = (),
) -> str:
    """Draw lines over time; all axes of values begin at 0.

    Parameters
    ----------
    title : str
        For those who cannot see it.
    lines : sequence of Line
    value : callable
        Writes a value at the axis; short.
    top : float, optional
        Where the axis of values ends, if that is known.
    levels : sequence of str, optional
        Names of the values 0, 1, ..., instead of figures.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    times = [time for line in lines for time, _ in line.points]
    first, last = min(times), max(times)
    unit, length = _time_unit(last)
    dots = len(times) <= MOST_DOTS * len(lines)
    chart = pygal.XY(
        width=WIDTH,
        height=HEIGHT,
        style=_LOOK,
        classes=["plot-svg"],
        js=[],
        no_prefix=True,
        disable_xml_declaration=True,
        margin=6,
        margin_right=16,
        spacing=8,
        show_legend=False,
        allow_interruptions=True,
        show_dots=dots,
        dots_size=2.5,
        include_x_axis=True,
        min_scale=3,
        max_scale=6,
        x_value_formatter=lambda time: f"{time:.3g} {unit}",
        value_formatter=value,
        xrange=(0 if first <= 0.2 * last or first == last else first / length, last / length or 1),
        range=(0, top or 1.05 * _highest(lines)),
        y_labels=[{"value": level, "label": name} for level, name in enumerate(levels)] or None,
    )
    for line in lines:
        points = line.points if dots else _alone(_thin(line.points))
        chart.add(line.name, [(time / length, value) for time, value in points])
    chart.add_xml_filter(lambda root: _clean(root, title))
    drawn: str = chart.render()
    return drawn


def stairs(points: Iterable[tuple[float, float]]) -> list[tuple[float, float | None]]:
    """Points of a line that stays at a value until the next one."""
    found: list[tuple[float, float | None]] = []
    for time, value in points:
        if found and found[-1][1] != value:
            found.append((time, found[-1][1]))
        found.append((time, value))
    return found


def _time_unit(last: float) -> tuple[str, float]:
    return next(((unit, length) for unit, length, limit in _TIMES if last < limit), _DAY)


def _highest(lines: Iterable[Line]) -> float:
    return max((y for line in lines for _, y in line.points if y is not None), default=0) or 1


def _thin(points: Points) -> Points:
    """So few points that each has its place, with the highest and the lowest of each stretch."""
    if len(points) <= MOST_POINTS:
        return points
    kept: list[tuple[float, float | None]] = []
    stretches = MOST_POINTS // 2
    for number in range(stretches):
        bounds = (len(points) * edge // stretches for edge in (number, number + 1))
        stretch = points[slice(*bounds)]
        seen = [index for index, (_, value) in enumerate(stretch) if value is not None]
        if not seen:
            kept.append(stretch[0])
            continue
        lowest = min(seen, key=lambda index: stretch[index][1] or 0)
        highest = max(seen, key=lambda index: stretch[index][1] or 0)
        kept += [stretch[index] for index in sorted({lowest, highest})]
    return kept


def _alone(points: Points) -> Points:
    """Let a point between two gaps begin and end a line, which is drawn as a dot."""
    found: list[tuple[float, float | None]] = []
    padded = [(0.0, None), *points, (0.0, None)]
    for (_, before), point, (_, after) in zip(padded, padded[1:], padded[2:], strict=False):
        found += [point] * (2 if before is None and after is None else 1)
    return found


def _clean(root: Any, title: str) -> Any:
    """Leave only what is drawn, named for those who cannot see it; values become tooltips."""
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or child.tag in ("defs", "desc"):
                if child.tag == "desc" and child.get("class") == "value":
                    tip = parent.makeelement("title", {})
                    tip.text = child.text
                    parent.append(tip)
                parent.remove(child)
            elif child.get("class") in ("titles", "plot tooltip-overlay", "plot text-overlay"):
                parent.remove(child)
    root.attrib.pop("id", None)
    root.attrib.update({"role": "img", "aria-label": title})
    root.remove(root.find("title"))
    return root
