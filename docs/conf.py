"""The site: ``sphinx-build -W docs docs/_build/html``, with DataFlare and its extra `docs`."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import dataflare
import dataflare.plugins

project = "DataFlare"
author = "The DataFlare developers"
copyright = "The DataFlare developers"
version = release = dataflare.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True
default_role = "py:obj"

myst_heading_anchors = 3
autodoc_default_options = {"members": True, "member-order": "groupwise"}
autodoc_typehints = "none"  # the docstrings say them
napoleon_google_docstring = False
napoleon_use_ivar = True  # what a class docstring lists is not listed again as a member
napoleon_use_rtype = False
napoleon_preprocess_types = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"DataFlare {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
pygments_style = "friendly"

SEVERAL = re.compile(r"(\w+(?:, \w+)+)((?: : .*)?)")
CALL = re.compile(r"\(.*\)$")
PUBLIC = {
    **{name: f"dataflare.{name}" for name in dataflare.__all__},
    **{name: f"dataflare.plugins.{name}" for name in dataflare.plugins.__all__},
}


def hide_constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: Any
) -> tuple[str, None] | None:
    """No signature of classes that the library alone makes: they document attributes instead."""
    made_by_users = "Parameters\n" in (obj.__doc__ or "")
    if what in ("class", "exception") and signature and not made_by_users:
        return "", None
    if signature and "<factory>" in signature:
        return signature.replace("<factory>", "..."), None
    return None


def one_by_one(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``hits, misses : int`` as an entry each: napoleon does that for parameters alone."""
    done: list[str] = []
    section, position = "", 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if lines[position : position + 1] == ["-" * len(line)] and line:
            section = line
        entry = SEVERAL.fullmatch(line) if section in ("Attributes", "Raises") else None
        if entry is None:
            done.append(line)
            continue
        end = position
        while end < len(lines) and (not lines[end] or lines[end].startswith(" ")):
            end += 1
        body = lines[position:end]
        for each in entry[1].split(", "):
            done += [each + entry[2], *body]
        position = end
    lines[:] = done


class LinkNames(SphinxTransform):
    """Links every public name that stands as code in a chapter to its description."""

    default_priority = 400

    def apply(self, **options: Any) -> None:
        if self.env.docname == "api":
            return
        for literal in list(self.document.findall(nodes.literal)):
            name = CALL.sub("", literal.astext()).removeprefix("dataflare.")
            first, _, rest = name.removeprefix("plugins.").partition(".")
            if first not in PUBLIC or isinstance(literal.parent, nodes.reference):
                continue
            target = PUBLIC[first]
            if rest and callable(getattr(getattr(dataflare, first, None), rest, None)):
                target += f".{rest}"
            reference = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refexplicit=True
            )
            literal.replace_self(reference)
            reference += literal


def resolve_elsewhere(app: Sphinx, env: Any, node: Any, shown: Any) -> Any:
    """A public name as another module writes it, and what is none of the library's.

    That is left as it stands: types of Python and NumPy, and parameters by their names.
    """
    target = node["reftarget"]
    first, dot, rest = target.partition(".")
    if first in PUBLIC:
        full = PUBLIC[first] + dot + rest
        domain = env.get_domain("py")
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full, node, shown)
    return None if target.startswith("dataflare.") else shown


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", one_by_one, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("missing-reference", resolve_elsewhere)
    app.add_transform(LinkNames)
