"""What the chapters must name, so that nothing public is left out."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import dataflare
import dataflare.building
import dataflare.catalogue
import dataflare.native
import dataflare.otel
import dataflare.plugins
import dataflare.prometheus
import dataflare.testing
import dataflare.tuner
from dataflare.specs import BUILTINS

DOCS = Path(__file__).parents[2] / "docs"
PACKAGE = Path(dataflare.__file__).parent
DESCRIBED = re.compile(
    r"^\.\. (?:auto|py:)(?:class|exception|function|data|module):: "
    r"(?:dataflare\.)?([\w.]+)(\(.*\))?$",
    re.M,
)


PUBLIC_MODULES = (
    dataflare.building,
    dataflare.catalogue,
    dataflare.tuner,
    dataflare.plugins,
    dataflare.native,
    dataflare.testing,
    dataflare.prometheus,
    dataflare.otel,
)


def described() -> dict[str, str]:
    """The names that the API chapter describes, and the signatures that it writes out itself."""
    return dict(DESCRIBED.findall((DOCS / "api.md").read_text()))


def signature_of(function: ast.FunctionDef) -> str:
    """Names and defaults of the parameters of a method."""
    arguments = function.args
    assert arguments.args[0].arg == "self"
    del arguments.args[0]
    every = [*arguments.args, *arguments.kwonlyargs, arguments.vararg]
    for argument in filter(None, every):
        argument.annotation = None
    return f"({ast.unparse(arguments)})"


def test_the_api_describes_every_public_name():
    """Of the package and of its public modules."""
    names = set(described())
    assert set(dataflare.__all__) <= names
    for module in PUBLIC_MODULES:
        short = module.__name__.removeprefix("dataflare.")
        assert {f"{short}.{name}" for name in module.__all__} <= names


def test_written_signatures_are_those_of_the_stubs():
    """Compiled classes do not say what they take, so the chapter does. (C functions neither.)"""
    written = {
        name.rpartition(".")[2]: text
        for name, text in described().items()
        if text and not name.startswith("native.")
    }
    stubs = {
        node.name: signature_of(method)
        for path in PACKAGE.glob("_compiled/*.pyi")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
    }
    assert len(written) >= 10
    for name, text in written.items():
        assert text == stubs.get(name, "()"), name


def test_the_command_line_chapter_names_every_option_and_plugin(tmp_path):
    """As the help of the commands and `dataflare plugins` have them."""
    chapter = (DOCS / "command-line.md").read_text()
    words = set(BUILTINS)
    for name, some in (
        ("run", {"--errors", "-p"}),
        ("new", {"--native", "--c"}),
        ("check", {"--only", "--json"}),
        ("build", {"--help"}),
        ("plugins", {"--json"}),
        ("info", {"--help"}),
    ):
        command = [sys.executable, "-m", "dataflare.cli", name, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        options = set(
            re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout.partition("Options:")[2])
        )
        assert some <= options
        words |= options
    for word in words:
        assert re.search(rf"`{re.escape(word)}[ `:,]", chapter), word


def test_the_chapters_name_every_field_of_their_configuration():
    """Of failure recovery and of batches."""
    for name, config in (
        ("failures", dataflare.FailureRecoveryConfig()),
        ("batches", dataflare.BatchConfig()),
    ):
        chapter = (DOCS / f"{name}.md").read_text()
        for field in config.__dataclass_fields__:
            assert f"`{field}`" in chapter, field


def test_nothing_is_left_to_fill_in():
    """In no chapter, nor in the README."""
    for document in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        assert "@@" not in document.read_text(), document
