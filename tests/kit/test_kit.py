"""The kit for authors: wrong plugins are caught by the check meant for them, right ones pass."""

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import strategies as st
from kit.wrong import WRONG

from dataflare.testing import (
    PROPERTIES,
    CheckFailedError,
    PluginTests,
    PropertyStatus,
    check_plugin,
    examine_plugin,
)

ROOT = Path(__file__).parents[2]


def failed(report):
    """The names of the properties that failed."""
    return {result.name for result in report.failures}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_is_caught(backend, name):
    """By the checks of what it lacks, and by no other."""
    wrong = WRONG[name]
    claims = {"examples": 10, "health_timeout": 0.2, **wrong.claims}
    report = backend.examine_plugin(wrong.make(backend), **claims)
    assert failed(report) == (wrong.lacks if backend.name in wrong.backends else set()), str(report)
