"""The command line as a process of its own.

On the compiled backend; what the backends do differently, or differently fast, runs on both.
"""

import base64
import ctypes
import hashlib
import json
import os
import pty
import re
import resource
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "dataflare.cli"]
PLUGINS = """
import os, time
import dataflare

@dataflare.map_plugin
def double(value):
    return value * 2

@dataflare.map_plugin
def no_b(value):
    if b"b" in value:
        raise ValueError("there is a b")
    return value

@dataflare.map_plugin
def slow(value):
    time.sleep(0.02)
    with open("seen", "ab") as seen:
        seen.write(value + b"\\n")
    return value

@dataflare.map_plugin
def hanging(value):
    open("hanging", "wb").close()
    time.sleep(60)

@dataflare.map_plugin
def hanging_at_b(value):
    return hanging(value) if value == b"b" else value

class Coded(dataflare.DataFlarePlugin):
    def process(self, record):
        return dataflare.PluginResult.error("never", code=7)

class Whole(dataflare.BatchPlugin):
    def process_batch(self, records):
        raise ValueError("no batch is good")

class Needy(dataflare.DataFlarePlugin):
    def initialize(self, config):
        self.since = config["since"]
    def process(self, record):
        return dataflare.PluginResult.skip()

class Buries(dataflare.DataFlarePlugin):
    def process(self, record):
        with open("buried", "ab") as buried:
            buried.write(record.value + record.metadata["dataflare.error"].encode() + b"\\n")
        return dataflare.PluginResult.filtered()

@dataflare.map_plugin
def ends(value):
    if value == b"end":
        raise SystemExit(0)
    return value

class EndsLate(dataflare.DataFlarePlugin):
    def process(self, record):
        return dataflare.PluginResult.skip()
    def cleanup(self):
        raise SystemExit(0)

class EndsEarly(EndsLate):
    def initialize(self, config):
        raise SystemExit(0)

def quit_():
    raise SystemExit(0)

def make():
    return Coded()

def plain(value):
    return value
"""


def answer_signals() -> None:
    """In the child: whoever runs the tests may ignore signals, and would pass that on."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Result:
    """How a run ended."""

    status: int
    out: bytes
    err: str

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.err.splitlines()[0])
        return found


class Cli:
    """Runs the command in a directory of its own that has a file of plugins."""

    def __init__(self, directory: Path, backend: str) -> None:
        self.directory = directory
        self.pure = backend == "python"
        self.environment = {**os.environ, "DATAFLARE_PURE_PYTHON": "1" if self.pure else "0"}
        self.write("plug.py", PLUGINS.encode())

    def path(self, name: str) -> Path:
        return self.directory / name

    def write(self, name: str, content: bytes) -> None:
        self.path(name).write_bytes(content)

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def partial(self, name: str) -> Path:
        (found,) = self.directory.glob(f"{name}.*.partial")
        return found

    def start(self, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
        options = {
            "cwd": self.directory,
            "env": self.environment,
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "preexec_fn": answer_signals,
            **options,
        }
        return subprocess.Popen([*COMMAND, *map(str, arguments)], **options)

    def __call__(self, *arguments: object, stdin: bytes = b"", **options: Any) -> Result:
        with self.start(*arguments, **options) as process:
            out, err = process.communicate(stdin if process.stdin else None, timeout=120)
        return Result(process.returncode, out or b"", (err or b"").decode())

    def map(self, *arguments: object, stdin: bytes) -> bytes:
        """What comes out of a run that must succeed in silence."""
        result = self("run", *arguments, "--stats", "none", stdin=stdin)
        assert (result.status, result.err) == (0, "")
        return result.out

    def sentence(self, *arguments: object, status: int = 2, **options: Any) -> str:
        """The one sentence that a run says that must fail."""
        result = self("run", *arguments, "--stats", "none", **options)
        assert result.status == status
        assert re.fullmatch(r"dataflare: .+\n", result.err), result.err
        return result.err.removeprefix("dataflare: ").rstrip("\n")


@pytest.fixture
def cli(request: pytest.FixtureRequest, tmp_path: Path) -> Cli:
    chosen = request.config.getoption("--backend")
    backend = getattr(request, "param", "cython" if chosen == "both" else chosen)
    if chosen not in (backend, "both"):
        pytest.skip(f"this is of the backend {backend}")
    return Cli(tmp_path, backend)


each_backend = pytest.mark.parametrize("cli", ["cython", "python"], indirect=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.01)


# Lines in, lines out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", b"A\nB\n"),
        (b"a\nb", b"A\nB\n"),
        (b"a\r\nb\r\n", b"A\r\nB\r\n"),
        (b"a\r\nb", b"A\r\nB\r\n"),
        (b"a\r\nb\nc\r\n", b"A\r\nB\r\nC\r\n"),
        (b"a\nb\r\nc\n", b"A\nB\r\nC\n"),
        (b"", b""),
        (b"\n\n", b"\n\n"),
        (b"\x00a\x00\n\x00\n", b"\x00A\x00\n\x00\n"),
        (b"\xff\xfea\n\xc3(\n", b"\xff\xfeA\n\xc3(\n"),
        ("ü\n".encode(), "ü\n".encode()),
    ],
)
def test_lines(cli: Cli, content: bytes, expected: bytes) -> None:
    """Whatever the bytes and the line ends; the output always ends with a newline."""
    assert cli.map("-p", "upper", stdin=content) == expected


@each_backend
def test_inputs(cli: Cli) -> None:
    """Files, several, and standard input among them; each has its own line ends."""
    cli.write("one", b"1a\n1b")
    cli.write("two", b"2a\r\n2b")
    assert cli.map("-p", "upper", "one", stdin=b"x\n") == b"1A\n1B\n"
    assert cli.map("-p", "upper", "two", "-", "one", stdin=b"x\n") == (b"2A\r\n2B\r\nX\n1A\n1B\n")


@each_backend
def test_chain(cli: Cli) -> None:
    """Plugins run in the order they are given, native and Python ones mixed."""
    options = ["-p", "contains:b", "-p", "plug.py:double", "-p", "replace:b:B", "-p", "lower"]
    assert cli.map(*options[:-2], stdin=b"a\nAb\n") == b"ABAB\n"
    assert cli.map(*options, stdin=b"a\nAb\n") == b"abab\n"


@each_backend
def test_live_pipe(cli: Cli) -> None:
    """A line is written when it comes, not when the input ends."""
    with cli.start("run", "-p", "upper", bufsize=0, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            assert process.stdout.readline() == line.upper()
        process.stdin.close()
    assert process.returncode == 0


@each_backend
def test_jsonl(cli: Cli) -> None:
    """A line that is not JSON is a failed record: text that is not UTF-8 too, and an empty line."""
    good = [b'{"a": 1}', b"[]", b" 1 ", b"null"]
    bad = [b'{"a": }', b"", b'"\xff"', b"1 2", b"NaN"]
    stdin = b"\n".join(good + bad)
    result = cli("run", "--format", "jsonl", "-p", "lower", "--stats", "json", stdin=stdin)
    assert result.status == 0
    assert result.out == b"\n".join(good) + b"\n"
    assert result.stats()["failed"] == len(bad)
    failure = result.stats()["first_failures"][0]
    assert failure.startswith("standard input, line 5, byte 21: jsonl: the line is not JSON: ")


# Plugins


@pytest.mark.parametrize(
    ("spec", "stdin", "expected"),
    [
        ("contains:12:00", b"at 12:00\nat 1200\n", b"at 12:00\n"),
        ("contains:", b"a\n\n", b"a\n\n"),
        ("startswith:a:b", b"a:b\nb\n", b"a:b\n"),
        ("replace:a:b:c", b"a\n", b"b:c\n"),
        (r"replace:a\:b:c", b"a:b\n", b"c\n"),
        (r"replace:\\:/", b"a\\b\n", b"a/b\n"),
        (r"replace:\t:x", b"\\t\n", b"x\n"),
        (r"replace:a:\:", b"a\n", b"\\:\n"),
        ("replace:a:", b"bab\n", b"bb\n"),
        (r"regex:^(\d+):", b"12:x\nx\n", b"12:x\n"),
        (r"regex,group=1:^(\d+):", b"12:x\nx\n", b"12\n"),
        (r"regex,group=n:(?P<n>x)", b"12:x\n", b"x\n"),
        ("json-field:a:b", b'{"a:b": "x"}\n', b"x\n"),
        ("json-field,missing=filter:a", b'{}\n{"a": 1.50}\n', b"1.50\n"),
        ("json-field,missing=skip:a", b"{}\n", b"{}\n"),
        ("upper", b"a\n", b"A\n"),
        ("lower", b"A\n", b"a\n"),
    ],
)
def test_builtin_plugins(cli: Cli, spec: str, stdin: bytes, expected: bytes) -> None:
    """How their arguments are written."""
    assert cli.map("-p", spec, stdin=stdin) == expected


def test_argument_that_is_not_text(cli: Cli) -> None:
    """The very bytes of the command line are looked for."""
    result = subprocess.run(
        [*map(os.fsencode, COMMAND), b"run", b"-p", b"contains:\xff", b"--stats", b"none"],
        input=b"\xff\n\xc3\xbf\n",
        stdout=subprocess.PIPE,
        cwd=cli.directory,
        env=cli.environment,
        check=True,
    )
    assert result.stdout == b"\xff\n"


@each_backend
@pytest.mark.parametrize("spec", ["plug:double", "plug.py:double", "./plug.py:double"])
def test_own_plugins(cli: Cli, spec: str) -> None:
    """A module of the working directory, or a file."""
    assert cli.map("-p", spec, stdin=b"a\n") == b"aa\n"


def test_file_imports_from_beside_it(cli: Cli) -> None:
    """As a script does."""
    cli.path("sub").mkdir()
    cli.write("sub/helper.py", b"number = 3\n")
    cli.write(
        "sub/uses.py",
        b"import dataflare, helper\n@dataflare.map_plugin\ndef f(v): return v * helper.number\n",
    )
    assert cli.map("-p", "sub/uses.py:f", stdin=b"a\n") == b"aaa\n"


@pytest.mark.parametrize("attribute", ["Coded", "make"])
def test_classes_and_factories(cli: Cli, attribute: str) -> None:
    """They are called for the plugin."""
    result = cli("run", "-p", f"plug.py:{attribute}", "--stats", "json", stdin=b"a\n")
    assert result.stats()["first_failures"] == ["standard input, line 1, byte 0: Coded: never"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing", "there is no plugin 'nothing': 'dataflare plugins' lists the names"),
        ("nothing.x", "neither one that 'dataflare plugins' lists nor module:attribute"),
        ("nothing.x:x", "the module 'nothing.x'"),
        (
            "contain:ERROR",
            "there is neither a plugin nor a module 'contain'; did you mean 'contains'? "
            "'dataflare plugins' lists the names",
        ),
        ("plug.py", "plug.py is a file: say which plugin in it, as plug.py:NAME"),
        ("plug.py:plain:3", "a plugin in a file takes no arguments: write a function in it"),
        ("kl.pyx:LongLines:3", "a plugin in a file takes no arguments: write a function in it"),
        ("plug.py:dict", "has no 'dict'"),
        ("init.py:NOT", "init.py:NOT is an int: neither a plugin nor a class or function that"),
        ("init.py:Arg", "such as: def make(): return Arg(...)"),
        ("init.py:Arg", "Arg needs the argument 'n': name a function that makes it"),
        ("init.py:Plain", "Plain is not derived from DataFlarePlugin"),
        ("nothing.py:x", "there is no file"),
        ("plug.py:nothing", "has no 'nothing'"),
        ("plug:nothing", "the module 'plug' has no 'nothing'"),
        ("plug.py:plain", "decorate it with dataflare.map_plugin"),
        ("plug.py:PLUGINS", "has no 'PLUGINS'"),
        ("plug.py:os", "plug.py:os is a module: neither a plugin nor a class or function that"),
        ("plug.py:Needy", "failed to initialize: KeyError: 'since'"),
        ("broken.py:x", "SyntaxError"),
        ("script.py:x", "failed: SystemExit: 0"),
        ("plug.py:quit_", "failed to make a plugin: SystemExit: 0"),
        ("contains", "it is written contains:TEXT"),
        ("upper:x", "upper takes no argument"),
        ("replace:x", "it is written replace:OLD:NEW"),
        ("replace::x", "old cannot be empty"),
        ("regex:(", "'(' is not a regular expression"),
        ("regex,group=2:x", "has no group 2"),
        ("regex,flags=2:x", "it is written regex[,group=GROUP]:PATTERN"),
        ("json-field,missing=x:a", "missing must be"),
    ],
)
def test_plugins_that_cannot_be_used(cli: Cli, spec: str, words: str) -> None:
    """The sentence names the plugin and the reason; no output file appears."""
    cli.write("broken.py", b"def\n")
    cli.write(
        "init.py",
        b"import dataflare\nNOT = 1\n"
        b"class Plain: pass\n"
        b"class Arg(dataflare.DataFlarePlugin):\n"
        b"    def __init__(self, n): pass\n",
    )
    cli.write("script.py", b"import sys\nsys.exit(0)\n")
    sentence = cli.sentence("-p", spec, "-o", "out")
    assert words in sentence
    assert spec in sentence
    assert not list(cli.directory.glob("out*"))


def test_plugin_in_a_directory_with_a_colon(cli: Cli) -> None:
    """The last colon ends the path."""
    cli.path("a:b").mkdir()
    cli.write("a:b/plug.py", PLUGINS.encode())
    assert cli.map("-p", "a:b/plug.py:double", stdin=b"x\n") == b"xx\n"


def test_plugin_that_ends_the_program(cli: Cli) -> None:
    """A run that was broken off never looks like one that is complete."""
    sentence = "a plugin ended the program with exit(0)"
    assert cli.sentence("-p", "plug.py:EndsEarly", stdin=b"a\n") == sentence
    assert cli.sentence("-p", "plug.py:EndsLate", stdin=b"a\n", status=1) == sentence
    lines = b"a\nend\nb\n"
    assert cli.sentence("-p", "plug.py:ends", "-o", "out", stdin=lines, status=1) == (
        f"{sentence}; what was written of out is in {cli.partial('out')}"
    )
    assert cli.partial("out").read_bytes() == b"a\n"


@each_backend
def test_plugin_that_fails_as_a_whole(cli: Cli) -> None:
    """Every record of its batch failed."""
    result = cli("run", "-p", "plug.py:Whole", "--fail-on-error", stdin=b"a\n")
    assert (result.status, result.out) == (1, b"")
    assert "line 1, byte 0: Whole: ValueError: no batch is good" in result.err


@each_backend
def test_jobs_change_nothing_but_who_works(cli: Cli) -> None:
    """What comes out is the same, in the same order."""
    cli.write("in", b"".join(b"line %d of many, some with an ERROR\n" % i for i in range(50_000)))
    arguments = ["run", "-p", "replace:ERROR:fault", "-p", "upper", "-p", "contains:7", "in"]
    alone, together = cli(*arguments), cli(*arguments, "-j", "3")
    assert together.status == 0
    assert together.out == alone.out != b""
    assert cli("run", "-p", "upper", "-j", "0", "in").status == 2


# Records that fail


@each_backend
def test_failures_are_collected(cli: Cli) -> None:
    """The others go on; the first few are shown, and how many more there are."""
    cli.write("in", b"a\nb\n" * 8)
    result = cli("run", "-p", "plug.py:no_b", "in")
    assert (result.status, result.out) == (0, b"a\n" * 8)
    assert re.search(r"failed +8\n", result.err)
    shown = [line for line in result.err.splitlines() if line.startswith("failed: ")]
    assert shown[:2] == [
        "failed: in, line 2, byte 2: no_b: ValueError: there is a b",
        "failed: in, line 4, byte 6: no_b: ValueError: there is a b",
    ]
    assert len(shown) == 5
    assert result.err.endswith("and 3 more\n")


@each_backend
def test_fail_on_error(cli: Cli) -> None:
    """The output is complete all the same."""
    options = ["run", "-p", "plug.py:no_b", "--fail-on-error", "-o", "out"]
    assert cli(*options, stdin=b"a\nb\nc\n").status == 1
    assert cli.read("out") == b"a\nc\n"
    assert cli(*options, stdin=b"a\nc\n").status == 0


@each_backend
def test_stop_at_the_first_failure(cli: Cli) -> None:
    """What was before it is kept, and nothing behind it."""
    cli.write("in", b"a\nX\n" * 100 + b"b\n" + b"a\n" * 100)
    sentence = cli.sentence(
        *("-p", "regex:[ab]", "-p", "plug.py:no_b", "--errors", "stop", "in", "-o", "out"), status=1
    )
    kept = cli.partial("out")
    assert sentence == (
        "stopped at in, line 201, byte 400: no_b: ValueError: there is a b; "
        f"what was written of out is in {kept}"
    )
    assert kept.read_bytes() == b"a\n" * 100
    assert not cli.path("out").exists()


@each_backend
def test_stop_counts_up_to_the_failure(cli: Cli) -> None:
    """In the summary too."""
    result = cli(
        *("run", "-p", "regex:[ab]", "-p", "plug.py:no_b", "--errors", "stop", "--stats", "json"),
        stdin=b"a\nX\n" * 100 + b"b\n" * 100,
    )
    assert (result.status, result.out) == (1, b"a\n" * 100)
    stats = result.stats()
    assert not stats["complete"]
    assert (stats["records_in"], stats["records_out"], stats["filtered"], stats["failed"]) == (
        201,
        100,
        100,
        1,
    )


def test_a_plugin_gets_what_failed(cli: Cli) -> None:
    """It is written as those that the records go through; one that is none is told at once."""
    result = cli("run", "-p", "plug.py:no_b", "--errors", "plugin:plug.py:Buries", stdin=b"b\na\n")
    assert (result.status, result.out) == (0, b"a\n")
    assert cli.read("buried") == b"bValueError: there is a b\n"
    assert cli.sentence("-p", "upper", "--errors", "plugin:uper") == (
        "the plugin 'uper' cannot be used: there is no plugin 'uper'; did you mean 'upper'? "
        "'dataflare plugins' lists the names"
    )


@each_backend
def test_dead_letters(cli: Cli) -> None:
    """Each says what failed, where it stood and why."""
    cli.write("one", b"a\r\nb\xc3\xbc\n\r\nb\xff\r\nb")
    cli.write("two", b"b\x00\n")
    result = cli("run", "-p", "plug.py:no_b", "one", "two", "--errors", "bad", "-o", "out")
    assert result.status == 0
    assert cli.read("out") == b"a\r\n\r\n"
    letters = [json.loads(line) for line in cli.read("bad").splitlines()]
    why = {"plugin": "no_b", "error": "ValueError: there is a b", "code": None}
    assert letters == [
        {"input": "one", "line": 2, "offset": 3, "record": "bü", **why},
        {
            "input": "one",
            "line": 4,
            "offset": 9,
            "record_base64": base64.b64encode(b"b\xff").decode(),
            **why,
        },
        {"input": "one", "line": 5, "offset": 13, "record": "b", **why},
        {"input": "two", "line": 1, "offset": 0, "record": "b\x00", **why},
    ]


def test_dead_letters_of_a_long_input(cli: Cli) -> None:
    """Places are right over all blocks; a plugin's code is told; no failure, an empty file."""
    lines = [b"%d" % number for number in range(30_000 if cli.pure else 300_000)]
    cli.write("in", b"\n".join(lines))
    places = [(0, 0), (len(lines) // 2, 0), (len(lines) - 1, 0)]
    wanted = b"|".join(lines[index] for index, _ in places).decode()
    cli("run", "-p", f"regex:^({wanted})$", "-p", "plug.py:Coded", "in", "--errors", "bad")
    letters = [json.loads(line) for line in cli.read("bad").splitlines()]
    assert [letter["line"] for letter in letters] == [index + 1 for index, _ in places]
    content = cli.read("in")
    for letter in letters:
        record = letter["record"].encode()
        assert (content + b"\n")[letter["offset"] :].startswith(record + b"\n")
        assert letter["code"] == 7
    cli("run", "-p", "upper", "in", "--errors", "none")
    assert cli.read("none") == b""


# The summary and the bar


@each_backend
def test_summary_for_machines(cli: Cli) -> None:
    """Every count is exact."""
    cli.write("in", b"a\nb\nXY\r\n")
    result = cli("run", "-p", "regex:[ab]", "-p", "plug.py:no_b", "in", "--stats", "json")
    stats = result.stats()
    assert stats.pop("seconds") > 0
    assert stats.pop("records_per_second") > 0
    assert stats.pop("bytes_per_second") > 0
    assert 0 < stats.pop("p50_batch_latency") <= stats.pop("p99_batch_latency")
    assert stats == {
        "complete": True,
        "records_in": 3,
        "records_out": 1,
        "filtered": 1,
        "failed": 1,
        "bytes_in": 8,
        "bytes_out": 2,
        "first_failures": ["in, line 2, byte 2: no_b: ValueError: there is a b"],
    }


def test_summary_for_people(cli: Cli) -> None:
    """A table on standard error; without an input the figures are zero."""
    result = cli("run", "-p", "contains:a", stdin=b"a\n" * 1234 + b"b\n")
    assert re.search(r"records in +1,235\nrecords out +1,234\nfiltered +1\n", result.err)
    assert re.search(r"read +2.47 kB\n", result.err)
    assert re.search(r"records in +0\n", cli("run", "-p", "upper").err)


def run_on_terminal(cli: Cli, *arguments: object, **options: Any) -> tuple[int, bytes]:
    """Run with standard error on a terminal; returns the exit status and what it showed."""
    controller, terminal = pty.openpty()
    with cli.start("run", *arguments, stderr=terminal, **options) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(controller, 65536)
            except OSError:  # the other end is closed
                break
        process.communicate(timeout=60)
    os.close(controller)
    return process.returncode, shown


def test_bar_on_a_terminal(cli: Cli) -> None:
    """Bytes, rate and records; silence in a pipe."""
    cli.environment |= {"TERM": "xterm", "COLUMNS": "100"}
    cli.write("in", b"a\n" * 30)
    arguments = ("-p", "plug.py:slow", "in", "--stats", "none")
    status, shown = run_on_terminal(cli, *arguments, "-o", "out")
    assert status == 0
    assert b"records" in shown
    assert b"60/60 bytes" in shown
    assert b"/s" in shown
    result = cli("run", *arguments)
    assert (result.status, result.err) == (0, "")


def test_no_bar_between_lines(cli: Cli) -> None:
    """Where the lines go to the terminal, the bar would be in their way."""
    controller, terminal = pty.openpty()
    with cli.start(
        *("run", "-p", "upper", "--stats", "none"), stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        process.communicate(b"a\n", timeout=60)
        assert os.read(controller, 65536) == b"A\r\n"
    os.close(controller)


# Outputs


def test_output_replaces_a_file_when_complete(cli: Cli) -> None:
    """Until then the old one stands, also if the run fails; permissions stay."""
    cli.write("out", b"old\n")
    cli.path("out").chmod(0o600)
    with cli.start("run", "-p", "upper", "-o", "out") as process:
        assert process.stdin is not None
        process.stdin.write(b"new\n")
        process.stdin.flush()
        wait_for(lambda: any(p.stat().st_size for p in cli.directory.glob("out.*.partial")))
        assert cli.read("out") == b"old\n"
        process.stdin.close()
        process.wait(60)
    assert cli.read("out") == b"NEW\n"
    assert cli.path("out").stat().st_mode & 0o777 == 0o600
    assert not list(cli.directory.glob("out.*"))


@pytest.mark.parametrize("output", ["/dev/stdout", "-", "/dev/fd/1"])
def test_standard_output_by_name(cli: Cli, output: str) -> None:
    """It is appended to what the shell opened, and not replaced."""
    cli.write("all", b"before\n")
    with cli.path("all").open("ab") as appended:
        assert cli("run", "-p", "upper", "-o", output, stdin=b"a\n", stdout=appended).status == 0
    assert cli.read("all") == b"before\nA\n"


def test_devices(cli: Cli) -> None:
    """They are written directly."""
    assert cli("run", "-p", "upper", "-o", "/dev/null", stdin=b"a\n").status == 0
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null")


def test_full_disk(cli: Cli) -> None:
    """As output, as standard output and as the file of dead letters."""
    full = "cannot write /dev/full: No space left on device"
    assert cli.sentence("-p", "upper", "-o", "/dev/full", stdin=b"a\n", status=1) == full
    options = ("-p", "plug.py:no_b", "--errors", "/dev/full")
    assert cli.sentence(*options, stdin=b"a\nb\n", status=1) == full
    with open("/dev/full", "wb") as device:
        assert cli.sentence("-p", "upper", stdin=b"a\n", stdout=device, status=1) == (
            "cannot write standard output: No space left on device"
        )


def test_disk_that_fills_up(cli: Cli) -> None:
    """What was written is kept, and the sentence says where."""
    cli.write("in", b"0123456789abcde\n" * 200_000)
    sentence = cli.sentence(
        *("-p", "upper", "in", "-o", "out"),
        status=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    kept = cli.partial("out")
    assert sentence == (f"cannot write out: File too large; what was written of out is in {kept}")
    assert kept.read_bytes() == b"0123456789ABCDE\n" * (1 << 16)


def test_standard_error_that_nobody_can_read(cli: Cli) -> None:
    """The run is complete all the same, and says so by its status."""
    for stats in ("table", "json"):
        with open("/dev/full", "wb") as device:
            run = ("run", "-p", "plug.py:no_b", "--stats", stats)
            result = cli(*run, stdin=b"a\nb\n", stderr=device)
        assert (result.status, result.out) == (0, b"a\n")


@each_backend
def test_closed_pipe(cli: Cli) -> None:
    """`| head` ends the run without a word."""
    cli.write("in", b"some line\n" * 500_000)
    with cli.start("run", "-p", "contains:some", "in") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"some line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_closed_pipe_keeps_dead_letters(cli: Cli) -> None:
    """They are a file of their own, of which nobody else would know that it is incomplete."""
    cli.write("in", b"a\nb\n" * 100_000)
    with cli.start("run", "-p", "plug.py:no_b", "in", "--errors", "bad") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(100):  # until batches with failures were written
            assert process.stdout.readline() == b"a\n"
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 141
    assert err == f"dataflare: what was written of bad is in {cli.partial('bad')}\n"


# Reports


def report(cli: Cli, name: str = "report.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli.read(name))
    return found


@each_backend
def test_report(cli: Cli) -> None:
    """As JSON and as a page; its figures are those of the run, and nothing else is said."""
    cli.write("in", b"a\nb\n" * 8)
    run = ("-p", "plug.py:no_b", "-p", "upper", "in", "-o", "out", "--report")
    for name in ("report.json", "report.html"):
        result = cli("run", *run, name, "--stats", "none")
        assert (result.status, result.out) == (0, b"")
        assert result.err == (
            "dataflare: 8 of 16 records failed, the first at in, line 2, byte 2: "
            "no_b: ValueError: there is a b\n"
        )
        assert cli.read("out") == b"A\n" * 8
    (metrics,) = report(cli)["metrics"].values()
    assert (metrics["total_processed"], metrics["successful"], metrics["failed"]) == (16, 8, 8)
    assert report(cli)["samples"][-1]["plugins"]["plug.py:no_b | upper"]["errors"] == {
        "ValueError": 8
    }
    assert report(cli)["versions"]["backend"] == ("python" if cli.pure else "cython")
    assert b"plug.py:no_b | upper" in cli.read("report.html")
    assert not list(cli.directory.glob("*.partial"))


def test_report_over_time(cli: Cli) -> None:
    """A run of a second has samples on its way, also while it waits for input."""
    with cli.start(
        *("run", "-p", "upper", "--report", "report.json", "--stats", "none"), bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(b"a\n")
            assert process.stdout.readline() == b"A\n"
            time.sleep(1)  # five times as long as between two samples
        process.stdin.close()
        assert process.wait(60) == 0
    counts = [each["plugins"]["upper"]["total_processed"] for each in report(cli)["samples"]]
    assert counts == sorted(counts)
    assert {1, 2} <= set(counts)


def test_report_of_a_plugin_whose_name_is_no_text(cli: Cli) -> None:
    """The bytes of the command line are written out."""
    arguments = [b"run", b"-p", b"contains:\xff", b"--stats", b"none", b"--report"]
    for name in (b"report.json", b"report.html"):
        subprocess.run(
            [*map(os.fsencode, COMMAND), *arguments, name],
            input=b"\xff\n",
            stdout=subprocess.DEVNULL,
            cwd=cli.directory,
            env=cli.environment,
            check=True,
        )
    assert list(report(cli)["metrics"]) == ["contains:\\udcff"]


def test_report_of_a_run_that_stops(cli: Cli) -> None:
    """At a failed record."""
    cli.write("in", b"a\n" * 10 + b"b\n")
    sentence = cli.sentence(
        *("-p", "plug.py:no_b", "in", "--errors", "stop", "--report", "report.json"), status=1
    )
    assert sentence.startswith("stopped at in, line 11")
    (metrics,) = report(cli)["metrics"].values()
    assert metrics["failed"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_report_of_a_run_that_is_ended(cli: Cli, number: signal.Signals) -> None:
    """By Ctrl-C or SIGTERM: of what was processed until then."""
    cli.write("in", b"".join(b"%d\n" % each for each in range(100_000)))
    with cli.start(
        *("run", "-p", "plug.py:slow", "in", "-o", "out", "--report", "report.json")
    ) as process:
        wait_for(lambda: cli.path("seen").exists() and len(cli.read("seen")) > 20)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    (metrics,) = report(cli)["metrics"].values()
    assert metrics["total_processed"] > 0
    assert report(cli)["samples"]


def test_report_when_the_reader_goes_away(cli: Cli) -> None:
    """`| head` ends the run, and the report is there."""
    cli.write("in", b"some line\n" * 500_000)
    with cli.start(*("run", "-p", "contains:some", "in", "--report", "report.html")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"some line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    assert cli.read("report.html").endswith(b"</html>\n")


def test_reports_that_cannot_be_written(cli: Cli) -> None:
    """Said before anything is begun."""
    cli.write("in.json", b"a\n")
    run = ("-p", "upper", "in.json", "-o", "out", "--report")
    assert cli.sentence(*run, "report.pdf") == (
        "a report is a file that ends with .html or .json, not report.pdf"
    )
    assert cli.sentence(*run, "none/report.html") == (
        f"cannot write none/report.html: there is no directory {cli.directory}/none"
    )
    assert cli.sentence(*run, "in.json") == "in.json is both input and output"
    assert cli.sentence("-p", "upper", "in.json", "-o", "x.json", "--report", "x.json") == (
        "x.json is given as --report and as another output"
    )
    cli.path("closed").mkdir()
    cli.path("closed").chmod(0o555)
    assert cli.sentence(*run, "closed/a.json", preexec_fn=drop_root) == (
        "cannot write closed/a.json: Permission denied"
    )
    cli.path("closed").chmod(0o755)
    assert sorted(os.listdir(cli.directory)) == ["closed", "in.json", "plug.py"]


def test_a_report_that_fails_at_the_end(cli: Cli) -> None:
    """The output is complete all the same; the sentence and the status tell."""
    sentence = cli.sentence(
        *("-p", "upper", "-o", "out", "--report", "report.json"),
        stdin=b"a\n",
        status=1,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    assert sentence == "no report: cannot write report.json: File too large"
    assert cli.read("out") == b"A\n"
    assert sorted(os.listdir(cli.directory)) == ["out", "plug.py"]


# Files that cannot be used


def drop_root() -> None:
    """Make permissions count for root too: without the two capabilities that override them."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_inputs_that_cannot_be_read(cli: Cli) -> None:
    """Said before anything is begun, whichever input it is."""
    cli.write("in", b"a\n")
    cli.write("secret", b"a\n")
    cli.path("secret").chmod(0)
    run = ("-p", "upper", "-o", "out", "in")
    assert cli.sentence(*run, "none") == "cannot read none: No such file or directory"
    assert cli.sentence(*run, ".") == "cannot read .: Is a directory"
    assert cli.sentence(*run, "secret", preexec_fn=drop_root) == (
        "cannot read secret: Permission denied"
    )
    assert not list(cli.directory.glob("out*"))


@each_backend
def test_input_that_fails_on_the_way(cli: Cli) -> None:
    """What came before it is kept."""
    cli.write("in", b"a\n")
    sentence = cli.sentence("-p", "upper", "in", "/proc/self/mem", "-o", "out", status=1)
    kept = cli.partial("out")
    assert sentence == (
        f"cannot read /proc/self/mem: Input/output error; what was written of out is in {kept}"
    )
    assert kept.read_bytes() == b"A\n"


def test_outputs_that_cannot_be_written(cli: Cli) -> None:
    """A missing directory, a directory, a file or directory that must not be written."""
    cli.path("closed").mkdir()
    cli.write("closed/file", b"")
    cli.path("closed/file").chmod(0o444)
    run = ("-p", "upper", "-o")
    assert cli.sentence(*run, "none/out") == (
        f"cannot write none/out: there is no directory {cli.directory}/none"
    )
    assert cli.sentence(*run, ".") == "cannot write .: Is a directory"
    assert cli.sentence(*run, "closed/file", preexec_fn=drop_root) == (
        "cannot write closed/file: Permission denied"
    )
    assert cli.sentence(*run, "new/") == "cannot write new/: Is a directory"
    assert cli.sentence(*run, "") == "the name of the output is empty"
    cli.path("closed").chmod(0o555)
    assert cli.sentence(*run, "closed/new", preexec_fn=drop_root) == (
        "cannot write closed/new: Permission denied"
    )
    cli.path("closed").chmod(0o755)


def test_output_that_is_an_input(cli: Cli) -> None:
    """Refused under any name, as standard output and for dead letters; the file stays."""
    cli.write("in", b"a\n")
    cli.path("link").symlink_to("in")
    for output in ("in", "link", "./in"):
        assert (
            cli.sentence("-p", "upper", "in", "-o", output) == f"{output} is both input and output"
        )
    assert cli.sentence("-p", "upper", "in", "--errors", "in") == "in is both input and output"
    with cli.path("in").open("ab") as appended:
        assert cli.sentence("-p", "upper", "in", stdout=appended) == (
            "standard output is both input and output"
        )
    with (
        cli.path("in").open("rb") as read,
        cli.start("run", "-p", "upper", "-o", "in", stdin=read) as process,
    ):
        _, err = process.communicate(timeout=60)
    assert err == b"dataflare: in is both input and output\n"
    assert cli.read("in") == b"a\n"
    assert cli.sentence("-p", "upper", "-o", "x", "--errors", "x") == (
        "x is given as -o and as --errors"
    )
    with cli.path("x").open("wb") as shared:
        assert cli.sentence("-p", "upper", "--errors", "x", stdout=shared) == (
            "standard output is given as -o and as --errors"
        )
        assert cli.sentence("-p", "upper", "--errors", "-", "-o", "x", stdout=shared) == (
            "x is given as -o and as --errors"
        )
    cli.path("x").unlink()
    assert sorted(os.listdir(cli.directory)) == ["in", "link", "plug.py"]


# Ctrl-C


@each_backend
def test_interrupt_keeps_what_was_processed(cli: Cli) -> None:
    """Every record the plugin has seen is in the file that the sentence names."""
    cli.write("in", b"".join(b"%d\n" % number for number in range(100_000)))
    with cli.start("run", "-p", "plug.py:slow", "in", "-o", "out", "--stats", "none") as process:
        wait_for(lambda: cli.path("seen").exists() and len(cli.read("seen")) > 20)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    kept = cli.partial("out")
    assert process.returncode == 130
    assert err.decode() == f"dataflare: interrupted; what was written of out is in {kept}\n"
    assert kept.read_bytes() == cli.read("seen")


@each_backend
def test_interrupt_while_waiting_for_input(cli: Cli) -> None:
    """What came so far is out, and counted."""
    with cli.start("run", "-p", "upper", "--stats", "json", bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        assert process.stdout.readline() == b"A\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    result = Result(process.returncode, b"", err.decode())
    assert result.status == 130
    assert result.err.endswith("\ndataflare: interrupted\n")
    assert (result.stats()["records_out"], result.stats()["complete"]) == (1, False)


@each_backend
def test_second_interrupt_does_not_wait(cli: Cli) -> None:
    """Not even for a plugin that hangs."""
    with cli.start("run", "-p", "plug.py:hanging", "--stats", "none") as process:
        assert process.stdin is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        wait_for(cli.path("hanging").exists)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"dataflare: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_end_in_good_order(cli: Cli, number: signal.Signals) -> None:
    """What was written is kept, and the sentence says where, even if a plugin hangs."""
    cli.write("in", b"a\n" * 10)
    with cli.start(
        *("run", "-p", "plug.py:hanging_at_b", "in", "-", "-o", "out", "--stats", "none")
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"b\n")
        process.stdin.flush()
        wait_for(cli.path("hanging").exists)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    kept = cli.partial("out")
    assert process.returncode == 128 + number
    assert err.decode() == (
        f"dataflare: ended by {number.name}; what was written of out is in {kept}\n"
    )
    assert kept.read_bytes() == b"a\n" * 10


def test_ignored_interrupt_stays_ignored(cli: Cli) -> None:
    """As in the background of a script."""
    with cli.start(
        *("run", "-p", "upper"),
        bufsize=0,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"a\n", b"b\n"):
            process.stdin.write(line)
            assert process.stdout.readline() == line.upper()
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.wait(60) == 0


# Metrics while it runs


@dataclass
class Served:
    """A run that waits for the rest of its input, and where its metrics are."""

    process: "subprocess.Popen[bytes]"
    url: str
    pipe: Any

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


@pytest.fixture
def served(cli: Cli) -> Iterator[Served]:
    """A run over a FIFO, in which two lines were processed."""
    os.mkfifo(cli.path("pipe"))
    arguments = ["-p", "contains:a", "-p", "upper", "pipe", "--metrics-port", "0"]
    with cli.start("run", *arguments, "--stats", "none", bufsize=0) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        with cli.path("pipe").open("wb", buffering=0) as pipe:
            said = process.stderr.readline().decode()
            found = re.fullmatch(
                r"dataflare: metrics are at (http://127.0.0.1:\d+)/metrics\n", said
            )
            assert found is not None, said
            pipe.write(b"a\nb\n")
            assert process.stdout.readline() == b"A\n"
            yield Served(process, found[1], pipe)


@each_backend
def test_metrics_of_a_run(served: Served) -> None:
    """They are those of the plugins, while it waits; the run then ends as any other."""
    status, text = served.get("/metrics")
    assert status == 200
    name = r'plugin="contains:a \| upper"'
    for outcome, count in (("success", 1), ("filtered", 1), ("failed", 0)):
        wanted = rf'^dataflare_records_total{{outcome="{outcome}",{name}}} {count}\.0$'
        assert re.search(wanted, text.decode(), re.M)
    status, report = served.get("/healthz")
    assert (status, json.loads(report)["verdict"]) == (200, "healthy")
    assert served.get("/")[0] == 404
    served.pipe.write(b"ab\n")
    served.pipe.close()
    out, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, out, err) == (0, b"AB\n", b"")


def test_interrupt_ends_the_server(served: Served) -> None:
    """With the run; a client that is connected does not hold it up."""
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        served.process.send_signal(signal.SIGINT)
        _, err = served.process.communicate(timeout=60)
    assert (served.process.returncode, err) == (130, b"dataflare: interrupted\n")
    with pytest.raises(urllib.error.URLError, match="refused"):
        served.get("/metrics")


def test_metrics_port_that_cannot_be_had(cli: Cli) -> None:
    """One sentence, and no output is begun; the same without the extra."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["-p", "upper", "-o", "out", "--metrics-port", port]
        assert cli.sentence(*arguments) == (
            f"metrics cannot be served at 127.0.0.1, port {port}: address already in use"
        )
    assert cli.sentence(*arguments, "--metrics-address", "no-such-host.invalid").startswith(
        f"metrics cannot be served at no-such-host.invalid, port {port}: "
    )
    cli.write("prometheus_client.py", b"raise ImportError('as if it were not there')")
    assert cli.sentence(*arguments) == (
        "--metrics-port: dataflare.prometheus needs the package prometheus_client: "
        "pip install 'dataflare[prometheus]'"
    )
    assert {path.name for path in cli.directory.iterdir()} == {"plug.py", "prometheus_client.py"}
    assert cli("run", "-p", "upper", "--metrics-port", 65536).status == 2


# Sizes


def test_long_line(cli: Cli) -> None:
    """A line of 100 MB between short ones, from a file and from a pipe."""
    line = b"x" * 100_000_000
    cli.write("in", b"a\n" + line + b"\nb")
    expected = hashlib.sha256(b"A\n" + line.upper() + b"\nB\n").digest()
    for source in ([], ["in"]):
        stdin = b"" if source else cli.read("in")
        out = cli.map("-p", "upper", *source, stdin=stdin)
        assert hashlib.sha256(out).digest() == expected


def peak_memory(cli: Cli, name: str) -> int:
    """Bytes that were resident at most while a file was processed."""
    # Not from `os.wait4`: its figure includes the process that this one was forked from.
    code = (
        "import atexit, sys; from dataflare.cli import main\n"
        "atexit.register(lambda: sys.stdout.write(open('/proc/self/status').read())); main()"
    )
    arguments = ["run", "-p", "contains:7", "-p", "upper", name, "-o", "out"]
    status = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=cli.directory,
        env=cli.environment,
        check=True,
    ).stdout
    found = re.search(rb"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@each_backend
def test_constant_memory(cli: Cli) -> None:
    """Eight times the file takes no more memory."""
    block = b"".join(b"%060d\n" % number for number in range(16_000))
    sizes = (2, 16) if cli.pure else (32, 256)
    peaks = []
    for size in sizes:
        with cli.path("in").open("wb") as file:
            for _ in range(size):
                file.write(block)
        peaks.append(peak_memory(cli, "in"))
    assert peaks[1] < peaks[0] + (4 << 20)
    assert peaks[1] < 200_000_000


# The other commands


def test_usage(cli: Cli) -> None:
    """Status 2, and a sentence."""
    for arguments in (["run", "in"], ["run", "-p"], ["run", "--nothing"], ["nothing"]):
        result = cli(*arguments)
        assert result.status == 2
        assert "Error: " in result.err
        assert "Traceback" not in result.err
    assert cli("run", "-p", "upper", "--format", "xml").status == 2
    assert cli("run", "-p", "upper", "--stats", "xml").status == 2


def test_debug(cli: Cli) -> None:
    """With it, and only with it, there is a traceback."""
    arguments = ("run", "-p", "upper", "none")
    assert "Traceback" not in cli(*arguments).err
    result = cli(*arguments, "--debug")
    assert "Traceback" in result.err
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("dataflare: ")


def test_what_a_plugin_prints_is_no_output(cli: Cli) -> None:
    """It goes to standard error: when its file is loaded, and at every record."""
    cli.write(
        "loud.py",
        b"import dataflare\nprint('loaded')\n@dataflare.map_plugin\n"
        b"def loud(value):\n    print('at', value)\n    return value\n",
    )
    result = cli("run", "-p", "loud.py:loud", "--stats", "none", stdin=b"a\n")
    assert (result.status, result.out) == (0, b"a\n")
    assert result.err.splitlines() == ["loaded", "at b'a'"]


def test_a_clean_up_that_fails_is_said(cli: Cli) -> None:
    """What it was to write may be lost: the status is 1."""
    cli.write(
        "unclean.py",
        b"import dataflare\nclass Unclean(dataflare.DataFlarePlugin):\n"
        b"    def process(self, record):\n        return dataflare.PluginResult.skip()\n"
        b"    def cleanup(self):\n        raise OSError('disk')\n",
    )
    result = cli("run", "-p", "unclean.py:Unclean", "--stats", "none", stdin=b"a\n")
    assert (result.status, result.out) == (1, b"a\n")
    assert result.err.endswith("failed: OSError: disk\n")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("regex,group:a", "group has no value: it is written regex[,group=GROUP]:PATTERN"),
        ("regex,group=1,group=2:a", "group is given twice"),
    ],
)
def test_options_of_a_plugin_that_say_nothing(cli: Cli, spec: str, sentence: str) -> None:
    """None is ignored."""
    result = cli("run", "-p", spec, stdin=b"a\n")
    assert result.status == 2
    assert sentence in result.err


def test_help(cli: Cli) -> None:
    """Every command has one."""
    for arguments in ([], ["run"], ["plugins"], ["info"]):
        result = cli(*arguments, "--help")
        assert result.status == 0
        assert result.out.startswith(b"Usage: ")


def test_plugins(cli: Cli) -> None:
    """The form of each, and what it does."""
    out = cli("plugins").out.decode()
    for form in ("contains:TEXT", "replace:OLD:NEW", "json-field[,missing=error|filter|skip]:NAME"):
        assert f"{form}\n    " in out
    assert "Keeps the records" in out


@each_backend
def test_info(cli: Cli) -> None:
    """Versions, the backend and the instruction sets."""
    rows = dict(
        re.split(" {2,}", line.rstrip(), maxsplit=1)
        for line in cli("info").out.decode().splitlines()
    )
    assert rows["dataflare"] == version("dataflare")
    assert rows["NumPy"] == version("numpy")
    assert rows["Python"].endswith(sys.version.split()[0])
    assert rows["backend"] == ("python" if cli.pure else "cython")
    assert rows["SIMD in use"] in rows["SIMD available"].split(", ")


def test_installed_command(cli: Cli) -> None:
    """The script that pip installs is the same command."""
    script = Path(sysconfig.get_path("scripts")) / "dataflare"
    out = subprocess.run([script, "--version"], stdout=subprocess.PIPE, check=True).stdout
    assert out.decode() == f"dataflare {version('dataflare')}\n"
    assert cli("--version").out == out


def test_closed_standard_error(cli: Cli) -> None:
    """What would be said there goes nowhere, and least of all into the output."""
    with cli.start("run", "-p", "upper", stderr=None, preexec_fn=lambda: os.close(2)) as process:
        out, _ = process.communicate(b"a\n", timeout=60)
    assert (process.returncode, out) == (0, b"A\n")


def test_missing_extra(cli: Cli) -> None:
    """One sentence that says what to install."""
    code = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name: None if name == 'typer' else find(name)\n"
        "from dataflare.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        cwd=cli.directory,
        env=cli.environment,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        b"dataflare: the command line needs an extra: pip install 'dataflare[cli]'\n"
    )


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("run", "[OPTIONS] [INPUT]..."),
        ("check", "[OPTIONS] PLUGIN"),
        ("new", "[OPTIONS] NAME"),
        ("build", "[OPTIONS] FILE.pyx"),
    ],
)
def test_the_line_of_usage(cli: Cli, command: str, usage: str) -> None:
    """What must be given stands as it is, without braces."""
    said = cli(command, "--help").out.decode().splitlines()[0]
    assert said.endswith(f" {command} {usage}")
