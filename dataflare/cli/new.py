"""``dataflare new``: a package with a plugin, to begin with.

A template is a tree of files with ``$name`` placeholders, as of `string.Template`; a directory
``module`` takes the name of the package's module. Every kind of package has the files of ``common``
and those of its own.
"""

from __future__ import annotations

import keyword
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from string import Template

from dataflare import __version__
from dataflare.cli import show
from dataflare.specs import BUILTINS

__all__ = ["KINDS", "new"]

CREATED, FAILED, UNUSABLE = 0, 1, 2  # exit statuses

KINDS = {
    "python": {
        "files": "| `src/$module/__init__.py` | the plugin |",
        "install": "pip install '.[test]'",
        "build_requires": "",
    },
    "native": {
        "files": "| `src/$module/_plugin.pyx` | the plugin, in Cython |\n"
        "| `meson.build` | how it is built |",
        "install": "pip install meson-python cython ninja && "
        "pip install --no-build-isolation '.[test]'",
        "build_requires": '"cython>=3.1", ',
    },
    "c": {
        "files": "| `src/$module/_plugin.c` | the plugin, in C |\n"
        "| `meson.build` | how it is built |",
        "install": "pip install meson-python ninja && pip install --no-build-isolation '.[test]'",
        "build_requires": "",
    },
}
"""What a template needs to know of each kind of package."""

_SUMMARY = "Strips white space around a value, and drops what is empty then."
_NATIVE_NOTE = """

It takes a C compiler. By `--no-build-isolation` pip builds against the DataFlare that is installed;
what else it takes to build is installed before. Without, pip builds apart from what is installed,
and looks for a DataFlare on an index or in the directory of wheels that `PIP_FIND_LINKS` names."""
_TEMPLATES = Path(__file__).with_name("templates")
_NAME = re.compile(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*")
_LONGEST_NAME = 100  # its directory is made under a longer one
# Modules of what the package, its build and its tests need, and of its tests themselves. A class is
# named like the package, too, and must not hide what the templates import.
_MODULES = {
    *("dataflare", "numpy", "pytest", "hypothesis", "hatchling", "cython", "mesonpy", "meson"),
    *("meson_python", "test", "tests", "test_plugin", "conftest"),
}
_CLASSES = {
    *("dataflareplugin", "pluginrecord", "pluginresult", "pluginmanager"),
    *("nativeplugin", "record", "emitter", "filtered", "forward"),
}


def new(name: str, kind: str) -> int:
    """Run the command; returns its exit status."""
    problem = _problem_of(name)
    if problem:
        show.problem(f"a package cannot be called {name!r}: {problem}")
        return UNUSABLE
    target = Path(name)
    if target.exists() or target.is_symlink():
        show.problem(f"{name} exists already: move it away, or choose another name")
        return UNUSABLE
    try:
        _create(target, kind, _placeholders(name, kind))
    except OSError as error:
        show.problem(f"{name} cannot be made: {show.sentence(error)}")
        return FAILED
    print(f"{name} is ready. Install and test it:")
    print(f"  cd {name} && {KINDS[kind]['install']} && python -m pytest")
    return CREATED


def _problem_of(name: str) -> str | None:
    """Why a package cannot have this name, or None."""
    if not _NAME.fullmatch(name):
        return "a letter comes first, then letters and digits, with single -, _ or . between them"
    if len(name) > _LONGEST_NAME:
        return f"it has more than {_LONGEST_NAME} characters"
    module = _module(name)
    class_name = _class(name)
    if keyword.iskeyword(module):
        return f"{module} is a keyword of Python"
    if keyword.iskeyword(class_name):
        return f"its class would be {class_name}, which is a keyword of Python"
    if module in sys.stdlib_module_names or module in _MODULES:
        return f"there is a module {module} already"
    if class_name.lower() in _CLASSES:
        return f"its class would be {class_name}, and DataFlare has one itself"
    if _plugin(name) in BUILTINS:
        return f"DataFlare has a plugin {_plugin(name)} itself"
    return None


def _module(name: str) -> str:
    return re.sub(r"[-.]", "_", name).lower()


def _class(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]", name))


def _plugin(name: str) -> str:
    return name.replace(".", "-").lower()


def _placeholders(name: str, kind: str) -> dict[str, str]:
    module = _module(name)
    class_name = _class(name)
    return {
        "name": name,
        "module": module,
        "plugin": _plugin(name),
        "maker": class_name if kind == "python" else "make_plugin",
        "class_name": class_name,
        "summary": _SUMMARY,
        "version": re.match(r"\d+\.\d+", __version__)[0],  # type: ignore[index]
        "install": KINDS[kind]["install"],
        "native_note": "" if kind == "python" else _NATIVE_NOTE,
        "files": Template(KINDS[kind]["files"]).substitute(module=module),
        "build_requires": KINDS[kind]["build_requires"],
    }


def _create(target: Path, kind: str, placeholders: Mapping[str, str]) -> None:
    """Make the package, under its name once it is complete."""
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for template in (_TEMPLATES / "common", _TEMPLATES / kind):
            for source in template.rglob("*.in"):
                place = source.relative_to(template).with_suffix("")
                parts = [placeholders["module"] if p == "module" else p for p in place.parts]
                file = made.joinpath(*parts)
                file.parent.mkdir(parents=True, exist_ok=True)
                text = Template(source.read_text(encoding="utf-8")).substitute(placeholders)
                file.write_text(text, encoding="utf-8")
        made.chmod(0o755)
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
