"""The examples of plugins in other languages, built and run as their pages say."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(sh|text)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize(
    "name",
    [
        "c_plugin",
        "cffi_plugin",
        "numba_plugin",
        pytest.param("rust_plugin", marks=pytest.mark.rust),
    ],
)
def test_an_example_does_what_its_page_says(name, tmp_path):
    """Every command of the README, in a copy, prints what stands behind it."""
    folder = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    blocks = BLOCK.findall((folder / "README.md").read_text())
    assert [kind for kind, _ in blocks] == ["sh", "text"] * (len(blocks) // 2)
    for (_, commands), (_, output) in zip(blocks[::2], blocks[1::2], strict=True):
        done = subprocess.run(
            ["bash", "-euc", commands], cwd=folder, env={**os.environ, "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == output
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("compiler", "standard", "suffix"), [("cc", "c99", "c"), ("c++", "c++11", "cc")]
)
@pytest.mark.parametrize("name", ["examples/c_plugin/words.c", "tests/cdoor/door.c"])
def test_header_and_examples_are_clean(compiling, tmp_path, name, compiler, standard, suffix):
    """In strict C99 and C++11, without a warning."""
    source = tmp_path / f"plugin.{suffix}"
    shutil.copy(ROOT / name, source)
    compiling(tmp_path / "plugin.o", source, f"-std={standard}", "-c", compiler=compiler)
