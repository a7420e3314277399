"""Native plugins of a single file: built once, kept, used, and refused in a sentence."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

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
    done = workshop.cli("run", "-p", "sub-wrong.pyx:Long", "-o", "out")
    assert (done.returncode, done.stdout) == (2, "")
    first, *rest = done.stderr.splitlines()
    assert first == (
        "dataflare: the plugin 'sub-wrong.pyx:Long' cannot be used: sub-wrong.pyx does not compile:"
    )
    assert "sub-wrong.pyx:9:23: undeclared name not builtin: rekord" in rest
    assert "Traceback" not in done.stderr
    assert not (workshop.folder / "out").exists()
    done = workshop.cli("build", "lacking.pyx")
    assert (done.returncode, done.stdout) == (2, "")
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


def test_a_module_that_fails_cannot_be_loaded_again(workshop: Workshop) -> None:
    """By this process. The first error stays, and Ctrl-C is one, too."""
    workshop.write("fails.pyx", "raise ValueError('no luck')\n")
    workshop.write("impatient.pyx", "raise KeyboardInterrupt\n")
    code = (
        "from dataflare.building import import_file\n"
        "for name in ('fails', 'impatient'):\n"
        "    for _ in range(3):\n"
        "        try:\n"
        "            import_file(f'{name}.pyx')\n"
        "        except BaseException as error:\n"
        "            print(type(error).__name__, error)\n"
    )
    with workshop.start(sys.executable, "-c", code) as process:
        out, err = process.communicate()
    assert err == ""
    first, second, third, interrupted, *rest = out.splitlines()
    assert first.endswith(" failed: ValueError: no luck")
    assert second == third
    assert second.startswith("PluginConfigurationError loading fails.pyx, which was built as ")
    assert second.endswith(
        " failed before, and Cython's modules can be loaded once in a process: start a new one. "
        "It was ValueError: no luck"
    )
    assert interrupted.strip() == "KeyboardInterrupt"
    assert [line.endswith(" It was KeyboardInterrupt") for line in rest] == [True, True]


def test_the_wait_for_another_process_is_told(workshop: Workshop) -> None:
    """By the command, if it is a long one; and it ends."""
    workshop.write("locked.pyx", LONG + "# locked\n")
    code = (
        "import fcntl, os\n"
        "from dataflare import building\n"
        "from dataflare.cli.build import build_file\n"
        "lock, others = building._lock, []\n"
        "def come_late(descriptor, folder):\n"
        "    others.append(os.open(folder, os.O_RDONLY))\n"
        "    fcntl.flock(others[0], fcntl.LOCK_EX)\n"
        "    lock(descriptor, folder)\n"
        "building._lock, building._QUIET, building._PATIENCE = come_late, 0, 0.1\n"
        "print(build_file('locked.pyx'))\n"
    )
    with workshop.start(sys.executable, "-c", code) as process:
        out, err = process.communicate()
    assert out == "2\n"
    told, ended = err.splitlines()
    assert told.startswith("dataflare: waiting for another process, which has ")
    assert ended.startswith("dataflare: another process keeps ")
    assert workshop.cli("build", "locked.pyx").returncode == 0


def test_a_compiler_by_a_relative_path(workshop: Workshop) -> None:
    """From where DataFlare was called."""
    workshop.write("relative.pyx", LONG + "# relative\n")
    calls = workshop.calls()
    assert workshop.cli("build", "relative.pyx", CC="./noting-cc").returncode == 0
    assert workshop.calls() == calls + 1


def test_a_compiler_that_does_not_do_its_work(workshop: Workshop) -> None:
    """A sentence for each way; none blames the temporary directory."""
    workshop.write("lazy.pyx", LONG + "# lazy\n")
    lazy, garbage = workshop.folder / "lazy-cc", workshop.folder / "garbage-cc"
    lazy.write_text("#!/bin/sh\n")
    garbage.write_bytes(b"\0\1\2")
    for compiler in (lazy, garbage):
        compiler.chmod(0o755)
    assert workshop.refusal("lazy.pyx", CC=str(lazy)) == (
        f"building a native plugin calls {lazy}, which ended well and made nothing"
    )
    assert workshop.refusal("lazy.pyx", CC="./garbage-cc") == (
        f"building a native plugin calls {garbage}, and that cannot be run: Exec format error"
    )
    lazy.write_text("#!/bin/sh\nexit 3\n")
    done = workshop.cli("build", "lazy.pyx", CC=str(lazy))
    assert done.stderr.splitlines() == [
        "dataflare: lazy.pyx does not compile:",
        f"{lazy} ended with status 3",
    ]


@pytest.mark.parametrize("stem", ["numpy", "cython", "__init__", "x" * 251])
def test_a_file_may_have_any_name(workshop: Workshop, stem: str) -> None:
    """Also one that Cython gives another meaning, or that makes too long a name."""
    workshop.write(f"{stem}.pyx", LONG)
    options = ["-p", f"{stem}.pyx:Long", "--stats", "none"]
    done = workshop.cli("run", *options, stdin="long line\nabc\n")
    assert (done.stdout, done.stderr) == ("long line\n", "")
