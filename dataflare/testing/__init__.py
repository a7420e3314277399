"""The kit for authors of plugins: checks that a plugin keeps what the library relies on.

`check_plugin` tries a plugin on records that real input has and examples forget, and on the
author's own, and holds it to the properties in `PROPERTIES`; `PluginTests` makes a pytest test of
each. `strategies` has hypothesis strategies of records for tests of one's own.
"""

from importlib.util import find_spec

if find_spec("hypothesis") is None:
    raise ImportError("dataflare.testing needs an extra: pip install 'dataflare[testing]'")

from dataflare.testing import strategies
from dataflare.testing.checks import PROPERTIES
from dataflare.testing.kit import PluginTests, check_plugin, examine_plugin
from dataflare.testing.report import (
    CheckFailedError,
    Counts,
    PropertyResult,
    PropertyStatus,
    Report,
)

__all__ = [
    "PROPERTIES",
    "CheckFailedError",
    "Counts",
    "PluginTests",
    "PropertyResult",
    "PropertyStatus",
    "Report",
    "check_plugin",
    "examine_plugin",
    "strategies",
]
