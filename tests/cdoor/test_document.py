"""docs/c-plugins.md: its C compiles in both languages, its Python runs as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "c-plugins.md"
BLOCKS = re.findall(r"^```(c|python)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiling):
    """The libraries of the document, compiled from it."""
    folder = tmp_path_factory.mktemp("document")
    sources = [text for kind, text in BLOCKS if kind == "c"]
    for name, text in zip(["words", "begins"], sources, strict=True):
        source = folder / f"{name}.c"
        source.write_text(text)
        compiling(folder / f"lib{name}.so", source, "-std=c99", "-shared", "-fPIC")
        shutil.copy(source, folder / f"{name}.cc")
        compiling(folder / "unused.o", folder / f"{name}.cc", "-std=c++11", "-c", compiler="c++")
    return folder


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_the_document(folder, code):
    """Each block of Python is a program."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
