"""Dead letters: where records go that failed for good."""

import base64
import errno
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from types import ModuleType

import pytest
from helpers import LIMIT, conserved, run_threads, wait_until

from dataflare.errors import (
    PluginConfigurationError,
    PluginError,
    UnknownPluginError,
)
from dataflare.types import PluginState


def test_dead_letters_go_to_a_callable(recovering, flaky) -> None:
    """With record, place, error and number of attempts; once each."""
    letters = []
    manager = recovering(max_retries=2)
    manager.register_plugin("x", flaky(), dead_letters=letters.append)
    manager.process_batch("x", [b"s", b"sn", b"s1", b"s9"])
    assert [
        (
            letter.plugin,
            bytes(letter.record.value),
            letter.index,
            str(letter.error),
            letter.attempts,
        )
        for letter in letters
    ] == [("x", b"sn", 1, "ValueError: for good", 1), ("x", b"s9", 3, "failure 3", 3)]
    metrics = conserved(manager)
    assert (metrics.failed, metrics.dead_lettered, metrics.error_rate) == (0, 2, 0.5)


def test_dead_letters_go_to_a_plugin_by_its_name(
    backend, recovering, flaky, monkeypatch, tmp_path
) -> None:
    """As one that is given; without the prefix a string is a path, also that of a plugin."""
    buried = []

    class Buries(backend.DataFlarePlugin):
        def process(self, record):
            buried.append((bytes(record.value), record.metadata["dataflare.error"]))
            return backend.PluginResult.filtered()

    module = ModuleType("undertakers")
    module.Buries = Buries
    monkeypatch.setitem(sys.modules, "undertakers", module)
    monkeypatch.chdir(tmp_path)
    manager = recovering(circuit_breaker_threshold=1)
    for name, target in (
        ("x", "plugin:undertakers:Buries"), ("y", "upper"), ("z", "./plugin:upper")
    ):  # fmt: skip
        manager.register_plugin(name, flaky(), dead_letters=target)
        manager.process_batch(name, [b"sn"])
    assert buried == [(b"sn", "ValueError: for good")]
    assert sorted(os.listdir(tmp_path)) == ["plugin:upper", "upper"]
    with pytest.raises(PluginConfigurationError, match=r"^the plugin 'uper' cannot be used: there"):
        manager.register_plugin("w", flaky(), dead_letters="plugin:uper")
    assert manager.list_plugins() == ["x", "y", "z"]


def test_dead_letters_go_to_a_file(backend, recovering, flaky, tmp_path) -> None:
    """A line of JSON each, there at once: bytes that are no text too, and any metadata."""
    path = tmp_path / "dead.jsonl"
    path.write_text('{"earlier": true}\n')
    manager = recovering(circuit_breaker_threshold=1)

    @backend.map_plugin
    def fails(value):
        raise ValueError("no: \ud800 é")

    manager.register_plugin("x", fails, dead_letters=path)
    records = [
        backend.PluginRecord(b"text \n", key=b"k", metadata={"a": {1}, 5: b"b"}, offset=7),
        backend.PluginRecord(b"\xff", timestamp=1, partition=2),
    ]
    manager.process_batch("x", records)
    earlier, first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert earlier == {"earlier": True}
    assert (first["plugin"], first["record"], first["key"]) == ("x", "text \n", "k")
    assert (first["index"], first["offset"], first["attempts"]) == (0, 7, 1)
    assert first["error"].startswith("ValueError: no: ")
    assert first["metadata"] == {"a": "{1}", "5": "b'b'"}
    assert base64.b64decode(second["record_base64"]) == b"\xff"
    assert (second["index"], second["timestamp"], second["partition"]) == (1, 1, 2)
    assert conserved(manager).dead_lettered == 2
    manager.unregister_plugin("x")
    path.unlink()


def test_dead_letters_go_to_a_plugin(backend, recovering, flaky, witness) -> None:
    """It is initialised and cleaned up with the plugin, and gets the story as metadata."""
    records = []

    class Keeps(witness):
        def process(self, record):
            self.note(bytes(record.value))
            records.append(record)
            return backend.PluginResult.skip()

    sink = Keeps()
    manager = recovering()
    manager.register_plugin("x", flaky(), {"a": 1}, dead_letters=sink)
    batch = backend.RecordBatch.from_values([b"s", b"sn"], [b"k", b"l"], metadata=[None, {"b": 2}])
    manager.process_batch("x", batch)
    (record,) = records
    assert bytes(record.key) == b"l"
    assert dict(record.metadata) == {
        "b": 2, "dataflare.plugin": "x", "dataflare.index": 1,
        "dataflare.error": "ValueError: for good", "dataflare.attempts": 1,
    }  # fmt: skip
    manager.close()
    assert sink.events == [("initialize", {"a": 1}), b"sn", "cleanup"]
    assert sink.states[1:2] == [PluginState.RUNNING]
    assert sink.get_state() is PluginState.STOPPED


def test_a_sink_that_refuses(backend, recovering, flaky, caplog) -> None:
    """The record has failed, and the log says why; the others are not refused for it."""

    class Refuses(backend.DataFlarePlugin):
        def process(self, record):
            if record.metadata["dataflare.index"] % 2:
                return backend.PluginResult.error("full")
            return backend.PluginResult.skip()

    manager = recovering()
    manager.register_plugin("x", flaky(), dead_letters=Refuses())
    assert manager.process_batch("x", [b"sn"] * 5).error_count == 5
    metrics = conserved(manager)
    assert (metrics.failed, metrics.dead_lettered) == (2, 3)
    assert sum("was not accepted" in each.getMessage() for each in caplog.records) == 2


def test_a_sink_may_use_the_manager(backend, recovering, flaky) -> None:
    """Send the record to another plugin, fail at it again, or take the plugin out of service."""
    seen = []

    def resend(letter):
        seen.append(manager.process_batch("other", [letter.record]).output.to_pylist())
        if len(seen) < 3:
            assert manager.process_batch("x", [b"sn"]).error_count == 1
        elif len(seen) == 3:
            manager.unregister_plugin("x")

    manager = recovering()
    manager.register_plugin("other", backend.Upper())
    plugin = flaky()
    manager.register_plugin("x", plugin, dead_letters=resend)
    assert manager.process_batch("x", [b"sn"]).error_count == 1
    assert seen == [[b"SN"]] * 3
    assert plugin.get_state() is PluginState.STOPPED


def test_the_fallback_and_the_sink_live_as_long_as_the_calls(backend, recovering) -> None:
    """Unregistered while a failure is dealt with: neither is used when it is cleaned up."""
    failing, ending, used = threading.Event(), threading.Event(), []

    class Helper(backend.DataFlarePlugin):
        gone = False

        def process(self, record):
            assert not self.gone
            used.append(bytes(record.value))
            if len(used) == 1:
                failing.set()
                assert ending.wait(LIMIT)
            raise ValueError("no help")

        def cleanup(self):
            assert len(used) == 4
            self.gone = True

    fallback, sink = Helper(), Helper()

    @backend.map_plugin
    def fails(value):
        raise ValueError("fails")

    manager = recovering()
    manager.register_plugin("x", fails, fallback=fallback, dead_letters=sink)

    def end():
        assert failing.wait(LIMIT)
        threading.Timer(0.02, ending.set).start()
        manager.unregister_plugin("x")
        assert fallback.gone
        assert sink.gone

    run_threads(lambda: manager.process_batch("x", [b"a", b"b"]), end)
    assert used == [b"a", b"b"] * 2


@pytest.mark.parametrize("target", [5, object(), [], b"path", "a class of plugins"], ids=repr)
def test_what_takes_no_dead_letters(backend, recovering, flaky, target) -> None:
    """Said at once, and nothing is registered."""
    manager = recovering()
    if target == "a class of plugins":
        target = backend.Upper
    with pytest.raises(TypeError, match="dead letters go to"):
        manager.register_plugin("x", flaky(), dead_letters=target)
    with pytest.raises(OSError, match="No such file"):
        manager.register_plugin("x", flaky(), dead_letters="/nowhere/at/all")
    assert manager.list_plugins() == []


def test_a_signal_ends_a_wait_between_attempts(backend, recovering) -> None:
    """What its handler raises comes through; the batch has failed and is counted once."""

    class Woken(BaseException):
        pass

    def wake(number, frame):
        raise Woken

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            raise PluginError("again", retryable=True)

    manager = recovering(retry_interval=10_000, max_retry_interval=10_000)
    manager.register_plugin("x", Fails())
    before = signal.signal(signal.SIGUSR1, wake)
    timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Woken):
            manager.process_batch("x", [b"a", b"b"])
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.failed) == (2, 2)
    manager.unregister_plugin("x")
    with pytest.raises(UnknownPluginError):
        manager.process_batch("x", [])
    wait_until(lambda: not backend.is_inside())


def test_a_letter_after_one_that_broke_off(recovering, flaky, tmp_path) -> None:
    """A disk that is full in the middle of a line costs that letter alone."""
    path = tmp_path / "letters.jsonl"
    path.write_text('{"written by a process that')
    manager = recovering()
    manager.register_plugin("x", flaky(), dead_letters=path)
    sink = manager._services["x"].dead_letters._sink

    class Full:
        """Takes a part, and then no more."""

        def __init__(self, file):
            self.file, self.left = file, 20

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self.left = self.file.write(data[: self.left]), 0
            return taken

    manager.process_batch("x", [b"1n"])
    file = sink._file
    sink._file = Full(file)
    assert manager.process_batch("x", [b"2n"]).error_count == 1
    sink._file = file
    manager.process_batch("x", [b"3n"])
    _, first, broken, third = path.read_text().splitlines()
    assert [json.loads(line)["record"] for line in (first, third)] == ["1n", "3n"]
    assert len(broken) == 20
    metrics = conserved(manager)
    assert (metrics.dead_lettered, metrics.failed) == (2, 1)


def test_a_signal_that_closes_while_waiting(backend, recovering, flaky) -> None:
    """At whatever moment of the wait between two attempts it comes: nothing hangs."""
    for place in range(40):
        manager = recovering(retry_interval=0.005, max_retry_interval=0.005)
        manager.register_plugin("x", flaky())
        left = [place]

        def trace(frame, event, arg, left=left, manager=manager):
            if frame.f_code.co_name in ("wait", "set", "_pause"):
                left[0] -= 1
                if left[0] == 0:
                    sys.settrace(None)
                    manager.close()  # as a signal's handler would, in this thread
            return trace

        measuring = sys.gettrace()  # coverage, which goes on afterwards
        sys.settrace(trace)
        try:
            with suppress(PluginError):
                manager.process_record("x", backend.PluginRecord(b"s1"))
        finally:
            sys.settrace(measuring)
        manager.close()
