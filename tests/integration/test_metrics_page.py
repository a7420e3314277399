"""The page about metrics is complete."""

import dataclasses
from pathlib import Path

import pytest

from dataflare import ClassStats, HealthReport, PartHealth, PluginMetrics, PoolStats, StageMetrics
from dataflare.figures import FIGURES

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


@pytest.mark.parametrize(
    "kind", [PluginMetrics, StageMetrics, PoolStats, ClassStats, HealthReport, PartHealth]
)
def test_every_attribute_is_explained(kind) -> None:
    """Of what a manager returns."""
    for field in dataclasses.fields(kind):
        assert f"`{field.name}`" in PAGE, field.name


def test_every_figure_is_in_its_table() -> None:
    """With the kind, the unit and the labels it has; and no figure that there is not."""
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    named = {row[0]: row for row in rows if row and row[0].startswith("dataflare")}
    for figure in FIGURES:
        labels = "`, `".join(figure.labels)
        if figure.prometheus:
            kind = "counter" if figure.kind.value == "counter" else "gauge"
            assert named.pop(figure.prometheus)[1:3] == [kind, labels]
        kind = {"level": "up-down counter"}.get(figure.kind.value, figure.kind.value)
        assert named.pop(figure.otel)[1:4] == [kind, figure.unit, labels]
    assert named.keys() == {
        "dataflare_info", "dataflare_batch_duration_seconds", "dataflare_record_duration_seconds",
    }  # fmt: skip
