"""The page for authors says what is true; its blocks are run by the tests of all pages."""

import re
import subprocess
import sys
from pathlib import Path

from dataflare.testing import PROPERTIES

PAGE = (Path(__file__).parents[2] / "docs" / "testing-plugins.md").read_text()


def test_the_verdict_that_is_shown(tmp_path):
    """What the command prints of the first plugin."""
    [code] = re.findall(r"```python\n(# shout\.py\n.*?)```", PAGE, re.S)
    (tmp_path / "shout.py").write_text(code)
    command = [sys.executable, "-m", "dataflare.cli", "check", "shout.py:Shout"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    [shown] = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    assert done.returncode == 1, done.stderr
    assert shown in done.stdout


def test_the_table_is_complete():
    """Name and sentence of every property, in order."""
    assert re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.M) == [
        (name, checked.sentence) for name, checked in PROPERTIES.items()
    ]
