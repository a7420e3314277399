"""Debug mode of the manager: every step in the log, and the pool's leaks when it is closed."""

import ctypes
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dataflare.config import PluginManagerConfig
from dataflare.errors import PluginError

LOGGER = "dataflare.manager"
DOCUMENT = Path(__file__).parents[2] / "docs" / "debugging.md"


@pytest.fixture
def watching(backend):
    """A manager in debug mode."""
    with backend.PluginManager(PluginManagerConfig(enable_debug_mode=True)) as manager:
        yield manager


def steps(caplog) -> list[str]:
    """What the manager's logger said since the last call."""
    said = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    caplog.clear()
    return said


def test_registration_and_clean_up_are_logged(watching, witness, caplog) -> None:
    """From the first to the last step in a plugin's life."""
    caplog.set_level(logging.DEBUG, LOGGER)
    watching.register_plugin("x", witness())
    assert steps(caplog) == ["initializing the plugin 'x'", "registered the plugin 'x'"]
    watching.replace_plugin("x", witness())
    assert steps(caplog) == [
        "initializing the plugin 'x'", "replaced the plugin 'x'", "cleaning the plugin 'x' up"
    ]  # fmt: skip
    watching.unregister_plugin("x")
    assert steps(caplog) == ["unregistered the plugin 'x'", "cleaning the plugin 'x' up"]
    watching.register_plugin("y", witness())
    steps(caplog)
    watching.close()
    assert steps(caplog) == ["cleaning the plugin 'y' up", "closed the manager"]


def test_records_and_batches_are_logged_with_counts(backend, watching, witness, caplog) -> None:
    """How each ended, and how long a batch took."""
    caplog.set_level(logging.DEBUG, LOGGER)
    watching.register_plugin("x", witness())
    watching.register_plugin("contains", backend.Contains("a"))
    steps(caplog)
    watching.process_record("x", backend.PluginRecord(b"ok"))
    with pytest.raises(PluginError):
        watching.process_record("x", backend.PluginRecord(b"raise"))
    for value in (b"a", b"b"):
        watching.process_record("contains", backend.PluginRecord(value))
    assert steps(caplog) == [
        "process_record of 'x': success",
        "process_record of 'x' failed: ValueError: as told",
        "process_record of 'contains': skip",
        "process_record of 'contains': filtered",
    ]
    watching.process_batch("x", [b"a", b"raise", b"b"])
    (line,) = steps(caplog)
    assert line.startswith(
        "process_batch of 'x': BatchResult(3 records: 2 success, 0 filtered, 0 skipped, 1 failed) "
    )


def test_a_batch_that_fails_as_a_whole_is_logged(backend, watching, caplog) -> None:
    """Its records are the ones that failed."""

    class Fails(backend.BatchPlugin):
        def process_batch(self, records):
            raise ValueError("as told")

    watching.register_plugin("x", Fails())
    caplog.set_level(logging.DEBUG, LOGGER)
    watching.process_batch("x", [b"a"])
    (said,) = steps(caplog)
    assert said.startswith("process_batch of 'x': BatchResult(1 record: ")
    assert "1 failed) in " in said


def test_a_stream_is_logged_batch_by_batch(watching, witness, caplog) -> None:
    """Each batch, and the size of the next."""
    caplog.set_level(logging.DEBUG, LOGGER)
    watching.register_plugin("x", witness())
    steps(caplog)
    for _ in watching.process_stream("x", [b"a"] * 101):
        pass
    said = steps(caplog)
    assert [line.partition(":")[0] for line in said] == [
        "process_batch of 'x'", "stream of 'x'"] * 2  # fmt: skip
    assert said[1].startswith("stream of 'x': a batch of 100 records done, the next of up to")


def test_without_debug_mode_the_manager_logs_no_step(backend, manager, witness, caplog) -> None:
    """The logger is not even asked."""
    caplog.set_level(logging.DEBUG)
    assert not manager.pool.debug
    manager.register_plugin("x", witness())
    manager.process_record("x", backend.PluginRecord(b"a"))
    manager.process_batch("x", [b"a"])
    list(manager.process_stream("x", [b"a"]))
    manager.close()
    assert steps(caplog) == []


def test_closing_the_manager_names_leaks(watching, witness, caplog) -> None:
    """A buffer of the user's is named; the memory of a result that is alive is not."""
    assert watching.pool.debug
    watching.register_plugin("x", witness())
    result = watching.process_batch("x", [b"a"])
    leak, line = watching.pool.get_buffer(10), sys._getframe().f_lineno
    watching.close()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    name = "test_closing_the_manager_names_leaks"
    place = f"{__file__}:{line} in {name}"
    assert warning.startswith(f"a buffer of 10 bytes was not returned; it was taken at {place}, ")
    assert (len(leak), result.output.to_pylist()) == (10, [b"seen a"])


def test_a_plugin_that_writes_past_its_buffer_is_caught(backend, watching) -> None:
    """The pool raises where the plugin returns the buffer, and the record fails with that."""

    class Careless(backend.DataFlarePlugin):
        def process(self, record):
            with watching.pool.get_buffer(8) as buffer:
                ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)) + 8, 1, 1)
            return backend.PluginResult.skip()

    watching.register_plugin("careless", Careless())
    ((_, error),) = watching.process_batch("careless", [b"a"]).errors
    assert "a buffer of 8 bytes was written past its end, first at offset 8" in str(error)
    assert f"{__file__}:" in str(error)
    assert "Careless.process" in str(error)


def test_logs_keep_no_result_alive(watching, witness, caplog) -> None:
    """A handler that keeps what it gets does not keep the memory of a batch."""
    caplog.set_level(logging.DEBUG)
    watching.register_plugin("x", witness())
    watching.process_batch("x", [b"a"])
    assert watching.pool.outstanding() == []


def test_the_document_says_what_happens(tmp_path) -> None:
    """Its programs run as they are, and say what it shows."""
    leak, overrun = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    (shown,) = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.S)
    (tmp_path / "app.py").write_text(leak)
    (tmp_path / "overrun.py").write_text(overrun)
    leak, overrun = (
        subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        for name in ("app.py", "overrun.py")
    )
    assert (leak.returncode, leak.stderr.replace(f"{tmp_path}/", "")) == (0, shown)
    assert (overrun.returncode, overrun.stderr) == (0, "")
    sentence = "a buffer of 256 bytes was written past its end, first at offset 256;"
    assert overrun.stdout.startswith(sentence)
