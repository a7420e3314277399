"""The rule of imports: a module may use only what stands above it."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dataflare"

# A module may import from the lines above its own, and from no other.
ROOMS = [
    {"_build_info", "errors", "config", "types", "units"},
    {"_abi", "_arrow", "_events", "_idle", "_later", "_ledger", "_pointers"},
    {"_compiled", "_pure"},
    {"_backend"},
    {"building", "files", "metrics", "native", "plugins", "recovery", "tuner", "workers"},
    {"batching"},
    {"places"},
    {"discovery"},
    {"specs"},
    {"loading"},
    {"catalogue"},
    {"dead_letters"},
    {"service"},
    {"health", "monitor", "samples", "streams"},
    {"observer"},
    {"report_plots"},
    {"report_page"},
    {"report"},
    {"manager"},
    {"figures"},
    {"otel", "prometheus"},
    {"testing"},
    {"cli"},
]
# The same inside both backends; some modules exist in one of them only.
BACKEND_ROOMS = [
    {"clock", "counters", "exporter", "guard", "types"},
    {"kernels", "pool", "record"},
    {"arena"},
    {"batch"},
    {"result"},
    {"arrow"},
    {"output"},
    {"plugin"},
    {"chain", "functions"},
    {"builtin", "c_plugin", "loop"},
    {"runner"},
]
IMPORT = re.compile(r"^[ \t]*from\s+([\w.]+)\s+c?import\s+(\([^)]*|[^\n#]*)", re.M)
PLAIN_IMPORT = re.compile(r"^[ \t]*c?import\s+([\w.]+)", re.M)


def module_of(path: Path) -> str:
    """The dotted name of a source file, without the package's own: empty for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


SOURCES = sorted(path for suffix in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{suffix}"))
MODULES = [path for path in SOURCES if module_of(path)]
NAMES = {module_of(path) for path in SOURCES}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports or cimports, for type checking too."""
    text = path.read_text()
    names = of_python(text) if path.suffix == ".py" else of_cython(text)
    mine = {
        (module.partition(".")[2], attribute)
        for module, attribute in names
        if module.partition(".")[0] == "dataflare"
    }
    found = set()
    for module, attribute in mine:
        inner = f"{module}.{attribute}".strip(".")
        found.add(inner if inner in NAMES else module)
    return found - {module_of(path)}


def of_python(text: str) -> set[tuple[str, str]]:
    """Pairs of a module and what is imported from it."""
    pairs = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            pairs |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            pairs |= {(str(node.module), alias.name) for alias in node.names}
    return pairs


def of_cython(text: str) -> set[tuple[str, str]]:
    """Pairs of a module and what is imported or cimported from it."""
    pairs = {(module, "") for module in PLAIN_IMPORT.findall(text)}
    for module, attributes in IMPORT.findall(text):
        pairs |= {(module, name.strip("( \n")) for name in attributes.split(",")}
    return pairs


def line_of(name: str, rooms: list[set[str]]) -> int:
    """The line a module stands on."""
    found = [line for line, names in enumerate(rooms) if name in names]
    assert found, f"{name} has no place in the order: give it one"
    return found[0]


def test_the_sources_are_found() -> None:
    """The test looks at something, and sees what is imported there."""
    assert {"", "manager", "_pure.loop", "_compiled.loop"} <= NAMES
    assert {"_backend", "errors", "batching"} <= imported(PACKAGE / "manager.py")
    assert {"_idle", "config"} <= imported(PACKAGE / "_compiled" / "pool.pyx")
    assert "_compiled.pool" in imported(PACKAGE / "_compiled" / "arena.pxd")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_above_alone(path: Path) -> None:
    """Between the rooms of the package, and between the modules of a backend."""
    room, _, inner = module_of(path).partition(".")
    for name in imported(path) - {""}:  # the command line asks the package for its version
        other, _, other_inner = name.partition(".")
        if other != room:
            assert line_of(other, ROOMS) < line_of(room, ROOMS), f"imports {name}"
        elif room in ("_compiled", "_pure"):
            above = line_of(other_inner, BACKEND_ROOMS) < line_of(inner, BACKEND_ROOMS)
            assert above, f"imports {name}"


def test_only_the_command_line_imports_the_package_itself() -> None:
    """Everything else imports the module it needs."""
    users = {module_of(path).partition(".")[0] for path in MODULES if "" in imported(path)}
    assert users <= {"cli"}


def test_only_the_switch_knows_the_backends() -> None:
    """Neither backend imports the other, and nothing else imports either."""
    for path in SOURCES:
        used = {name.partition(".")[0] for name in imported(path)} & {"_compiled", "_pure"}
        room = module_of(path).partition(".")[0]
        # What a native plugin cimports leads to the compiled backend.
        assert used <= {room} or room == "_backend" or path.name == "__init__.pxd", path
