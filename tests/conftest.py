"""One suite over both backends: every test that takes `backend` runs once on each.

The package chooses its backend when it is imported, so it is imported once for each, on shared
errors, types and configuration. Every name must be there and come from the backend's own modules: a
build that lacks one fails instead of passing on the other.
"""

import importlib
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
from building import EXAMPLE, build, import_from
from hypothesis import settings

from dataflare._later import Later

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") else "default")

ROOMS = {"cython": "dataflare._compiled.", "python": "dataflare._pure."}
SWITCHED = {
    "batching": ["BatchAdapter", "BatchPlugin", "as_batch"],
    "building": ["build", "cache_directory", "import_file"],
    "catalogue": ["list_plugins"],
    "dead_letters": ["DeadLetter", "DeadLetterSink"],
    "discovery": ["read_installed"],
    "health": ["HealthReport", "PartHealth", "Probes", "Verdict", "check_pool", "check_workers"],
    "manager": ["PluginManager"],
    "metrics": ["PluginMetrics"],
    "monitor": ["Monitor"],
    "otel": ["instrument"],
    "places": ["load_place"],
    "prometheus": ["ManagerCollector", "serve_metrics"],
    "recovery": ["CircuitBreaker", "is_retryable", "retry_delay"],
    "report": ["report_of"],
    "service": ["PluginService"],
    "specs": ["BUILTINS", "find_source"],
    "streams": ["BatchSizer", "run_stream", "taker"],
    "testing": ["PluginTests", "check_plugin", "examine_plugin"],
    "workers": ["Workers", "has_gil"],
}
SHARED = (
    "_compiled",
    "_pure",
    "_abi",
    "_arrow",
    "_build_info",
    "_idle",
    "_later",
    "_ledger",
    "_pointers",
    "config",
    "errors",
    "types",
)


def load_backend(name: str) -> SimpleNamespace:
    """Everything of one backend, as attributes; an error if anything is missing or another's."""
    modules = load_switched(name)
    switch = modules["dataflare._backend"]
    assert switch.backend == name
    found = {attribute: getattr(switch, attribute) for attribute in switch.__all__}
    del found["backend"]
    found["arrow"] = found["arrow"].load()
    for attribute, value in found.items():
        home = value.__name__ if isinstance(value, ModuleType) else value.__module__
        assert home.startswith(ROOMS[name]), f"{attribute} is of {home}"
    for module, names in SWITCHED.items():
        found |= {
            attribute: getattr(modules[f"dataflare.{module}"], attribute) for attribute in names
        }
    return SimpleNamespace(name=name, **found)


def load_switched(name: str) -> dict[str, ModuleType]:
    """The package's modules above the switch, loaded anew for a backend."""
    shared = tuple(f"dataflare.{module}" for module in SHARED)
    before = {
        module: sys.modules.pop(module)
        for module in [*sys.modules]
        if module.partition(".")[0] == "dataflare" and not module.startswith(shared)
    }
    variable = os.environ.get("DATAFLARE_PURE_PYTHON")
    os.environ["DATAFLARE_PURE_PYTHON"] = "1" if name == "python" else "0"
    try:
        importlib.import_module("dataflare")
        for module in SWITCHED:
            importlib.import_module(f"dataflare.{module}")
        for module in [*sys.modules]:
            if module.partition(".")[0] == "dataflare":
                for value in vars(sys.modules[module]).copy().values():
                    if isinstance(value, Later):
                        value.load()  # while its backend is the one that is found
        return {
            module: sys.modules.pop(module)
            for module in [*sys.modules]
            if module.partition(".")[0] == "dataflare" and not module.startswith(shared)
        }
    finally:
        sys.modules.update(before)
        if variable is None:
            del os.environ["DATAFLARE_PURE_PYTHON"]
        else:
            os.environ["DATAFLARE_PURE_PYTHON"] = variable


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=[*ROOMS, "both"],
        default="both",
        help="which backend to test; a build without compiled modules has only 'python'",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        names = [*ROOMS] if chosen == "both" else [chosen]
        metafunc.parametrize("backend", names, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--backend") != "both":  # there is nothing to compare
        items[:] = [item for item in items if "backends" not in getattr(item, "fixturenames", ())]


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The names of one backend."""
    return load_backend(request.param)


@pytest.fixture(scope="session")
def backends() -> tuple[SimpleNamespace, SimpleNamespace]:
    """Both backends, to compare them."""
    return load_backend("cython"), load_backend("python")


@pytest.fixture(scope="session")
def logfields(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example package of native plugins, built."""
    target = tmp_path_factory.mktemp("logfields")
    done = build(EXAMPLE, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return import_from(target, "logfields")
