"""A manager that has something of everything to show."""

import threading

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)

CHAIN, FRAGILE, ODD = "chain", "fragile", 'odd "name"\n\udcff'
FAILING = (b"fail", b"lose")
CONFIG = PluginManagerConfig(
    memory_pool_config=MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=0),
    batch_config=BatchConfig(parallelism=3),
    failure_recovery=FailureRecoveryConfig(
        max_retries=2, retry_interval=0, circuit_breaker_minimum=1
    ),
)


def classes(backend):
    """Plugins that fail in every way."""

    class Fragile(backend.DataFlarePlugin):
        """Does what the record says."""

        healthy = True

        def process(self, record):
            said = bytes(record.value)
            if said == b"again":
                error = ValueError("perhaps later")
                error.retryable = True
                raise error
            if said in FAILING:
                raise ValueError("as told")
            outcomes = {b"drop": backend.PluginResult.filtered, b"keep": backend.PluginResult.skip}
            return outcomes.get(said, lambda: backend.PluginResult.success(said * 2))()

        def health_check(self):
            return self.healthy

    class Rescue(backend.DataFlarePlugin):
        """A fallback for some."""

        def process(self, record):
            if bytes(record.value) in FAILING:
                raise ValueError("not this one")
            return backend.PluginResult.success(b"rescued")

    return Fragile, Rescue


def letters(letter):
    """A sink of dead letters that refuses those of one kind."""
    if bytes(letter.record.value) == b"lose":
        raise ValueError("no room")


def fill(backend, manager, dead_letters=letters):
    """Register a chain, one that fails and one of an odd name, and let them work."""
    fragile, rescue = classes(backend)
    chain = backend.Chain(
        backend.Contains("a"), backend.Upper(), backend.Upper(), backend.map_plugin(bytes.lower)
    )
    manager.register_plugin(CHAIN, chain)
    manager.register_plugin(FRAGILE, fragile(), fallback=rescue(), dead_letters=dead_letters)
    manager.register_plugin(ODD, backend.Upper())
    manager.process_batch(CHAIN, [b"a", b"b", b"ab"] * 1000)
    manager.process_batch(FRAGILE, [b"x"] * 20 + [b"drop", b"keep", b"again", *FAILING, b"x"])
    manager.process_record(FRAGILE, backend.PluginRecord(b"x"))
    manager.disable_plugin(ODD)


def break_circuit(manager):
    """Let the one that fails do so until its circuit opens."""
    manager.process_batch(FRAGILE, [b"fail"] * 40)


def run_threads(*functions):
    """Run each in a thread of its own, to the end; what one raises is raised here."""
    raised = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if raised:
        raise raised[0]
