"""Plugins that installed packages bring: real distributions, in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LINES = """
import dataflare

with open(__file__ + ".imported", "a") as file:
    file.write("x")
print("lines is imported")

@dataflare.map_plugin
def shout(value):
    '''Ends with a mark.'''
    return value + b"!"

class Cut(dataflare.DataFlarePlugin):
    '''Keeps the first bytes.'''
    def __init__(self, size: int, end: "bytes | None" = b"", *, twice: bool = False, more=""):
        self.size, self.end, self.times, self.more = size, end, 1 + twice, more
    def process(self, record):
        value = bytes(record.value)[: self.size] * self.times + self.end
        return dataflare.PluginResult.success(value + repr(self.more).encode() * (self.more != ""))

class Between(dataflare.DataFlarePlugin):
    def __init__(self, left: bytes, right, share: float = 0.5):
        self.left, self.right, self.share = left, right, share
    def process(self, record):
        return dataflare.PluginResult.success(repr((self.left, self.right, self.share)).encode())

class Versioned(dataflare.DataFlarePlugin):
    '''Has a version of its own.'''
    def info(self):
        kind = dataflare.PluginType.PROCESSOR
        return dataflare.PluginInfo("Versioned", "7.1", kind, "Says more.")
    def process(self, record):
        return dataflare.PluginResult.skip()

def make(name) -> dataflare.DataFlarePlugin:
    '''Something that starts with a name.'''
    if not name:
        raise ValueError("there is no name")
    return dataflare.map_plugin(lambda value: name.encode() + value)

number = 1
"""

GOOD = {
    "shout": "lines:shout",
    "cut": "lines:Cut",
    "between": "lines:Between",
    "named": "lines:make",
    "versioned": "lines:Versioned [extra]",
    "has": "dataflare.plugins:Contains",
}


EACH = """
import dataflare, json

found = []
for spec in {}:
    with dataflare.PluginManager() as manager:
        try:
            manager.register_plugin("x", spec)
            found += manager.process_batch("x", [b"line"]).output.to_pylist()
        except dataflare.PluginError as error:
            prefix = f"the plugin {{spec!r}} cannot be used: "
            found.append(str(error).removeprefix(prefix))
print(json.dumps([str(each, "utf-8") if isinstance(each, bytes) else each for each in found]))
"""


class Site:
    """A folder of packages, as pip leaves them."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder = folder
        folder.mkdir()
        variable = "1" if backend == "python" else "0"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "DATAFLARE_PURE_PYTHON": variable,
        }

    def install(
        self,
        package: str,
        plugins: Mapping[str, str] | str = "",
        version: str = "1.0",
        **modules: str,
    ) -> Path:
        """Put a package there; returns where its metadata is."""
        for module, source in modules.items():
            (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        if not isinstance(plugins, str):
            plugins = "".join(f"{name} = {place}\n" for name, place in plugins.items())
        (info / "entry_points.txt").write_text(f"[dataflare.plugins]\n{plugins}")
        return info

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run this Python, not where an unbuilt package would be found first."""
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            input=stdin,
            cwd=tempfile.gettempdir(),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def cli(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return self.run("-m", "dataflare.cli", *arguments, stdin=stdin)

    def map(self, plugin: str) -> str:
        """What a run makes of a line that says "line"."""
        done = self.cli("run", "-p", plugin, "--stats", "none", stdin="line\n")
        assert (done.returncode, done.stderr.removeprefix("lines is imported\n")) == (0, "")
        return done.stdout

    def each(self, *plugins: str) -> list[str]:
        """What each of the plugins makes of "line", or why it cannot be used; in one process."""
        said = self.script(EACH.format(plugins)).removeprefix("lines is imported\n")
        found: list[str] = json.loads(said)
        return found

    def script(self, code: str) -> str:
        """What Python code prints, which must end well."""
        done = self.run("-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listed(self) -> dict[str, Any]:
        """What the list says of the plugins of packages, by name."""
        done = self.cli("plugins", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        plugins = {
            plugin["name"]: plugin for plugin in found["plugins"] if plugin["package"] is not None
        }
        return {**plugins, "problems": found["problems"]}

    def imported(self) -> bool:
        return (self.folder / "lines.py.imported").exists()


def site_with_lines(folder: Path, backend: str) -> Site:
    """With a package of good plugins."""
    site = Site(folder, backend)
    site.install("Line-Tools", GOOD, "2.0", lines=LINES)
    return site


@pytest.fixture
def lines(tmp_path: Path) -> Site:
    """For what has nothing to do with the backend."""
    return site_with_lines(tmp_path / "site", "cython")


@pytest.fixture
def on_each(backend: SimpleNamespace, tmp_path: Path) -> Site:
    """On both backends."""
    return site_with_lines(tmp_path / "site", backend.name)


def test_nothing_is_imported_before_it_is_used(lines: Site) -> None:
    """Not by the import, nor by plugins of the library; nor is any metadata read."""
    lines.script(
        "import sys, dataflare\n"
        "assert not {'dataflare.specs', 'dataflare.places'} & sys.modules.keys()\n"
        "with dataflare.PluginManager() as manager:\n"
        "    manager.register_plugin('a', 'contains:a:b', fallback='upper')\n"
        "assert 'importlib.metadata' not in sys.modules\n"
    )
    assert lines.map("contains:n") == "line\n"
    assert lines.cli("--help").returncode == lines.cli("info").returncode == 0
    assert not lines.imported()
    assert lines.map("shout") == "line!\n"
    assert lines.imported()


def test_reading_metadata_imports_nothing(lines: Site) -> None:
    """Also when a name is looked up that no package has."""
    lines.script(
        "import dataflare\n"
        "from dataflare.discovery import read_installed\n"
        "found = {plugin.name: plugin for plugin in read_installed().plugins}\n"
        "assert found['shout'].place == 'lines:shout', found\n"
        "assert found['versioned'].place == 'lines:Versioned', found\n"
        "assert found['cut'].origin == 'Line-Tools 2.0', found\n"
        "with dataflare.PluginManager() as manager:\n"
        "    try:\n"
        "        manager.register_plugin('x', 'whisper')\n"
        "    except dataflare.PluginConfigurationError as error:\n"
        "        assert 'there is no plugin' in str(error)\n"
    )
    assert not lines.imported()


def test_by_name_wherever_a_plugin_is_named(on_each: Site) -> None:
    """Registered, as a fallback, as a replacement; each thread gets an instance of its own."""
    out = on_each.script(
        "import dataflare\n"
        "config = dataflare.PluginManagerConfig(\n"
        "    batch_config=dataflare.BatchConfig(parallelism=3))\n"
        "class Fails(dataflare.DataFlarePlugin):\n"
        "    def process(self, record):\n"
        "        raise ValueError\n"
        "with dataflare.PluginManager(config) as manager:\n"
        "    def run(name):\n"
        "        return manager.process_batch(name, [b'abc']).output.to_pylist()\n"
        "    manager.register_plugin('x', 'cut:2')\n"
        "    manager.register_plugin('y', Fails, fallback='cut,end=?:1')\n"
        "    manager.register_plugin('z', 'contains:b')\n"
        "    print(run('x'), run('y'), run('z'))\n"
        "    print(manager.get_system_status().plugins['x'].instances)\n"
        "    manager.replace_plugin('x', 'shout')\n"
        "    manager.replace_plugin('z', 'replace:b:-')\n"
        "    print(run('x'), run('z'))\n"
    )
    assert out.splitlines() == [
        "lines is imported",
        "[b'ab'] [b'a?'] [b'abc']",
        "3",
        "[b'abc!'] [b'a-c']",
    ]


def test_arguments_are_written_as_those_of_the_library(on_each: Site) -> None:
    """What must be given are arguments, what may be left out options; of the annotated types."""
    expected = {
        "cut:2": "li",
        "cut,end=x,twice=true:1": "llx",
        "cut,more=12:1": "l12",
        "cut,more=a:1": "l'a'",
        r"between,share=0.25:a\:b:c:d\:": r"(b'a:b', 'c:d\\:', 0.25)",
        "named:12:x ": "12:x line",
        "has:in": "line",
        "cut": "it is written cut[,end=END][,twice=true|false][,more=MORE]:SIZE",
        "cut,nothing=1:2": "it is written cut[,end=END][,twice=true|false][,more=MORE]:SIZE",
        "between:x": "it is written between[,share=SHARE]:LEFT:RIGHT",
        "shout:x": "shout takes no argument",
        "versioned:x": "versioned takes no argument",
        "cut:x": "SIZE is a whole number, not 'x'",
        "between,share=x:a:b": "share is a number, not 'x'",
        "cut,twice=1:2": "twice is true or false, not '1'",
        "named:": "named: there is no name",
    }
    assert dict(zip(expected, on_each.each(*expected), strict=True)) == expected


def test_the_list(on_each: Site) -> None:
    """Name, version, kind, origin, native or not, as JSON and for people."""
    listed = on_each.listed()
    assert listed.pop("problems") == []
    assert {name: (plugin["kind"], plugin["version"]) for name, plugin in listed.items()} == {
        "shout": ("transformer", "2.0"),
        "cut": (None, "2.0"),
        "between": (None, "2.0"),
        "named": (None, "2.0"),
        "versioned": ("processor", "7.1"),
        "has": (None, "2.0"),
    }
    assert listed["cut"]["native"] is False
    assert listed["named"]["native"] is None
    assert listed["has"]["native"] is (on_each.environment["DATAFLARE_PURE_PYTHON"] == "0")
    assert {plugin["package"] for plugin in listed.values()} == {"Line-Tools"}
    assert all(plugin["problem"] is None for plugin in listed.values())
    done = on_each.cli("plugins")
    assert done.stderr == "lines is imported\n"
    shown = done.stdout
    assert (
        "shout\n    Ends with a mark.\n    transformer, Python, version 2.0, of Line-Tools 2.0\n"
        in shown
    )
    assert (
        "versioned\n    Says more.\n    processor, Python, version 7.1, of Line-Tools 2.0\n"
        in shown
    )
    assert "between[,share=SHARE]:LEFT:RIGHT\n    Python, version 2.0" in shown
    kind = "native" if listed["has"]["native"] else "Python"
    assert f"Keeps the records that contain some bytes.\n    filter, {kind}, version " in shown


BROKEN = {
    "raises": ("raises:plugin", "cannot be loaded: ZeroDivisionError: division by zero"),
    "exits": ("exits:plugin", "cannot be loaded: SystemExit: 3"),
    "syntax": ("no_syntax:plugin", "cannot be loaded: SyntaxError"),
    "missing": ("not_there:plugin", "cannot be loaded: ModuleNotFoundError"),
    "lacks": ("lines:nothing", "the module 'lines' has no 'nothing'"),
    "formless": ("lines", "does not have the form 'module:attribute'"),
    "number": ("lines:number", "not int"),
    "bursts": ("bursts:Bursts", "failed to make a plugin: KeyError: 'no'"),
    "stranger": ("bursts:Stranger", "Stranger"),
    "other": ("bursts:Other", "was written for API version 99"),
}
BURSTS = """
import dataflare
class Bursts(dataflare.DataFlarePlugin):
    def __init__(self):
        raise KeyError("no")
class Stranger:
    pass
class Other(dataflare.DataFlarePlugin):
    def info(self):
        return dataflare.PluginInfo("other", api_version=99)
"""


def test_a_broken_package_harms_no_other(lines: Site) -> None:
    """What is wrong with each is said, in the list and where it is used."""
    lines.install(
        "broken",
        {name: place for name, (place, _) in BROKEN.items()},
        raises="1 / 0",
        exits="raise SystemExit(3)",
        no_syntax="def",
        bursts=BURSTS,
    )
    listed = lines.listed()
    for name, (_, sentence) in BROKEN.items():
        assert sentence in listed[name]["problem"], name
        assert "\n" not in listed[name]["problem"]
    assert listed["shout"]["problem"] is None
    assert lines.each("shout", "raises", "lacks") == [
        "line!",
        "the package broken 1.0 is broken: the module 'raises' cannot be loaded: "
        "ZeroDivisionError: division by zero",
        "the package broken 1.0 is broken: the module 'lines' has no 'nothing'",
    ]
    assert "    cannot be used: the package broken 1.0 is broken: " in lines.cli("plugins").stdout


def test_metadata_that_cannot_be_read(lines: Site) -> None:
    """Of one package: those of the others are found, and of it there is a sentence."""
    lines.install("garbled", "no equals sign\n", "3.0")
    other = lines.install("unrelated", "", "3.0")
    (other / "entry_points.txt").write_text("[console_scripts]\nno equals sign either\n")
    nameless = lines.install("nameless", {"quiet": "lines:shout"})
    (nameless / "METADATA").unlink()
    listed = lines.listed()
    [problem] = listed["problems"]
    assert problem.startswith("the entry points of garbled 3.0 cannot be read: ")
    assert listed["quiet"]["package"] == "a package without a name"
    shout, quiet, whisper = lines.each("shout", "quiet", "whisper")
    assert (shout, quiet) == ("line!", "line!")
    assert whisper.endswith(f"; {problem}")
    assert lines.cli("plugins").stderr.endswith(f"dataflare: {problem}\n")


def test_a_module_may_be_called_like_the_end_of_a_file(lines: Site) -> None:
    """An entry point leads to a module, never to a file."""
    (lines.folder / "suffixes").mkdir()
    for name in ("__init__", "py", "pyx"):
        (lines.folder / "suffixes" / f"{name}.py").write_text("from lines import shout\n")
    lines.install("suffixes", {"a": "suffixes.py:shout", "b": "suffixes.pyx:shout"})
    assert lines.each("a", "b") == ["line!", "line!"]


def test_a_name_that_two_packages_claim(lines: Site) -> None:
    """Belongs to neither; both are named, and each can be used by its place."""
    lines.install("other-tools", {"shout": "lines:make", "cut": "lines:Cut"})
    lines.install("double", "twice = lines:shout\ntwice = lines:Cut\n")
    sentence = (
        "the name 'shout' is claimed by Line-Tools 2.0 (lines:shout) and other-tools 1.0 "
        "(lines:make): uninstall one of them, or write module:attribute instead of the name"
    )
    shout, twice, place, other = lines.each("shout", "twice", "lines:shout", "versioned")
    assert shout == sentence
    assert twice.startswith(
        "the name 'twice' is claimed by double 1.0 (lines:Cut) and double 1.0 (lines:shout)"
    )
    assert (place, other) == ("line!", "line")
    done = json.loads(lines.cli("plugins", "--json").stdout)
    claims = [plugin for plugin in done["plugins"] if plugin["name"] == "shout"]
    assert [(claim["package"], claim["problem"]) for claim in claims] == [
        ("Line-Tools", sentence),
        ("other-tools", sentence),
    ]


def test_which_name_comes_first(lines: Site) -> None:
    """The library, then packages, then modules; names that cannot be written are told."""
    lines.install(
        "first",
        {"upper": "lines:shout", "json": "lines:make", "a b": "lines:shout", "c.d": "lines:shout"},
    )
    assert lines.each("upper", "json:decoder", "lines:shout") == ["LINE", "decoderline", "line!"]
    listed = lines.listed()
    assert listed["upper"]["problem"] == (
        "the library has a plugin of this name, which comes first"
    )
    for name in ("a b", "c.d"):
        assert "other characters than letters" in listed[name]["problem"]


def test_what_comes_earlier_in_the_path_hides_what_is_behind(lines: Site, tmp_path: Path) -> None:
    """Of one package there is one version, as for the import."""
    newer = Site(tmp_path / "newer", "cython")
    newer.install("line_tools", {"shout": "lines:Versioned"}, "3.0")
    lines.environment["PYTHONPATH"] = f"{newer.folder}{os.pathsep}{lines.folder}"
    assert lines.each("shout") == ["line"]
    assert set(lines.listed()) == {"shout", "problems"}
    newer.install("garbled", "no equals sign\n")  # then the packages are read one by one
    assert set(lines.listed()) == {"shout", "problems"}
