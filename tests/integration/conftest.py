"""What the tests of the manager start from."""

import pytest

from dataflare.config import MemoryPoolConfig, PluginManagerConfig


@pytest.fixture
def manager(backend):
    """A manager with a small pool."""
    pool = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)
    with backend.PluginManager(PluginManagerConfig(memory_pool_config=pool)) as manager:
        yield manager


@pytest.fixture
def witness(backend):
    """A class of plugins that write down what happens to them."""

    class Witness(backend.DataFlarePlugin):
        """Sees everything."""

        def __init__(self):
            self.events = []
            self.states = []

        def note(self, event):
            self.events.append(event)
            self.states.append(self.get_state())

        def initialize(self, config):
            self.note(("initialize", dict(config)))

        def process(self, record):
            self.note(bytes(record.value))
            if record.value == b"raise":
                raise ValueError("as told")
            if record.value == b"error":
                return backend.PluginResult.error("refused", "E1")
            return backend.PluginResult.success(b"seen " + record.value)

        def cleanup(self):
            self.note("cleanup")

    return Witness
