"""All properties, in the order in which they are checked."""

from __future__ import annotations

from dataflare.testing import conduct, ground, life, results
from dataflare.testing.properties import Property

__all__ = ["GROUND", "PROPERTIES", "needs"]

PROPERTIES: dict[str, Property] = {
    each.name: each for room in (ground, results, conduct, life) for each in room.PROPERTIES
}
"""What a right plugin does, by name."""

GROUND = tuple(each.name for each in ground.PROPERTIES)
"""What has to hold for a plugin to be run at all."""


def needs(checked: Property) -> tuple[str, ...]:
    """The properties without which nothing can be told of this one.

    Whatever runs the plugin needs one that survives it and keeps to its memory, and whatever
    compares results needs one that gives the same ones again.
    """
    if not checked.runs:
        return ()
    if checked.name in GROUND:
        return GROUND[: GROUND.index(checked.name)]
    if checked is conduct.some_records_work:  # what is no answer is a failure as well
        return (*GROUND, conduct.answers_are_valid.name)
    deterministic = results.deterministic.name
    compares = checked.compares and checked.name != deterministic
    return (*GROUND, deterministic) if compares else GROUND
