"""``dataflare check`` as a process of its own."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest

PLUGINS = """
import os, time
import dataflare

class Strips(dataflare.DataFlarePlugin):
    '''Strips, as if every value were bytes.'''
    def process(self, record):
        return dataflare.PluginResult.success(record.value.strip())

class Leaves(dataflare.DataFlarePlugin):
    '''Ends the process at an a.'''
    def process(self, record):
        if b"a" in bytes(record.value):
            os._exit(3)
        return dataflare.PluginResult.skip()

class Counts(dataflare.DataFlarePlugin):
    '''Numbers the records.'''
    def initialize(self, config):
        self.number = 0
    def process(self, record):
        self.number += 1
        return dataflare.PluginResult.success(b"%d" % self.number)

class Pairs(dataflare.DataFlarePlugin):
    '''Reads a format of its own.'''
    def initialize(self, config):
        self.mark = config.get("mark", "|||").encode()
    def process(self, record):
        left, right = bytes(record.value).split(self.mark)
        return dataflare.PluginResult.success(right)

def plain(value):
    return value
"""


@pytest.fixture
def check_with(tmp_path):
    """Runs the command on a backend, in a directory that has a file of plugins."""
    (tmp_path / "plug.py").write_text(PLUGINS)

    def run(backend, *arguments):
        return subprocess.run(
            [sys.executable, "-m", "dataflare.cli", "check", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={
                **os.environ,
                "DATAFLARE_PURE_PYTHON": "1" if backend == "python" else "0",
                "COLUMNS": "120",
            },
        )

    return run


@pytest.fixture
def check(check_with):
    """Runs the command."""
    return functools.partial(check_with, "cython")


def test_a_right_plugin(backend, check_with):
    """A verdict for each property, and status 0."""
    done = check_with(backend.name, "replace:a:b", "--examples", 5)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "property verdict"
    assert "batch_is_its_records passed A batch gives what its records give one by one." in lines
    assert lines[-2].startswith("replace:a:b: ")
    assert "failed" not in lines[-2]
    assert re.fullmatch(r"of \d+ records \d+ succeeded, \d+ went on unchanged", lines[-1])


def test_a_wrong_plugin(check):
    """What is wrong, with which record, the command to see it again, and status 1."""
    done = check("plug.py:Strips", "--examples", 5)
    assert (done.returncode, done.stderr) == (1, "")
    again = "dataflare check plug.py:Strips --only views_are_values --examples 5"
    assert (
        "views_are_values: as bytes it gives success(b''), as memoryview error('AttributeError')\n"
        "  with this record:\n"
        "     PluginRecord(b'')\n"
        f"  again: {again}\n"
    ) in done.stdout
    assert check(*again.split()[2:]).returncode == 1


def test_a_plugin_that_ends_the_process(check):
    """Is a verdict like any other, for machines here."""
    done = check("plug.py:Leaves", "--examples", 5, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert (found["plugin"], found["passed"]) == ("plug.py:Leaves", False)
    [wrong] = [each for each in found["properties"] if each["status"] == "failed"]
    assert wrong.pop("records")  # how few there are depends on the time there is
    assert wrong == {
        "name": "process_survives",
        "status": "failed",
        "sentence": "the plugin ended the process by exit(3)",
        "index": None,
        "reproduce": "dataflare check plug.py:Leaves --only process_survives --examples 5",
    }


def test_what_is_said_of_a_plugin(check):
    """Options say what the plugin is."""
    only = ("--only", "deterministic", "--examples", 5)
    assert check("plug.py:Counts", *only, "--stateful").returncode == 0
    assert check("plug.py:Counts", *only, "--not-deterministic").returncode == 0
    only = ("--only", "pickles", "--examples", 5)
    assert check("plug.py:Counts", *only, "--stateful", "--distributed").returncode == 0


def test_records_of_the_authors(check, tmp_path):
    """Those that are made up all fail; the line that is said has the file and the configuration."""
    (tmp_path / "pairs.txt").write_text("a///b\nc///\nx\n")
    only = ("--only", "some_records_work", "--examples", 1)
    given = ("--config", '{"mark": "///"}', "--records", "pairs.txt")
    done = check("plug.py:Pairs", *only, *given)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"of \d+ records 2 succeeded, \d+ failed", done.stdout.splitlines()[-1])
    done = check("plug.py:Pairs", *only, *given[2:])
    assert (done.returncode, done.stderr) == (1, "")
    assert "plugin is made for, by --records FILE\n" in done.stdout
    assert done.stdout.splitlines()[-4].endswith("--examples 1 --records pairs.txt")


def test_a_hint_names_the_options(check):
    """And not the arguments in Python."""
    done = check("plug.py:Counts", "--only", "deterministic", "--examples", 1)
    assert "; if it is meant to: --stateful, or --not-deterministic\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("upper", "--records", "nowhere"), "nowhere: No such file or directory"),
        (("upper", "--records", os.devnull), "/dev/null has no records: one stands in a line"),
        (("upper", "--config", "{"), "--config is not JSON: "),
        (("upper", "--config", "[]"), "--config is a JSON object, such as "),
        (("nothing",), "the plugin 'nothing' cannot be used: there is no plugin 'nothing'"),
        (("contains",), "the plugin 'contains' cannot be used: it is written contains:TEXT"),
        (("plug.py:plain",), "the plugin 'plug.py:plain' cannot be used: plain cannot be called"),
        (("upper", "--only", "x"), "there is no property 'x'; there are "),
    ],
)
def test_a_plugin_that_cannot_be_checked(check, arguments, sentence):
    """One sentence, and status 2."""
    done = check(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert done.stderr.startswith("dataflare: ")
    assert len(done.stderr.splitlines()) == 1


def test_hypothesis_is_missing(tmp_path):
    """Says what to install."""
    code = (
        "import sys; sys.modules['hypothesis'] = None; sys.argv[1:] = ['check', 'upper']\n"
        "from dataflare.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("dataflare: checking needs an extra: pip install 'dataflare[testing]'\n")
