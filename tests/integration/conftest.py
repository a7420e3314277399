"""What the tests of the manager start from."""

import pytest

from dataflare.config import FailureRecoveryConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import PluginError

POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


@pytest.fixture
def manager(backend):
    """A manager with a small pool."""
    with backend.PluginManager(PluginManagerConfig(memory_pool_config=POOL)) as manager:
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


@pytest.fixture
def recovering(backend):
    """A function that makes a manager, which is closed after the test."""
    made = []

    def make(**fields):
        recovery = FailureRecoveryConfig(**{"retry_interval": 0, **fields})
        config = PluginManagerConfig(memory_pool_config=POOL, failure_recovery=recovery)
        made.append(backend.PluginManager(config))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def flaky(backend):
    """A class of plugins that fail as the value says: ``b"x2"`` twice, retryably, ``n`` not."""

    class Flaky(backend.DataFlarePlugin):
        """Counts its calls per value."""

        def __init__(self):
            self.calls = {}

        def process(self, record):
            value = bytes(record.value)
            self.calls[value] = count = self.calls.get(value, 0) + 1
            if value[1:2].isdigit() and count <= int(value[1:]):
                raise PluginError(f"failure {count}", retryable=True, code=count)
            if value[1:2] == b"n":
                raise ValueError("for good")
            return {
                b"s": lambda: backend.PluginResult.success(value + b"!"),
                b"k": backend.PluginResult.skip,
                b"f": backend.PluginResult.filtered,
            }[value[:1]]()

    return Flaky
