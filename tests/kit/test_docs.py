"""The page for authors: its blocks run as they are, and its table is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

from dataflare.testing import PROPERTIES

PAGE = (Path(__file__).parents[2] / "docs" / "testing-plugins.md").read_text()


def test_the_blocks_run(tmp_path):
    """Every file that is shown, with every command but the installation."""
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.S):
        (tmp_path / name).write_text(text)
    commands = re.findall(r"```sh\n(?!pip )(.*?)\n```", PAGE, re.S)
    assert len(commands) == 4
    # The commands of this Python stand beside it, and need not be on the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if command.startswith("dataflare check"):
            [shown] = re.findall(r"```text\n(.*?)```", PAGE, re.S)
            assert (done.returncode, shown in done.stdout) == (1, True), done.stdout + done.stderr
        else:
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_is_complete():
    """Name and sentence of every property, in order."""
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M) == [
        (name, checked.sentence) for name, checked in PROPERTIES.items()
    ]
