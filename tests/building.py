"""Builds the native plugins of tests as an author would: against the installed package."""

import importlib
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import dataflare

QUICKLY = {"CFLAGS": "-O1"}  # behind what the build says itself: compiles in half the time
EXAMPLE = Path(__file__).parents[1] / "examples" / "cython_plugin"


def tools_first(*before: Path) -> str:
    """The PATH of a process that calls meson, pip, cython or the command line by their names.

    They stand beside this Python, whose environment need not be activated; folders that are to be
    searched earlier are given.
    """
    beside = Path(sys.executable).parent
    return os.pathsep.join([*map(str, before), str(beside), os.environ["PATH"]])


def build(
    project: Path, target: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Install a project as its README says, but for the place."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps",
               "--no-index", "--target", str(target), str(project)]  # fmt: skip
    env = {**os.environ, "PATH": tools_first(), **QUICKLY}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def import_from(folder: Path, name: str) -> ModuleType:
    """Import a package from a folder."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def build_module(source: Path, folder: Path) -> ModuleType:
    """Build one source file as a module of its name, and import it.

    The compiler is called as this Python says, without a project: that takes a third of the time.
    """
    name = source.stem
    translated, target = folder / f"{name}.c", folder / f"{name}{variable('EXT_SUFFIX')}"
    include = [f"-I{sysconfig.get_path('include')}", f"-I{dataflare.get_include()}"]
    flags = shlex.split(f"{variable('LDSHARED')} {variable('CFLAGS')} {variable('CCSHARED')}")
    for command in (
        [sys.executable, "-m", "cython", "-3", str(source), "-o", str(translated)],
        [*flags, "-O1", "-w", *include, str(translated), "-o", str(target)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return import_from(folder, name)


def variable(name: str) -> str:
    """How this Python builds extension modules."""
    return str(sysconfig.get_config_var(name))
