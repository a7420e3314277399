"""``dataflare plugins``: what can be named, and what it is."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout

from dataflare.catalogue import Catalogue, ListedPlugin, list_plugins
from dataflare.cli import show

__all__ = ["print_plugins"]


def print_plugins(as_json: bool) -> None:
    """Print all plugins that have a name."""
    with redirect_stdout(sys.stderr):  # what packages print when they are imported
        catalogue = list_plugins()
    if as_json:
        print(json.dumps(_plain(catalogue), indent=2))
        return
    for plugin in catalogue.plugins:
        print(plugin.written)
        if plugin.description:
            print(f"    {plugin.description}")
        print(f"    {_facts(plugin)}")
        if plugin.problem:
            print(f"    cannot be used: {plugin.problem}")
    for problem in catalogue.problems:
        show.problem(problem)


def _plain(catalogue: Catalogue) -> dict[str, object]:
    return {
        "plugins": [plugin.as_dict() for plugin in catalogue.plugins],
        "problems": list(catalogue.problems),
    }


def _facts(plugin: ListedPlugin) -> str:
    origin = "built-in"
    if plugin.package is not None:
        origin = f"of {plugin.package} {plugin.package_version}".rstrip()
    native = {True: "native", False: "Python", None: ""}[plugin.native]
    kind = plugin.kind.value if plugin.kind else ""
    return ", ".join(filter(None, (kind, native, f"version {plugin.version}", origin)))
