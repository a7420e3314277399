"""The native ABI: its layout is pinned, and old plugins meet changed libraries.

A plugin built against this version is loaded into copies of the library in which something of the
ABI was changed. It either works or is refused with a sentence. What can be told neither by a plugin
nor by the library is caught here, by the layout in abi.json.
"""

import ctypes
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import dataflare

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = Path(dataflare.__file__).parent
PINNED = HERE / "abi.json"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
ADVICE = (
    "The native ABI is not what tests/cimport/abi.json says. Plugins that were built before would "
    "read and write in the wrong places. If a version with the old layout was released: take the "
    "change back, and follow the rules in dataflare/_compiled/plugin.pxd (derive the next "
    "NativePluginABI class; raise DF_ABI_VERSION if a struct must change). If none was: write the "
    "new layout with `python tests/cimport/test_abi.py`."
)

PROBE = """
from dataflare cimport Batch, Emitter, NativePlugin, Output, Record, SKIP
cdef class Probe(NativePlugin):
    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        return SKIP
"""
OLD = """
from dataflare cimport Emitter, NativePlugin, Record, emit, fail
cdef class Old(NativePlugin):
    cdef int first
    cdef object kept
    def __init__(self, kept):
        self.kept = kept
        self.first = 0x1234567
    cdef int c_process(self, const Record *record, Emitter *out) except? -1 nogil:
        if record.value.size == 0:
            return fail(out, 5, "empty")
        if self.first != 0x1234567:
            return fail(out, 6, "overwritten")
        return emit(out, record.value.data, 1)
    def what(self):
        return self.kept
"""
OLD_BATCH = """
from dataflare cimport Batch, Output, pass_on
cdef class OldBatch(Old):
    cdef int c_process_batch(self, const Batch *batch, Output *out) except? -1 nogil:
        while out.position < batch.length:
            pass_on(out, batch)
        return 0
"""


def cython(source: Path, package: Path) -> Path:
    """Translate a module against the .pxd files of a package."""
    target = source.with_suffix(".c")
    command = [sys.executable, "-m", "cython", "-3", "-I", package.parent, source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def compile_c(source: Path, package: Path, target: Path) -> Path:
    """Compile a C file to a shared library, quickly."""
    include = [f"-I{package / 'include'}", f"-I{sysconfig.get_path('include')}"]
    command = ["cc", "-O0", "-w", "-shared", "-fPIC", *include, source, "-o", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


# The layout


def declarations(body: str) -> list[str]:
    """The fields of a C struct, in order, without comments."""
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    return [" ".join(field.split()) for field in body.split(";") if field.strip()]


def field_name(declaration: str) -> str:
    """`cursor` of `char *cursor`, `grow` of `int (*grow)(...)`."""
    found = re.search(r"\(\*(\w+)\)", declaration) or re.search(r"(\w+)$", declaration)
    assert found, declaration
    return found[1]


CLASSES: dict[str, dict[str, str]] = {}  # of a plugin.pxd, by its text: to ask Cython takes long


def classes_of(package: Path, folder: Path) -> dict[str, str]:
    """The structs that Cython makes of the classes in plugin.pxd, and their bodies."""
    declared = (package / "_compiled" / "plugin.pxd").read_text()
    if declared not in CLASSES:
        probe = folder / "probe.pyx"
        probe.write_text(PROBE)
        text = cython(probe, package).read_text()
        found = re.findall(r"^struct (\w+) \{$(.*?)^\};$", text, re.DOTALL | re.M)
        CLASSES[declared] = {
            name: body for name, body in found if re.search("^DataFlare_|6plugin_", name)
        }
    return CLASSES[declared]


def layout(package: Path, folder: Path) -> dict[str, object]:
    """What plugins depend on, as the compiler sees it; classes count from behind the object head.

    The structs are read from the header, and the classes from what Cython makes of the .pxd files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header = (package / "include" / "dataflare.h").read_text()
    structs = {
        name: (name, 0, declarations(body))
        for name, body in re.findall(
            r"^typedef struct (\w+) \{$(.*?)^\} \1;$", header, re.DOTALL | re.M
        )
    }
    tables = {}
    classes = classes_of(package, folder)
    for name, body in classes.items():
        fields = [one for one in declarations(body) if one != "PyObject_HEAD"]
        fields = [one.removeprefix("PyObject_HEAD ") for one in fields]
        if name.startswith("DataFlare_"):
            structs[name] = (f"struct {name}", 1, fields)
        else:
            tables[name] = (f"struct {name}", 0, fields)
    structs |= tables
    numbers = []
    for kind, head, fields in structs.values():
        numbers.append(f"sizeof({kind}) - {head} * sizeof(PyObject)")
        for one in fields:
            name = field_name(one)
            base = head if name != "__pyx_base" else 0
            numbers.append(f"offsetof({kind}, {name}) - {base} * sizeof(PyObject)")
            numbers.append(f"sizeof((({kind} *)0)->{name}) - {head - base} * sizeof(PyObject)")
    names = "".join(f"struct {name};\n" for name in classes)
    bodies = "".join(f"struct {name} {{{body}}};\n" for name, body in classes.items())
    source = folder / "layout.c"
    source.write_text(
        f"#include <Python.h>\n#include <dataflare.h>\n{names}{bodies}"
        f"const size_t layout_numbers[] = {{{', '.join(numbers)}}};\n"
    )
    library = ctypes.CDLL(str(compile_c(source, package, source.with_suffix(".so"))))
    values = iter((ctypes.c_size_t * len(numbers)).in_dll(library, "layout_numbers"))
    version = re.search(r"^#define DF_ABI_VERSION (\d+)$", header, re.M)
    status = re.search(r"^typedef enum df_status \{(.*?)\}", header, re.DOTALL | re.M)
    functions = re.findall(r"^typedef [^;{]*\(\*df_\w+\)\([^;]*\);", header, re.M)
    assert version, "the header has no DF_ABI_VERSION"
    assert status, "the header has no df_status"
    return {
        "version": int(version[1]),
        "status": " ".join(status[1].split()),
        "functions": [" ".join(one.split()) for one in functions],
        **{
            name: {
                "size": next(values),
                "fields": {one: [next(values), next(values)] for one in fields},
            }
            for name, (_, _, fields) in structs.items()
        },
    }


def as_text(found: dict[str, object]) -> str:
    """A layout as it stands in the file: a line for each field."""
    text = json.dumps(found, indent=1)
    return re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n"


def test_the_layout_is_the_pinned_one(tmp_path):
    """Offsets and sizes of every struct and class that plugins are compiled with."""
    assert as_text(layout(PACKAGE, tmp_path)).splitlines() == PINNED.read_text().splitlines(), (
        ADVICE
    )


def changed(tmp_path: Path, file: str, old: str, new: str) -> SimpleNamespace:
    """A copy of the package with another text in one file, and none of what it had compiled."""
    package = tmp_path / "dataflare"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "*.html")
    shutil.copytree(PACKAGE, package, ignore=ignored, dirs_exist_ok=True)
    replace(package / file, old, new)
    return package


def replace(path: Path, old: str, new: str) -> None:
    """Put one text in the place of another, which must be there."""
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}: the test needs another change"
    path.write_text(text.replace(old, new))


FIRST_METHOD = (
    "    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil\n"
)
LAST_METHOD = (
    "    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil\n"
)
END = "    cdef void c_end(self) noexcept nogil  # nobody's: see above\n"
ADDED_METHOD = "    cdef int c_added(self, int number) noexcept nogil\n"


PXD, HEADER = "_compiled/plugin.pxd", "include/dataflare.h"
CHANGES = {
    "method in front": (PXD, FIRST_METHOD, ADDED_METHOD + FIRST_METHOD),
    "method at the end": (PXD, LAST_METHOD, LAST_METHOD + ADDED_METHOD),
    "method behind the end": (PXD, END, END + ADDED_METHOD),
    "field of the base": (
        PXD,
        "    cdef object state",
        "    cdef object more\n    cdef object state",
    ),
    "type of a field": (PXD, "cdef bint needs_gil", "cdef char needs_gil"),
    "size of a struct": (HEADER, "int32_t partition;", "int64_t partition;"),
    "order of a struct": (
        HEADER,
        "    char *cursor;\n    char *limit;\n",
        "    char *limit;\n    char *cursor;\n",
    ),
    "meaning of a status": (
        HEADER,
        "DF_FILTERED = 1,\n    DF_SKIP = 2,",
        "DF_FILTERED = 2,\n    DF_SKIP = 1,",
    ),
    "arguments of a function": (HEADER, "(*df_cleanup)(void *state)", "(*df_cleanup)(int, void *)"),
    "version": (HEADER, "#define DF_ABI_VERSION 1", "#define DF_ABI_VERSION 2"),
}


@pytest.mark.parametrize(("file", "old", "new"), CHANGES.values(), ids=CHANGES)
def test_the_pinned_layout_sees_a_change(tmp_path, file, old, new):
    """Also those that keep every size, and that no plugin and no library could tell."""
    package = changed(tmp_path, file, old, new)
    assert as_text(layout(package, tmp_path / "layout")) != PINNED.read_text()


# Old plugins in new libraries


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A folder with plugins that were built against this version: `old` and `logwords`."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "old.pyx").write_text(OLD + OLD_BATCH)
    compile_c(cython(folder / "old.pyx", PACKAGE), PACKAGE, folder / f"old{SUFFIX}")
    source = ROOT / "examples" / "c_plugin" / "logwords.c"
    compile_c(source, PACKAGE, folder / f"logwords{SUFFIX}")
    return folder


USE_OLD = """
import gc, sys, old
from dataflare._compiled.batch import RecordBatch
from dataflare._compiled.loop import run_batch, run_record
from dataflare._compiled.record import PluginRecord
kept = object()
plugin = old.Old(kept)
result = run_batch(plugin, RecordBatch.from_values([b"abc", b"", b"xyz"]))
gc.collect()
assert plugin.what() is kept
print(result.output.to_pylist(), result.errors[0][1], plugin.process(PluginRecord(b"q")).data)
"""
LOAD_OLD = """
from dataflare.places import load_place
try:
    load_place("old:Old")
except ValueError as error:
    assert "size changed, may indicate binary incompatibility" in str(error.__cause__)
    raise
"""
OLD_WORKS = "[b'a', b'x'] empty b'q'\n"
USE_CAPSULE = """
import logwords
from dataflare._compiled.batch import RecordBatch
from dataflare._compiled.loop import run_batch
from dataflare._compiled.plugin import NativePlugin
plugin = NativePlugin.from_capsule(logwords.plugin)
print(run_batch(plugin, RecordBatch.from_values([b"a b", b"a b c"])).output.to_pylist())
"""
CAPSULE_WORKS = "[b'a b c']\n"


class Library:
    """A copy of the library; nothing but the compiled modules is loaded of it."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "dataflare"
        ignored = shutil.ignore_patterns("__pycache__", "*.pyi", "cli", "_pure")
        shutil.copytree(PACKAGE, self.package, ignore=ignored)
        (self.package / "__init__.py").write_text("")
        self.compiled = self.package / "_compiled"
        for source in (ROOT / "dataflare" / "_compiled").glob("*.pyx"):
            shutil.copy(source, self.compiled)

    def change(self, file: str, old: str, new: str) -> None:
        """Put one text in the place of another."""
        replace(self.package / file, old, new)

    def rebuild(self, *names: str) -> None:
        """Build these modules again."""

        def build(name: str) -> None:
            source = cython(self.compiled / f"{name}.pyx", self.package)
            compile_c(source, self.package, self.compiled / f"{name}{SUFFIX}")

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(build, names))

    def run(self, code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
        """Run code with it, in a process of its own."""
        paths = [str(self.package.parent), *map(str, folders)]
        return subprocess.run(
            [sys.executable, "-c", f"import sys\nsys.path[:0] = {paths}\n{code}"],
            capture_output=True, text=True, check=False, cwd=self.package.parent,
        )  # fmt: skip


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a process that ended by an exception, and not by a signal."""
    assert (done.returncode, done.stdout) == (1, ""), done
    return done.stderr.splitlines()[-1]


@pytest.fixture
def library(tmp_path):
    """A copy of the library, to be changed."""
    return Library(tmp_path)


def test_the_same_library(library, old):
    """The plugins work where nothing was changed, so that what follows means something."""
    for code, output in ((USE_OLD, OLD_WORKS), (USE_CAPSULE, CAPSULE_WORKS)):
        done = library.run(code, old)
        assert (done.returncode, done.stdout) == (0, output), done.stderr


NEXT_CLASS = """

cdef class NativePluginABI2(NativePluginABI1):
    cdef int number
    cdef int c_added(self, int number) noexcept nogil
"""
NEXT_CODE = """cdef class NativePluginABI2(NativePluginABI1):
    cdef int c_added(self, int number) noexcept nogil:
        return number + 1

    def added(self):
        return self.c_added(1)


NativePlugin = NativePluginABI2
"""


def test_a_method_in_the_next_class(library, old, tmp_path):
    """The house rule: old plugins go on working, new ones have the method."""
    with (library.compiled / "plugin.pxd").open("a") as file:
        file.write(NEXT_CLASS)
    library.change("_compiled/plugin.pyx", "NativePlugin = NativePluginABI1\n", NEXT_CODE)
    library.change("__init__.pxd", "NativePluginABI1 as", "NativePluginABI2 as")
    library.rebuild("plugin")
    done = library.run(USE_OLD, old)
    assert (done.returncode, done.stdout, done.stderr) == (0, OLD_WORKS, "")
    source = tmp_path / "new.pyx"
    source.write_text(
        OLD.replace("Old", "New")
        + "    cdef int c_added(self, int number) noexcept nogil:\n        return number + 40\n"
    )
    compile_c(cython(source, library.package), library.package, tmp_path / f"new{SUFFIX}")
    use_new = USE_OLD.replace("old", "new").replace("Old", "New") + "print(plugin.added())"
    done = library.run(use_new, tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{OLD_WORKS}41\n"), done.stderr


def test_a_class_that_was_taken_away(library, old):
    """A plugin of an ABI that is no more is told so when it is imported."""
    for file in ("_compiled/plugin.pxd", "_compiled/plugin.pyx"):
        library.change(file, "NativePluginABI1", "NativePluginABI2")
    library.rebuild("plugin")
    assert refusal(library.run("import old", old)) == (
        "ImportError: the plugin was built for DataFlare's native ABI 1, this DataFlare has ABI 2: "
        "build the plugin again with the DataFlare it runs with"
    )


PROCESS = '    def process(self, record):\n        """Run ``c_process`` on one record.'
ADDED_CODE = "    cdef int c_added(self, int number) noexcept nogil:\n        return number\n\n"


def add_method(library, place, text):
    """Add a method to the class itself."""
    library.change("_compiled/plugin.pxd", place, text)
    library.change("_compiled/plugin.pyx", PROCESS, ADDED_CODE + PROCESS)


@pytest.mark.parametrize(
    ("place", "text"),
    [(FIRST_METHOD, ADDED_METHOD + FIRST_METHOD), (LAST_METHOD, LAST_METHOD + ADDED_METHOD)],
    ids=["in front", "at the end"],
)
def test_a_method_in_a_class(library, old, place, text):
    """Against the rule, without another name: no plugin is made, so nothing wrong is called."""
    add_method(library, place, text)
    library.rebuild("plugin")
    for name in ("Old", "OldBatch"):
        assert refusal(library.run(USE_OLD.replace("Old(", f"{name}("), old)) == (
            f"dataflare.errors.IncompatiblePluginError: the plugin class {name} was built with "
            "other methods of NativePluginABI1 than this DataFlare has: build the plugin again "
            "with the DataFlare it runs with"
        )


def test_a_method_behind_the_end_of_a_class(library, old):
    """Against the rule as well, but it works as long as nobody calls the method."""
    add_method(library, END, END + ADDED_METHOD)
    library.rebuild("plugin", "loop")
    done = library.run(USE_OLD, old)
    assert (done.returncode, done.stdout) == (0, OLD_WORKS), done.stderr


@pytest.mark.parametrize("name", ["DataFlarePlugin", "NativePluginABI1"])
def test_a_field_of_a_class(library, old, name):
    """Instances of another size are refused, before the plugin's fields lie over the library's."""
    field = {"DataFlarePlugin": "cdef object state", "NativePluginABI1": "cdef bint needs_gil"}[
        name
    ]
    library.change("_compiled/plugin.pxd", field, f"cdef object more, and_more\n    {field}")
    library.rebuild("plugin")
    # In the language of the library, by whatever names the plugin; the cause is what Cython said.
    said = refusal(library.run(LOAD_OLD, old))
    assert re.fullmatch(
        r"dataflare.errors.PluginConfigurationError: the module 'old' cannot be loaded: it was "
        rf"built with another version of DataFlare, whose (NativePluginABI1|{name}) has \d+ bytes; "
        rf"that of the DataFlare it runs with, {re.escape(dataflare.__version__)}, has \d+: "
        "build the plugin again with the DataFlare it runs with",
        said,
    ), said


def test_a_struct_of_another_size(library, old):
    """A descriptor says what it was built with."""
    library.change("include/dataflare.h", "    int32_t partition;\n", "    int64_t partition[2];\n")
    library.rebuild("c_plugin")
    assert refusal(library.run(USE_CAPSULE, old)) == (
        "dataflare.errors.IncompatiblePluginError: the plugin was built with a df_record of 56 "
        "bytes, this DataFlare has one of 64: build the plugin again with the DataFlare it runs "
        "with"
    )


def test_a_descriptor_that_grew(library, old):
    """By the rule, at its end: an old one is taken as it is."""
    library.change("include/dataflare.h", "    void *state;\n} df_plugin;", "    void *state;\n    void *more[3];\n} df_plugin;")  # fmt: skip  # noqa: E501
    library.rebuild("c_plugin")
    done = library.run(USE_CAPSULE, old)
    assert (done.returncode, done.stdout) == (0, CAPSULE_WORKS), done.stderr


def test_another_version_of_the_descriptor(library, old):
    """Both versions are named."""
    library.change("include/dataflare.h", "#define DF_ABI_VERSION 1", "#define DF_ABI_VERSION 2")
    library.rebuild("c_plugin")
    assert refusal(library.run(USE_CAPSULE, old)) == (
        "dataflare.errors.IncompatiblePluginError: the plugin was built for DataFlare's native ABI "
        "1, this DataFlare has ABI 2: build the plugin again with the DataFlare it runs with"
    )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        PINNED.write_text(as_text(layout(PACKAGE, Path(scratch))))
