"""Native plugins of a single file: built once, kept, used, and refused in a sentence."""

import errno
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_threads

from dataflare import building
from dataflare.errors import PluginConfigurationError

COMMAND = [sys.executable, "-W", "error", "-m", "dataflare.cli"]
LONG = """
from dataflare cimport FILTERED, SKIP, Emitter, NativePlugin, Record


cdef class Long(NativePlugin):
    \"\"\"Keeps the values of more than three bytes.\"\"\"

    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return SKIP if record.value.size > 3 else FILTERED
"""


class Workshop:
    """A folder of sources, with a cache and a compiler that notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler is not None, "a C compiler is needed"
        wrapper = folder / "noting-cc"
        wrapper.write_text(f'#!/bin/sh\necho called >> {folder}/calls\nexec {compiler} "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            **os.environ,
            "CC": str(wrapper),
            "CFLAGS": "-O0",
            "DATAFLARE_CACHE": str(folder / "cache"),
        }
        self.write("long.pyx", LONG)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def calls(self) -> int:
        """How often the compiler was called."""
        noted = self.folder / "calls"
        return len(noted.read_text().splitlines()) if noted.exists() else 0

    def start(self, *command: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cli(
        self, *arguments: str, stdin: str = "", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command line."""
        with self.start(*COMMAND, *arguments, **environment) as process:
            out, err = process.communicate(stdin)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def refusal(self, file: str, **environment: str) -> str:
        """Why a file cannot be built: one sentence, on standard error alone."""
        done = self.cli("build", file, **environment)
        assert (done.returncode, done.stdout) == (2, ""), done
        [line] = done.stderr.splitlines()
        assert line.startswith("dataflare: ")
        return line.removeprefix("dataflare: ")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(scope="module")
def built(workshop: Workshop) -> Path:
    """What came of long.pyx, for which four processes asked at the same time."""
    started = [workshop.start(*COMMAND, "build", "long.pyx") for _ in range(4)]
    said = [process.communicate() for process in started]
    assert {err for _, err in said} == {""}
    [out] = {out for out, _ in said}
    return Path(out.rstrip("\n"))


def test_processes_that_start_together_build_once(workshop: Workshop, built: Path) -> None:
    """One compiles, the others wait; nothing is left beside the result."""
    assert workshop.calls() == 1
    assert built.name == f"long{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert [*built.parent.iterdir()] == [built]
    assert workshop.folder / "cache" in built.parents


def test_what_was_built_is_used(workshop: Workshop, built: Path) -> None:
    """By both ways to name it, and without a compiler."""
    workshop.write("same.pyx", "")
    (workshop.folder / "elsewhere").mkdir()
    shutil.copy(workshop.folder / "long.pyx", workshop.folder / "elsewhere")
    calls = workshop.calls()
    for place in ("long.pyx", "elsewhere/long.pyx"):
        options = ["-p", f"{place}:Long", "--stats", "none"]
        done = workshop.cli("run", *options, stdin="long line\nabc\n", PATH="")
        assert (done.stdout, done.stderr) == ("long line\n", "")
    assert workshop.calls() == calls
    code = "import long; assert long.Long()"
    with workshop.start(sys.executable, "-c", code, PYTHONPATH=str(built.parent)) as process:
        assert process.communicate() == ("", "")


def test_a_changed_file_is_another_plugin(workshop: Workshop, built: Path) -> None:
    """In the same process, too; the one that was there goes on. Neither can be imported."""
    workshop.write("changing.py", "name = 'the real module'\n")
    workshop.write("changing.pyx", LONG)
    code = (
        "import sys, dataflare\n"
        "manager = dataflare.PluginManager(dataflare.PluginManagerConfig(\n"
        "    batch_config=dataflare.BatchConfig(parallelism=2)))\n"
        "def show():\n"
        "    for name in manager.list_plugins():\n"
        "        print(name, manager.process_batch(name, ['abc', 'abcd']).output.to_pylist())\n"
        "manager.register_plugin('a', 'changing.pyx:Long')\n"
        "source = open('changing.pyx').read()\n"
        "open('changing.pyx', 'w').write(source.replace('> 3', '> 2'))\n"
        "manager.register_plugin('b', 'changing.pyx:Long', fallback='changing.pyx:Long')\n"
        "show()\n"
        "manager.replace_plugin('a', 'changing.pyx:Long')\n"
        "show()\n"
        "print(manager.get_system_status().plugins['b'].instances)\n"
        "import changing\n"
        "print(changing.name)\n"
        "manager.close()\n"
    )
    with workshop.start(sys.executable, "-c", code, PYTHONPATH=str(workshop.folder)) as process:
        out, err = process.communicate()
    assert err == ""
    assert out.splitlines() == [
        "a [b'abcd']",
        "b [b'abc', b'abcd']",
        "a [b'abc', b'abcd']",
        "b [b'abc', b'abcd']",
        "2",
        "the real module",
    ]


def test_what_does_not_compile(workshop: Workshop) -> None:
    """What Cython or the compiler says, with the place in the file, and no traceback."""
    workshop.write("sub-wrong.pyx", LONG.replace("record.value.size", "rekord"))
    workshop.write("lacking.pyx", 'cdef extern from "nothing.h":\n    int f()\nf()\n')
    for arguments in (["build", "sub-wrong.pyx"], ["run", "-p", "sub-wrong.pyx:Long", "-o", "out"]):
        done = workshop.cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        first, *rest = done.stderr.splitlines()
        assert first.startswith("dataflare: ")
        assert first.endswith("sub-wrong.pyx does not compile:")
        assert "sub-wrong.pyx:9:23: undeclared name not builtin: rekord" in rest
        assert "Traceback" not in done.stderr
    assert not (workshop.folder / "out").exists()
    done = workshop.cli("build", "lacking.pyx")
    assert done.stderr.startswith("dataflare: lacking.pyx does not compile:\n")
    assert "nothing.h: No such file" in done.stderr


def test_what_is_needed_and_missing(workshop: Workshop) -> None:
    """A sentence for each: compiler, Cython, headers, a cache, the file itself."""
    workshop.write("new.pyx", LONG + "# new\n")
    no_cc = workshop.refusal("new.pyx", CC="", PATH="")
    assert no_cc.startswith("building a native plugin needs a C compiler, and there is no ")
    assert "there is no 'no-such-cc'" in workshop.refusal("new.pyx", CC="no-such-cc -O2")

    blocked = workshop.folder / "blocked"
    (blocked / "Cython").mkdir(parents=True)
    cython = blocked / "Cython" / "__init__.py"
    cython.write_text("raise ImportError\n")
    needs = "building a native plugin needs Cython"
    there = str(blocked)
    assert workshop.refusal("new.pyx", PYTHONPATH=there) == (
        f"{needs}: pip install 'dataflare[build]'"
    )
    cython.write_text("__version__ = '3.0.11'\n")
    assert workshop.refusal("new.pyx", PYTHONPATH=there).startswith(
        f"{needs} 3.1 or newer, and this is 3.0.11: "
    )
    shutil.rmtree(blocked / "Cython")
    (blocked / "sitecustomize.py").write_text(
        "import sysconfig\nsysconfig.get_path = lambda name: '/no/headers'\n"
    )
    assert "there is no Python.h in /no/headers" in workshop.refusal("new.pyx", PYTHONPATH=there)

    cache = str(workshop.folder / "long.pyx" / "cache")
    assert workshop.refusal("new.pyx", DATAFLARE_CACHE=cache) == (
        f"building a native plugin writes to the cache {cache}, and that failed: Not a directory: "
        f"let DATAFLARE_CACHE be a directory that can be written"
    )
    assert workshop.refusal("no.pyx") == "there is no file no.pyx"
    assert workshop.refusal("calls") == "calls is not a .pyx file"
    assert workshop.refusal("new.pyx", DATAFLARE_PURE_PYTHON="1").startswith(
        "a native plugin needs the compiled backend: unset DATAFLARE_PURE_PYTHON"
    )


# In this process, without a compiler


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The sources that would have been compiled; what comes of them is their own text."""
    sources: list[bytes] = []

    def compile(path: str, source: bytes, name: str, command: object, folder: Path) -> Path:
        sources.append(source)
        (folder / "built").write_bytes(source)
        return folder / "built"

    monkeypatch.setattr(building, "_compile", compile)
    monkeypatch.setenv("DATAFLARE_CACHE", str(tmp_path / "cache"))
    for name in ("CC", "CFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return sources


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a plugin ü.pyx"
    path.write_text("source")
    return path


def test_the_name_of_a_result_has_all_that_it_depends_on(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: the same again is not built again."""
    package = tmp_path / "package"
    changes: list[Callable[[], object]] = [
        lambda: source.write_text("another source"),
        lambda: monkeypatch.setenv("CFLAGS", "-O1"),
        lambda: monkeypatch.setenv("LDFLAGS", "-lm"),
        lambda: monkeypatch.setenv("CC", "cc -pipe"),
        lambda: monkeypatch.setattr(building, "VERSION", "9.9"),
        lambda: monkeypatch.setattr(sys, "version", "3.99"),
        lambda: monkeypatch.setattr("Cython.__version__", "9.9"),
        lambda: monkeypatch.setattr(building.np, "__version__", "9.9"),
        lambda: monkeypatch.setattr(building, "NativePlugin", type("NativePluginABI99", (), {})),
        lambda: (package / "__init__.pxd").write_text("another interface"),
        lambda: (package / "include" / "dataflare.h").write_text("another header"),
    ]
    shutil.copytree(building._PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "*.py"))
    monkeypatch.setattr(building, "_PACKAGE", package)
    seen = [building.build(source)]
    for change in changes:
        change()
        seen.append(building.build(source))
        assert building.build(source) == seen[-1]
    assert len(set(seen)) == len(compiled) == len(changes) + 1
    assert {path.name.partition(".")[0] for path in seen} == {"a_plugin__"}


def test_threads_that_start_together_build_once(compiled: list[bytes], source: Path) -> None:
    """The lock is one between threads, too."""
    found: list[Path] = []
    run_threads(*[lambda: found.append(building.build(source))] * 4)
    assert len(set(found)) == len(compiled) == 1


def test_a_cache_that_fails_in_the_middle(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half is left, and the next attempt begins anew."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(PluginConfigurationError, match=r"the cache .*No space left"):
            building.build(source)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert building.build(source).read_text() == "source"


def test_what_another_user_built_is_not_run(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless that is the superuser."""
    built = building.build(source)
    if os.geteuid() == 0:
        os.chown(built, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: -1)
    with pytest.raises(PluginConfigurationError, match="belongs to another user"):
        building.build(source)


def test_what_is_built_and_cannot_be_loaded(compiled: list[bytes], source: Path) -> None:
    """The sentence says where it is."""
    with pytest.raises(PluginConfigurationError) as caught:
        building.import_file(source)
    assert str(building.build(source)) in str(caught.value)
    assert re.search("failed: ImportError: ", str(caught.value))


def test_options_of_setuptools_are_not_passed_over(compiled: list[bytes], source: Path) -> None:
    """What the author asks for is not left out in silence."""
    source.write_text("# a plugin\n# distutils: libraries = z\n")
    with pytest.raises(PluginConfigurationError, match="says '# distutils: libraries = z'"):
        building.build(source)


def test_names_that_are_no_identifiers(compiled: list[bytes], tmp_path: Path) -> None:
    """C wants one."""
    path = tmp_path / "1-2.pyx"
    path.write_text("source")
    assert building.build(path).name.startswith("_1_2.")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG specification says, and where macOS has them; a variable of ours comes first."""
    monkeypatch.delenv("DATAFLARE_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert building.cache_directory() == Path("/caches/dataflare")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert building.cache_directory() == Path("/home/ada/.cache/dataflare")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert building.cache_directory() == Path("/home/ada/Library/Caches/dataflare")
    monkeypatch.setenv("DATAFLARE_CACHE", "here")
    assert building.cache_directory() == Path.cwd() / "here"
