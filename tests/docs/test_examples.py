"""The examples run as their users run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from building import tools_first
from code_blocks import blocks_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mask_ids_masks():
    """No request id is left in its output."""
    shown = run("mask_ids.py")
    assert "req=*" in shown
    assert "failed" in shown


@pytest.mark.parametrize(
    "name",
    [
        "c_plugin",
        "cffi_plugin",
        "numba_plugin",
        "python_plugin",
        pytest.param("rust_plugin", marks=pytest.mark.rust),
        "tested_plugin",
    ],
)
def test_an_example_does_what_its_page_says(name, tmp_path):
    """Every command of the README works, in a copy, and prints what stands behind it."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder)
    site = tmp_path / "site"  # where pip installs, and Python looks: nothing else is changed
    environment = {
        **os.environ,
        "PATH": tools_first(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_TARGET": str(site),
        "PYTHONPATH": str(site),
    }
    blocks = blocks_of(folder / "README.md")
    assert {block.language for block in blocks} <= {"sh", "text"}
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "text":
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code], cwd=folder, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        if after is not None and after.language == "text":
            assert done.stdout == after.code
