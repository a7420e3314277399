"""The kit on native plugins: a crash is a verdict, and every touch outside is found."""

from pathlib import Path

import pytest
from building import build_module

from dataflare.plugins import Chain, Upper
from dataflare.testing import PROPERTIES, check_plugin, examine_plugin

HERE = Path(__file__).parent
CRASH = "the plugin ended the process by SIGSEGV"
BEHIND = f"{CRASH}: the page behind each value and key is forbidden"
IN_FRONT = f"{CRASH}: the page in front of each value and key is forbidden"
AROUND = f"{CRASH}: the pages around what is reserved and the output of earlier calls are forbidden"
KEPT = f"{CRASH}: the records of earlier calls are forbidden"
SEALED = f"{CRASH}: the pages of values and keys can only be read"
FRONT = "output was written in front of what was reserved"
PAST = (
    "a buffer of 3 bytes for output of the plugin 'WritesPastReserve' was written past its end, "
    "first at offset 3"
)
NULS = f"PluginRecord({bytes(3)!r})"
# What each lacks, what is said of it, and the smallest record that shows it.
WRONG = {
    "ReadsBehind": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'')"),
    "ReadsBehindKey": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'', key=b'')"),
    "WritesBehind": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'')"),
    "ReadsInFront": ("nothing_in_front_is_touched", IN_FRONT, "PluginRecord(b'a')"),
    "WritesPastReserve": ("output_is_not_overrun", PAST, NULS),
    "WritesInFront": ("output_is_not_overrun", FRONT, NULS),
    "ReadsBehindOutput": ("nothing_around_output_is_touched", AROUND, NULS),
    "ReadsInFrontOfOutput": ("nothing_around_output_is_touched", AROUND, NULS),
    "KeepsOutput": ("nothing_around_output_is_touched", AROUND, NULS),
    "KeepsPointer": ("no_pointer_is_kept", KEPT, "PluginRecord(b'a')"),
    "Mutates": (
        "input_is_unchanged",
        "in a batch, the value b'a' is changed to b'b'",
        "PluginRecord(b'a')",
    ),
    "WritesBack": ("input_is_unchanged", SEALED, "PluginRecord(b'a')"),
    "CrashesAtNul": ("process_survives", CRASH, "PluginRecord(b'\\x00')"),
    "UnknownStatus": (
        "answers_are_valid",
        "the plugin returned the unknown status 42",
        f"PluginRecord({bytes(9)!r})",
    ),
}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """The smallest record is found, however slow the machine is."""
    monkeypatch.setattr("dataflare.testing.search.SHRINKING", 600)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The plugins of wrong.pyx."""
    return build_module(HERE / "wrong.pyx", tmp_path_factory.mktemp("wrong"))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_is_caught(wrong, name):
    """By the check that is meant for it and by no other, with the smallest record."""
    lacks, sentence, record = WRONG[name]
    report = examine_plugin(getattr(wrong, name), examples=20)
    assert [result.name for result in report.failures] == [lacks], str(report)
    [result] = report.failures
    assert (result.sentence, result.records) == (sentence, (record,))
    assert result.reproduce == f"check_plugin(plugin, [{record}], only={lacks!r}, examples=0)"


def test_a_plugin_that_a_chain_alone_finds_out(wrong):
    """Nothing else gives it two values in one place, and only two records show it."""
    report = examine_plugin(wrong.TakesPlacesForValues, [b"ab", b"ca"], examples=0)
    assert [result.name for result in report.failures] == ["chaining_does_not_matter"], str(report)
    [result] = report.failures
    assert result.sentence == "apart it gives success(b'cbb'), in a chain filtered"
    assert result.records == ("PluginRecord(b'ab')", "PluginRecord(b'ca')")
    assert len(report.not_applicable) == 2


def test_what_cannot_be_told_is_not_told(wrong):
    """After a fault of memory nothing is run any more; what needs no run is checked."""
    report = examine_plugin(wrong.CrashesAtNul, examples=20)
    assert {name for name, result in report.results.items() if result.status == "passed"} == {
        "health_check_answers", "info_is_complete"}  # fmt: skip
    reasons = {result.sentence for result in report.not_applicable}
    assert reasons == {"nothing can be told while process_survives fails"}


def test_the_last_record_of_a_batch_is_missing(wrong):
    """Whoever leaves records out gives an answer that is none; in a chain it does not do so."""
    report = examine_plugin(wrong.LeavesRecordsOut, examples=10)
    assert {result.name for result in report.failures} == {
        "answers_are_valid",
        "batch_is_its_records",
        "batch_size_does_not_matter",
        "chaining_does_not_matter",
        "workers_do_not_matter",
    }
    result = report.results["answers_are_valid"]
    assert result.sentence == "the plugin left the record undecided"
    assert result.records == ("PluginRecord(b'')",)


def test_a_plugin_that_hangs_is_ended(wrong, monkeypatch):
    """How many records are left out of what is shown depends on the time there is."""
    monkeypatch.setattr("dataflare.testing.search.SHRINKING", 1)
    report = examine_plugin(wrong.Hangs, examples=5, timeout=1)
    assert [result.name for result in report.failures] == ["process_survives"]
    [result] = report.failures
    assert result.sentence == "the plugin did not come to an end within 1 s"
    assert result.records


def test_a_member_of_a_chain_is_caught(wrong):
    """The checks of memory look at every native member."""
    report = examine_plugin(lambda: Chain(Upper(), wrong.WritesPastReserve()), examples=20)
    assert [result.name for result in report.failures] == ["output_is_not_overrun"], str(report)


@pytest.mark.parametrize("fused", [False, True])
def test_right_plugins_pass(wrong, logfields, fused):
    """Those of the example too, alone and as members of a chain."""
    makers = {
        "right": wrong.Right,
        "word": lambda: logfields.Word(1),
        "prefix": lambda: logfields.Prefix(b">> "),
        "no prefix": lambda: logfields.Prefix(b""),
    }
    for make in makers.values():
        plugin = (lambda make=make: Chain(make(), wrong.Right())) if fused else make
        report = check_plugin(plugin, [b"GET /index 200", b"x"], examples=10)
        assert {result.name for result in report.not_applicable} == {"views_are_values", "pickles"}
        assert len(report.results) == len(PROPERTIES)
