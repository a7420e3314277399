"""Plugins in Python that are wrong, each in one way, for either backend."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from dataflare.types import PluginInfo


@dataclass(frozen=True)
class Wrong:
    """A wrong plugin: what it lacks, where, what its author says of it, and what makes it."""

    lacks: set[str]
    backends: set[str]
    make: Callable[[SimpleNamespace], Any]
    claims: dict[str, Any] = field(default_factory=dict)


WRONG: dict[str, Wrong] = {}


def lacks(
    *properties: str, backends: tuple[str, ...] = ("cython", "python"), **claims: Any
) -> Callable[[Any], Any]:
    """Enter what makes a plugin for a backend, and the properties that the plugin lacks."""

    def enter(make: Callable[[SimpleNamespace], Any]) -> Callable[[SimpleNamespace], Any]:
        WRONG[make.__name__] = Wrong(set(properties), set(backends), make, claims)
        return make

    return enter


@lacks("batch_is_its_records", "batch_size_does_not_matter", "workers_do_not_matter")
def depends_on_batches(backend):
    class Plugin(backend.BatchPlugin):
        """Marks the first record of every batch of several."""

        def process_batch(self, records):
            results = [backend.PluginResult.skip() for _ in records]
            if len(results) > 1:
                results[0] = backend.PluginResult.success(b"first")
            return backend.BatchResult.from_results(records, results)

    return Plugin


@lacks("batch_size_does_not_matter", stateful=True)
def counts_batches(backend):
    class Plugin(backend.BatchPlugin):
        """Numbers its batches; alone, a record is always of the first."""

        def initialize(self, config):
            self.number = 0

        def process(self, record):
            return backend.PluginResult.success(b"1")

        def process_batch(self, records):
            self.number += len(records) > 0
            result = backend.PluginResult.success(b"%d" % self.number)
            return backend.BatchResult.from_results(records, [result] * len(records))

    return Plugin


@lacks("answers_are_valid", "batch_is_its_records")
def drops_the_last(backend):
    class Plugin(backend.BatchPlugin):
        """Has no result for the last record of a batch."""

        def process_batch(self, records):
            results = [backend.PluginResult.skip() for _ in records]
            return backend.BatchResult.from_results(records[:-1], results[:-1])

    return Plugin


@lacks("batch_is_its_records", "batch_size_does_not_matter", "workers_do_not_matter")
def filters_the_last(backend):
    class Plugin(backend.BatchPlugin):
        """Filters the last record of a batch."""

        def process_batch(self, records):
            results = [backend.PluginResult.skip() for _ in records]
            if len(results) > 1:
                results[-1] = backend.PluginResult.filtered()
            return backend.BatchResult.from_results(records, results)

    return Plugin


@lacks("batch_is_its_records")
def differs_in_batches(backend):
    class Plugin(backend.BatchPlugin):
        """Does to a batch something else than to a record."""

        def process(self, record):
            return backend.PluginResult.success(bytes(record.value).upper())

        def process_batch(self, records):
            results = [backend.PluginResult.success(value) for value in records.to_pylist()]
            return backend.BatchResult.from_results(records, results)

    return Plugin


@lacks("batch_size_does_not_matter", "batch_is_its_records", "workers_do_not_matter")
def loses_the_batch(backend):
    class Plugin(backend.BatchPlugin):
        """Fails for a whole batch because of one record."""

        def process_batch(self, records):
            results = []
            for value in records.to_pylist():
                if b"a" in value:
                    raise ValueError("there is an a")
                results.append(backend.PluginResult.skip())
            return backend.BatchResult.from_results(records, results)

    return Plugin


@lacks("deterministic")
def counts_on(backend):
    class Plugin(backend.DataFlarePlugin):
        """Numbers the records, and says nothing of it."""

        def initialize(self, config):
            self.number = 0

        def process(self, record):
            self.number += 1
            return backend.PluginResult.success(b"%d" % self.number)

    return Plugin


@lacks("workers_do_not_matter")
def knows_its_instance(backend):
    class Plugin(backend.DataFlarePlugin):
        """Does something else while there are others of its class."""

        ready = 0

        def initialize(self, config):
            self.prefix = b"%d" % Plugin.ready
            Plugin.ready += 1

        def cleanup(self):
            Plugin.ready -= 1

        def process(self, record):
            return backend.PluginResult.success(self.prefix + record.value)

    return Plugin


@lacks("starts_afresh", stateful=True)
def keeps_state(backend):
    class Plugin(backend.DataFlarePlugin):
        """Numbers the records, and begins where it ended."""

        def __init__(self):
            self.number = 0

        def process(self, record):
            self.number += 1
            return backend.PluginResult.success(b"%d" % self.number)

    return Plugin


@lacks("views_are_values", "input_is_unchanged")
def releases_views(backend):
    class Plugin(backend.DataFlarePlugin):
        """Releases the view that is somebody else's."""

        def process(self, record):
            if isinstance(record.value, memoryview):
                record.value.release()
                return backend.PluginResult.filtered()
            return backend.PluginResult.skip()

    return Plugin


@lacks("views_are_values")
def takes_bytes_alone(backend):
    class Plugin(backend.DataFlarePlugin):
        """Expects that a value is bytes."""

        def process(self, record):
            return backend.PluginResult.success(record.value.strip())

    return Plugin


@lacks("input_is_unchanged")
def changes_metadata(backend):
    class Plugin(backend.DataFlarePlugin):
        """Adds to a list in the metadata."""

        def process(self, record):
            for value in (record.metadata or {}).values():
                if isinstance(value, list):
                    value.append("seen")
            return backend.PluginResult.skip()

    return Plugin


@lacks("input_is_unchanged")
def changes_values(backend):
    class Plugin(backend.DataFlarePlugin):
        """Writes into what a value is a view of."""

        def process(self, record):
            source = getattr(record.value, "obj", None)
            if isinstance(source, bytearray) and source:
                source[0] ^= 255
            return backend.PluginResult.filtered()

    return Plugin


@lacks("failures_are_exceptions")
def exits(backend):
    class Plugin(backend.DataFlarePlugin):
        """Ends the program at a record that it does not like."""

        def process(self, record):
            if b"a" in bytes(record.value):
                raise SystemExit("an a")
            return backend.PluginResult.skip()

    return Plugin


@lacks("answers_are_valid")
def returns_bytes(backend):
    class Plugin(backend.DataFlarePlugin):
        """Returns a value instead of a result."""

        def process(self, record):
            return bytes(record.value)

    return Plugin


@lacks("answers_are_valid")
def returns_text(backend):
    @backend.map_plugin
    def plugin(value):
        """Returns text instead of bytes."""
        return value.decode("latin-1")

    return plugin


@lacks("some_records_work")
def is_mistyped(backend):
    class Plugin(backend.DataFlarePlugin):
        """Calls what there is not."""

        def process(self, record):
            return backend.PluginResult.sucess(bytes(record.value))

    return Plugin


@lacks("some_records_work")
def looks_for_text(backend):
    @backend.filter_plugin
    def plugin(value):
        """Takes bytes for text."""
        return "ERROR" in value

    return plugin


@lacks("some_records_work")
def gives_an_error(backend):
    class Plugin(backend.DataFlarePlugin):
        """Finds fault with everything."""

        def process(self, record):
            return backend.PluginResult.error("no")

    return Plugin


@lacks("no_buffer_is_leaked")
def leaks_a_buffer(backend):
    class Plugin(backend.DataFlarePlugin):
        """Takes a buffer for each record and returns none."""

        def __init__(self):
            self.pool = backend.MemoryPool(debug=True)
            self.buffers = []

        def process(self, record):
            self.buffers.append(self.pool.get_buffer(100))
            return backend.PluginResult.skip()

    return Plugin


@lacks("no_buffer_is_leaked", backends=("cython",))  # in Python a batch needs no buffer
def keeps_batches(backend):
    class Plugin(backend.BatchPlugin):
        """Keeps the last batch, also after its clean-up."""

        def process_batch(self, records):
            self.last = records
            results = [backend.PluginResult.skip() for _ in records]
            return backend.BatchResult.from_results(records, results)

    return Plugin


@lacks("health_check_answers", health_timeout=0.3)
def hangs_when_asked(backend):
    class Plugin(backend.DataFlarePlugin):
        """Waits for what does not come."""

        def health_check(self):
            return threading.Event().wait(30)

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("health_check_answers")
def is_never_fit(backend):
    class Plugin(backend.DataFlarePlugin):
        """Says nothing when it is asked."""

        def health_check(self):
            return None

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("starts_and_stops")
def needs_what_was_not_made(backend):
    class Plugin(backend.DataFlarePlugin):
        """Cleans up what a failed initialize did not make."""

        def initialize(self, config):
            size = config.get("size", 1)
            self.names = ["name"] * size

        def cleanup(self):
            del self.names

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("starts_and_stops")
def starts_once(backend):
    class Plugin(backend.DataFlarePlugin):
        """Cannot be initialised twice."""

        started = False

        def initialize(self, config):
            if self.started:
                raise RuntimeError("started before")
            self.started = True

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("pickles", distributed=True)
def cannot_be_sent(backend):
    class Plugin(backend.DataFlarePlugin):
        """Holds a lock, and is sent to other processes all the same."""

        def __init__(self):
            self.lock = threading.Lock()

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("info_is_complete")
def has_a_number_for_a_version(backend):
    class Plugin(backend.DataFlarePlugin):
        """Has a number for a version."""

        def info(self):
            return PluginInfo(name="plugin", version=1.0, description="Has a number for one.")

        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin


@lacks("info_is_complete")
def says_nothing_of_itself(backend):
    class Plugin(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

    return Plugin
