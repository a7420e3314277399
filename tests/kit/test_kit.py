"""The kit for authors: wrong plugins are caught by the check meant for them, right ones pass."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from hypothesis import strategies as st
from kit.wrong import WRONG

import dataflare
from dataflare.plugins import Replace
from dataflare.testing import (
    PROPERTIES,
    CheckFailedError,
    PluginTests,
    PropertyStatus,
    check_plugin,
    examine_plugin,
)

ROOT = Path(__file__).parents[2]
MEMORY = (
    "process_survives",
    "output_is_not_overrun",
    "nothing_around_output_is_touched",
    "no_pointer_is_kept",
    "nothing_behind_is_touched",
    "nothing_in_front_is_touched",
)


def failed(report):
    """The names of the properties that failed."""
    return {result.name for result in report.failures}


def python(*arguments, **options):
    """Run this Python."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_is_caught(backend, name):
    """By the checks of what it lacks, and by no other."""
    wrong = WRONG[name]
    report = backend.examine_plugin(wrong.make(backend), examples=5, **wrong.claims)
    assert failed(report) == (wrong.lacks if backend.name in wrong.backends else set()), str(report)


def test_every_property_has_a_plugin_that_lacks_it():
    """Those about memory and about chains have native ones, in the tests beside these."""
    lacking = set.union(*(wrong.lacks for wrong in WRONG.values()))
    assert PROPERTIES.keys() - lacking == {*MEMORY, "chaining_does_not_matter"}


RIGHT = {
    "Contains": [(b"ERROR",), (b"\0",)],
    "StartsWith": [(b"a",)],
    "Upper": [()],
    "Lower": [()],
    "Replace": [(b"a", b"bcd"), (b"ERROR", b"")],
    "Regex": [(rb"a.?a",), (rb"id=(?P<id>\d+)", "id"), (rb"(a)|(b)", 2)],
    "JsonField": [("name",), ("name", "skip")],
}


def test_every_plugin_of_the_library_is_tried():
    """Chains have a test of their own."""
    assert {*RIGHT, "Chain"} == {*dataflare.plugins.__all__}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, each) for name, every in RIGHT.items() for each in every]
)
def test_the_plugins_of_the_library_pass(backend, name, arguments):
    """On both backends, and wherever they are sent."""
    report = backend.check_plugin(
        lambda: getattr(backend, name)(*arguments), examples=5, distributed=True
    )
    left = {"views_are_values"} if backend.name == "cython" else {*MEMORY}
    assert {result.name for result in report.not_applicable} == left


def test_chains_pass(backend):
    """Fused ones, and those that native and other members share."""

    @backend.map_plugin
    def reverse(value):
        """Reverses."""
        return value[::-1]

    chains = [
        lambda: backend.Chain(backend.Upper(), backend.Contains("A"), backend.Replace("A", "")),
        lambda: backend.Chain(backend.Regex("a+"), reverse, backend.Upper(), backend.Lower()),
    ]
    for make in chains:
        backend.check_plugin(make, examples=10)


def test_adapters_pass(backend):
    """A plugin for records as one for batches."""
    backend.check_plugin(lambda: backend.BatchAdapter(backend.Replace("a", "b")), examples=10)


def test_the_example_passes():
    """The plugin in Python that comes with the library; one that is not thread-safe, too."""
    spec = importlib.util.spec_from_file_location("mask_ids", ROOT / "examples" / "mask_ids.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = check_plugin(module.mask_ids, [b"a req=12 b", b"req="], examples=10)
    assert "give its class" in report.results["workers_do_not_matter"].sentence


class Dice(dataflare.DataFlarePlugin):
    """Gives anything."""

    def process(self, record):
        return dataflare.PluginResult.success(random.randbytes(4))


def test_chance_is_found():
    """A failure that never comes twice the same is reported all the same."""
    report = examine_plugin(Dice, examples=10)
    assert failed(report) == {"deterministic"}
    assert report.failures[0].records


class Fields(dataflare.DataFlarePlugin):
    """Cuts at commas; fails where there are three."""

    def process(self, record):
        fields = bytes(record.value).split(b",")
        if len(fields) == 4:
            raise ValueError("four fields")
        return dataflare.PluginResult.success(fields[-1])


def test_failures_of_records_are_no_failure():
    """A plugin may fail at any record, by an exception or by a result."""
    check_plugin(Fields, st.sampled_from([b"a,b", b"a,b,c,d", b""]), examples=10)


class Bad(dataflare.DataFlarePlugin):
    """Is wrong about records from a place that only its author knows."""

    def process(self, record):
        if record.value == b"secret!":
            return 1
        return dataflare.PluginResult.skip()


def test_the_authors_records_are_tried():
    """As a list or as a strategy, of values or of records; the smallest batch is found."""
    check_plugin(Bad, examples=10)
    record = dataflare.PluginRecord(b"secret!", key=b"k")
    for records in (
        [b"a", b"b", b"secret!", b"c"],
        [record],
        st.sampled_from([b"a", b"secret!"]),
        st.just(record),
    ):
        report = examine_plugin(Bad, records, only="answers_are_valid", examples=20)
        assert failed(report) == {"answers_are_valid"}
        assert report.failures[0].records in (
            ("PluginRecord(b'secret!')",), ("PluginRecord(b'secret!', key=b'k')",))  # fmt: skip


def test_a_failure_says_how_to_see_it_again():
    """The name, a sentence, the record, and a line that fails in the same way."""
    with pytest.raises(CheckFailedError) as caught:
        check_plugin(Bad(), [b"secret!"], only="answers_are_valid")
    assert str(caught.value).splitlines()[1:] == [
        "answers_are_valid: the plugin returned int, not a PluginResult",
        "  with this record:",
        "     PluginRecord(b'secret!')",
        "  again: check_plugin(plugin, [PluginRecord(b'secret!')], only='answers_are_valid', "
        "examples=0)",
    ]
    line = caught.value.report.failures[0].reproduce
    names = {"check_plugin": check_plugin, "PluginRecord": dataflare.PluginRecord, "plugin": Bad()}
    with pytest.raises(CheckFailedError) as again:
        eval(line, names)
    assert str(again.value).splitlines()[1:] == str(caught.value).splitlines()[1:]


def test_that_every_record_fails_is_told():
    """What is made up may not be what the plugin is for; with records of the author's it is."""

    class Pairs(dataflare.DataFlarePlugin):
        """Reads a format of its own."""

        def process(self, record):
            left, right = bytes(record.value).split(b"|||")
            if not left:
                return dataflare.PluginResult.filtered()
            return dataflare.PluginResult.success(right) if right else dataflare.PluginResult.skip()

    only = {"only": "some_records_work"}
    report = examine_plugin(Pairs, examples=5, **only)
    [failure] = report.failures
    assert failure.sentence == (
        "every record failed, the first with ValueError: not enough values to unpack "
        "(expected 2, got 1): give records that the plugin is made for, by records="
    )
    assert failure.reproduce == (
        "check_plugin(plugin, [PluginRecord(b'')], only='some_records_work', examples=0)"
    )
    total = report.counts.all
    assert report.counts.failed == total > 100
    assert str(report).splitlines()[-1] == f"of {total} records {total} failed"
    own = [b"a|||b", b"a|||b", b"a|||", b"|||", b"x"]
    report = check_plugin(Pairs, own, examples=0)
    assert str(report).splitlines()[-1] == (
        "of 5 records 2 succeeded, 1 went on unchanged, 1 was dropped, 1 failed"
    )
    assert report.as_dict()["counts"] == {
        "succeeded": 2, "unchanged": 1, "dropped": 1, "failed": 1}  # fmt: skip
    assert examine_plugin(Pairs, own, only="pickles").counts is None


def test_a_plugin_for_whole_batches(backend):
    """Its author says so, and what cuts batches does not apply."""

    class Longest(backend.BatchPlugin):
        """Keeps the longest record of a batch."""

        def process_batch(self, records):
            sizes = [len(record.value) for record in records]
            keep, drop = backend.PluginResult.skip(), backend.PluginResult.filtered()
            results = [keep if size == max(sizes) else drop for size in sizes]
            return backend.BatchResult.from_results(records, results)

    cuts = {"batch_is_its_records", "batch_size_does_not_matter", "workers_do_not_matter"}
    assert failed(backend.examine_plugin(Longest, examples=5)) == cuts
    report = backend.check_plugin(Longest, examples=5, whole_batch=True)
    assert cuts < {result.name for result in report.not_applicable}


def test_a_report_is_for_machines(backend):
    """Everything that was found, as JSON can say it."""
    report = backend.examine_plugin(backend.Upper(), examples=5)
    assert report.passed
    report.raise_for_status()
    found = json.loads(json.dumps(report.as_dict()))
    assert (found["plugin"], found["passed"]) == (report.plugin, True)
    assert [each["name"] for each in found["properties"]] == [*PROPERTIES]
    assert {each["status"] for each in found["properties"]} == {"passed", "not applicable"}
    assert all(each["sentence"] for each in found["properties"])


def test_what_its_author_says_counts():
    """What is not claimed is not checked; what is left out is said to be."""

    class Clock(dataflare.DataFlarePlugin):
        """Never gives the same twice."""

        count = 0

        def process(self, record):
            Clock.count += 1
            return dataflare.PluginResult.success(b"%d" % Clock.count)

    assert failed(examine_plugin(Clock, examples=5)) == {"deterministic"}
    report = check_plugin(Clock, examples=5, deterministic=False)
    assert report.results["deterministic"].status is PropertyStatus.NOT_APPLICABLE
    report = check_plugin(Clock, examples=5, skip=["deterministic"], only=["deterministic"])
    assert report.results["deterministic"].sentence == "it was to be left out"
    Clock.distributed = True
    assert failed(examine_plugin(Clock, examples=5, only="pickles", deterministic=False)) == {
        "pickles"
    }


class Greedy(dataflare.DataFlarePlugin):
    """Needs a configuration."""

    def initialize(self, config):
        self.suffix = config["suffix"]

    def process(self, record):
        return dataflare.PluginResult.success(bytes(record.value) + self.suffix)


class Counts(dataflare.DataFlarePlugin):
    """Numbers what it sees, and goes on where it was."""

    count = 0

    def process(self, record):
        Counts.count += 1
        return dataflare.PluginResult.success(b"%d" % Counts.count)


def test_a_plugin_that_cannot_start():
    """Is told once, and not by each check."""
    report = examine_plugin(Greedy, examples=5)
    assert failed(report) == {"starts_and_stops"}
    assert report.failures[0].sentence == "initialize() fails: KeyError: 'suffix'"
    assert (
        report.results["deterministic"].sentence == "it cannot be initialised: KeyError: 'suffix'"
    )
    check_plugin(Greedy, config={"suffix": b"!"}, examples=5)


def test_the_line_says_what_the_author_said():
    """Without it the plugin would fail otherwise, or not at all."""
    claims = {"config": {"suffix": b"!"}, "stateful": True}
    report = examine_plugin(Counts, [b"a"], only="batch_is_its_records", examples=0, **claims)
    assert report.failures[0].reproduce == (
        "check_plugin(plugin, [PluginRecord(b'a')], only='batch_is_its_records', examples=0, "
        "config={'suffix': b'!'}, stateful=True)"
    )


def test_a_plugin_in_python_can_be_isolated():
    """Then it may even end the process."""

    class Leaves(dataflare.DataFlarePlugin):
        """Goes."""

        def process(self, record):
            os._exit(3)

    [result] = examine_plugin(Leaves, examples=5, isolated=True).failures
    assert (result.name, result.sentence) == (
        "process_survives", "the plugin ended the process by exit(3)")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"plugin": 1}, TypeError, "a plugin must be a plugin, a class or factory"),
        ({"plugin": "no.such:x"}, dataflare.PluginConfigurationError, "cannot be loaded"),
        ({"only": "nothing"}, ValueError, "there is no property 'nothing'; there are "),
        ({"skip": ["nothing"]}, ValueError, "there is no property 'nothing'; there are "),
        ({"examples": -1}, ValueError, "examples must be 0 or more, not -1"),
        ({"records": st.just(b""), "examples": 0}, ValueError, "a strategy makes no records"),
        ({"records": b"abc"}, TypeError, "records must be a sequence of records or values"),
    ],
)
def test_what_cannot_be_checked_is_said(arguments, kind, sentence):
    """In a sentence."""
    with pytest.raises(kind, match=re.escape(sentence)):
        check_plugin(**{"plugin": Bad, **arguments})


def test_the_base_class_has_a_test_for_each_property():
    """No more and no less, in the same order, and each says the same."""
    tests = {
        name.removeprefix("test_"): test.__doc__
        for name, test in vars(PluginTests).items()
        if name.startswith("test_")
    }
    assert tests == {name: checked.sentence for name, checked in PROPERTIES.items()}
    assert [*tests] == [*PROPERTIES]


def test_the_base_class_checks():
    """What its attributes say, of a plugin, a class, or what a method makes."""

    class One(PluginTests):
        plugin = Bad()
        records = (b"secret!",)
        examples = 5
        skip = ("pickles",)

    class Made(PluginTests):
        examples = 5

        def plugin(self):
            return Replace("a", "b")

    One().test_deterministic()
    with pytest.raises(CheckFailedError, match="answers_are_valid: the plugin returned int"):
        One().test_answers_are_valid()
    with pytest.raises(unittest.SkipTest, match="it was to be left out"):
        One().test_pickles()
    Made().test_workers_do_not_matter()


def test_the_base_class_without_a_plugin():
    """Is told once."""

    class TestNone(PluginTests):
        pass

    with pytest.raises(AssertionError, match=r"^TestNone: set `plugin`$"):
        TestNone().test_process_survives()
    with pytest.raises(unittest.SkipTest, match=r"^TestNone: set `plugin`$"):
        TestNone().test_pickles()


def test_the_base_class_in_pytest(tmp_path):
    """Collected once for each class derived from it, and not by itself."""
    (tmp_path / "test_mine.py").write_text(
        "from dataflare.plugins import Contains\n"
        "from dataflare.testing import PluginTests\n\n\n"
        "class TestContains(PluginTests):\n"
        "    plugin = Contains('a')\n"
        "    examples = 5\n"
    )
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    counts = re.search(r"^(\d+) passed, (\d+) skipped", done.stdout, re.M)
    assert counts is not None, done.stdout
    assert sum(map(int, counts.groups())) == len(PROPERTIES)


def test_the_library_does_without_hypothesis(tmp_path):
    """It is not imported, and who wants the kit without it is told what to do."""
    code = "import dataflare, sys; assert not {'hypothesis', 'dataflare.testing'} & {*sys.modules}"
    assert python("-c", code, cwd=tmp_path).returncode == 0
    code = "import sys; sys.modules['hypothesis'] = None; import dataflare.testing"
    done = python("-c", code, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: dataflare.testing needs an extra: pip install 'dataflare[testing]'"
    )
