"""Where in its life a plugin is, as the manager leads it through."""

import pytest

from dataflare.errors import PluginInitializationError
from dataflare.types import PluginState

UNINITIALIZED, INITIALIZING, READY, RUNNING, ERROR, STOPPED = PluginState


def test_states_follow_the_plugin(manager, witness) -> None:
    """Each as the plugin itself sees it, and from outside."""
    plugin = witness()
    assert plugin.get_state() is UNINITIALIZED
    manager.register_plugin("x", plugin)
    assert plugin.get_state() is READY
    manager.process_batch("x", [b"a"])
    assert plugin.get_state() is READY
    manager.unregister_plugin("x")
    assert plugin.get_state() is STOPPED
    assert plugin.events == [("initialize", {}), b"a", "cleanup"]
    assert plugin.states[:2] == [INITIALIZING, RUNNING]


def test_a_plugin_that_fails_to_initialize_is_in_error(backend, manager) -> None:
    """Nothing is registered, and its own exception is the cause."""

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            raise OSError("no disk")

    plugin = Fails()
    with pytest.raises(
        PluginInitializationError, match=r"'x' failed .* OSError: no disk"
    ) as caught:
        manager.register_plugin("x", plugin)
    assert type(caught.value.__cause__) is OSError
    assert (caught.value.plugin, plugin.get_state()) == ("x", ERROR)
    assert manager.list_plugins() == []


def test_a_failing_clean_up_is_logged(backend, manager, caplog) -> None:
    """The others are cleaned up all the same, and the state says so."""

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def cleanup(self):
            raise OSError("no disk")

    plugin = Fails()
    manager.register_plugin("x", plugin)
    manager.unregister_plugin("x")
    assert plugin.get_state() is ERROR
    assert manager.list_plugins() == []
    (message,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "'x'" in message.getMessage()
    assert message.exc_info[0] is OSError


def test_a_failing_record_leaves_the_plugin_ready(manager, witness) -> None:
    """One record's failure is not the plugin's."""
    manager.register_plugin("x", witness)
    manager.process_batch("x", [b"raise"])
    assert manager.get_plugin("x").get_state() is READY
