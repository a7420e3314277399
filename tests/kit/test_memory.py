"""Guarded bytes: they lie where they should, and the system lends enough for many of them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataflare import PluginRecord
from dataflare.plugins import Upper
from dataflare.testing import PropertyStatus, examine_plugin
from dataflare.testing.isolation import Death, in_child
from dataflare.testing.memory import BEHIND, IN_FRONT, MIDDLE, GuardedBatch

CRASH = Death("the plugin ended the process by SIGSEGV")
RECORDS = [PluginRecord(b"abc", key=b""), PluginRecord(b"", key=b"k"), PluginRecord(b"x" * 5000)]


def given(records):
    """The values and keys."""
    return [(bytes(each.value), each.key and bytes(each.key)) for each in records]


@pytest.mark.parametrize("side", [BEHIND, IN_FRONT, MIDDLE])
def test_who_may_touch_what(side):
    """Sealed bytes can be read; forbidden ones cannot; released ones are what they were."""
    guarded = GuardedBatch(RECORDS, side)
    assert given(guarded.records) == given(guarded.batch) == given(RECORDS)
    write = guarded._guarded.views[2].__setitem__
    guarded.seal()
    assert in_child(lambda: len(given(guarded.records)), 10) == 3
    assert in_child(lambda: write(0, 121), 10) == CRASH
    guarded.forbid()
    assert in_child(lambda: guarded.records[0].value[0], 10) == CRASH
    guarded.release()
    write(0, 120)
    assert given(guarded.records) == given(guarded.batch) == given(RECORDS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no list of them")
@pytest.mark.parametrize("end", ["forbid", "release"])
def test_records_that_are_done_with_need_no_stretches_of_memory(end):
    """There are some 65,000 for a process; here is one for each time that some are guarded."""

    def stretches():
        return len(Path("/proc/self/maps").read_text().splitlines())

    before = stretches()
    kept = []
    for _ in range(20):
        kept.append(GuardedBatch(RECORDS * 5, MIDDLE))
        getattr(kept[-1], end)()
    assert stretches() - before < 20 + 10


def test_no_memory_is_nobodys_fault(monkeypatch):
    """What cannot be told is not told."""
    monkeypatch.setattr(
        "dataflare.testing.memory._libc", SimpleNamespace(mprotect=lambda *arguments: -1)
    )
    for name in ("no_pointer_is_kept", "nothing_behind_is_touched", "input_is_unchanged"):
        result = examine_plugin(Upper, examples=2, only=name).results[name]
        assert result.status is PropertyStatus.NOT_APPLICABLE
        assert result.sentence.startswith("there is no memory for pages around the records: ")
