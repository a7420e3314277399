"""Builds the native plugins of tests as an author would: against the installed package."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

QUICKLY = {"CFLAGS": "-O1"}  # behind what the build says itself: compiles in half the time
EXAMPLE = Path(__file__).parents[1] / "examples" / "cython_plugin"


def build(
    project: Path, target: Path, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Install a project as its README says, but for the place."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps",
               "--no-index", "--target", str(target), str(project)]  # fmt: skip
    # The build tools stand beside this Python, which need not be on the path.
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": tools, **QUICKLY}
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


def build_like_the_example(source: Path, name: str, folder: Path) -> ModuleType:
    """Make a package of one source file, build it like the example, and import it."""
    project, target = folder / "project", folder / "target"
    package = project / name
    package.mkdir(parents=True)
    for file in ("meson.build", "pyproject.toml"):
        text = (EXAMPLE / file).read_text().replace("logfields", name)
        (project / file).write_text(text)
    shutil.copy(source, package / "words.pyx")
    (package / "__init__.py").write_text(f"from {name}.words import *\n")
    done = build(project, target)
    assert done.returncode == 0, done.stdout + done.stderr
    return import_from(target, name)
