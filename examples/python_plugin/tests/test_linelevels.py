"""Do the plugins keep the rules of DataFlare, and do what they say?"""

import pytest
from linelevels import AtLeast, without_level

from dataflare import PluginConfigurationError, PluginManager
from dataflare.testing import check_plugin

LINES = [b"9:00 INFO begun", b"9:01 ERROR no disk", b"", b"9:02 \xff"]


@pytest.mark.parametrize("plugin", [lambda: AtLeast("WARNING"), without_level])
def test_it_keeps_the_rules(plugin) -> None:
    """On records of all kinds, and on some that it is made for."""
    check_plugin(plugin, LINES, examples=10)


def test_what_they_do() -> None:
    """By the names that the package gives them, one after the other."""
    with PluginManager() as manager:
        manager.register_plugin("errors", "at-least:ERROR")
        result = manager.process_batch("errors", LINES)
        manager.register_plugin("short", "without-level")
        short = manager.process_batch("short", result.output)
    assert short.output.to_pylist() == [b"9:01 no disk"]
    assert [index for index, _ in result.errors] == [2, 3]


def test_a_level_that_there_is_not() -> None:
    """It is refused before the first line."""
    with PluginManager() as manager, pytest.raises(PluginConfigurationError, match="is no level"):
        manager.register_plugin("x", "at-least:LOUD")
