"""``dataflare new``: what it makes is installed and tested as its README says."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from building import QUICKLY, tools_first

from dataflare.cli import new

KINDS = {"python": [], "native": ["--native"], "c": ["--c"]}


def dataflare(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line there."""
    return subprocess.run(
        [sys.executable, "-m", "dataflare.cli", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def refusal(directory: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and sentence of a command that changes nothing."""
    before = sorted(directory.rglob("*"))
    done = dataflare(directory, "new", *arguments)
    assert sorted(directory.rglob("*")) == before
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A virtual environment that sees what is installed here."""
    made = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
    variables = {"base": str(made), "platbase": str(made)}
    site = Path(sysconfig.get_path("purelib", "venv", variables))
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_own_tests(environment, tmp_path, kind) -> None:
    """Installed as its README says."""
    made = dataflare(tmp_path, "new", f"Line.{kind}-2", *KINDS[kind])
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines()[-1].split(" && ")[0] == f"  cd Line.{kind}-2"

    # What it takes to build is here already, and no test is to need a network.
    said = made.stdout.splitlines()[-1].split(" && ")[1:]
    readme = (tmp_path / f"Line.{kind}-2" / "README.md").read_text()
    assert " && ".join(said[:-1]) + "\n" in readme
    commands = " && ".join(command for command in said if "meson-python" not in command)
    done = subprocess.run(
        ["bash", "-ec", f"{commands} -q"],
        cwd=tmp_path / f"Line.{kind}-2",
        env={**os.environ, **QUICKLY, "PATH": tools_first(environment / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_nothing_is_left_to_fill_in(tmp_path) -> None:
    """No placeholder, no trailing space; each file ends with a line end."""
    for kind, options in KINDS.items():
        assert dataflare(tmp_path, "new", f"a-{kind}", *options).returncode == 0
        files = [path for path in (tmp_path / f"a-{kind}").rglob("*") if path.is_file()]
        assert len(files) >= 6
        for path in files:
            text = path.read_text()
            assert text.endswith("\n"), path
            assert "$" not in re.sub(r"\$\{\{ [\w.]+ \}\}", "", text), path
            assert all(line == line.rstrip() for line in text.splitlines()), path
            assert all(len(line) <= 100 for line in text.splitlines()), path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "a letter comes first"),
        ("1st", "a letter comes first"),
        ("a--b", "single -, _ or . between them"),
        ("a/b", "letters and digits"),
        ("naïve", "letters and digits"),
        ("Class", "class is a keyword of Python"),
        ("json", "there is a module json already"),
        ("DataFlare", "there is a module dataflare already"),
        ("Upper", "DataFlare has a plugin upper itself"),
        ("x" * 300, "it has more than 100 characters"),
        ("None", "its class would be None, which is a keyword of Python"),
        ("numpy", "there is a module numpy already"),
        ("pytest", "there is a module pytest already"),
        ("Meson.Python", "there is a module meson_python already"),
        ("test-plugin", "there is a module test_plugin already"),
        ("record", "its class would be Record, and DataFlare has one itself"),
        ("emitter", "its class would be Emitter, and"),
        ("FILTERED", "its class would be FILTERED, and"),
        ("forward", "its class would be Forward, and"),
        ("native-plugin", "its class would be NativePlugin, and"),
        ("data-flare-plugin", "its class would be DataFlarePlugin, and"),
        ("plugin-record", "its class would be PluginRecord, and"),
        ("plugin.result", "its class would be PluginResult, and"),
        ("PluginManager", "its class would be PluginManager, and"),
    ],
)
def test_a_name_that_cannot_be_used(tmp_path, name, reason) -> None:
    """One sentence, and nothing is made."""
    status, sentence = refusal(tmp_path, name)
    assert status == 2
    assert reason in sentence
    assert len(sentence.splitlines()) == 1


def test_every_class_that_a_template_uses_is_refused() -> None:
    """What they import from DataFlare, and begins as a class of a package does."""
    used: set[str] = set()
    for template in new._TEMPLATES.rglob("*.in"):
        for names in re.findall(r"from dataflare c?import (.*)", template.read_text()):
            used |= {*names.split(", ")}
    assert {"NativePlugin", "Record", "PluginResult", "PluginManager"} <= used
    assert {name.lower() for name in used} <= new._CLASSES
    assert all(new._problem_of(name) for name in used)


def test_what_exists_is_left_alone(tmp_path) -> None:
    """A directory, a file, even a link that leads nowhere."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("mine")
    (tmp_path / "c").symlink_to("nowhere")
    for name in "abc":
        assert refusal(tmp_path, name) == (
            2,
            f"dataflare: {name} exists already: move it away, or choose another name\n",
        )


def test_a_plugin_has_one_language(tmp_path) -> None:
    """Both options together are a mistake."""
    status, text = refusal(tmp_path, "both", "--c", "--native")
    assert status == 2
    assert "in Cython or in C" in text


def test_a_directory_that_cannot_be_written(tmp_path) -> None:
    """As one that is gone, where root cannot write either: one sentence."""
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-m", "dataflare.cli", "new", "tools"]
    done = subprocess.run(
        ["bash", "-c", 'rmdir "$PWD" && exec "$@"', "bash", *command],
        cwd=gone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "dataflare: tools cannot be made: No such file or directory\n"
