"""Every code block of the README and of the site is run, and those who run it are tested."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import ELSEWHERE, blocks_of, commands_of, is_elsewhere

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNER = ROOT / "tests" / "code_blocks.py"


def run(document: Path, folder: Path) -> subprocess.CompletedProcess:
    """Run the blocks of a document in a process of its own, in a folder."""
    command = [sys.executable, "-W", "error", str(RUNNER), str(document)]
    environment = {**os.environ, "DATAFLARE_CACHE": str(folder / "cache")}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def written(tmp_path):
    """Runs the blocks of a text."""

    def run_text(text: str) -> subprocess.CompletedProcess:
        document = tmp_path / "document.md"
        document.write_text(text)
        return run(document, tmp_path)

    return run_text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_runs(document, tmp_path):
    """In a folder that has the examples and nothing else."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = run(document, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_run_here_has_a_job():
    """Nothing but commands that begin like these is left out, and there is a job for each kind."""
    jobs = (ROOT / ".ci" / "run").read_text()
    left_out = [
        command
        for document in DOCUMENTS
        for block in blocks_of(document)
        if block.language == "sh"
        for command in commands_of(block)
        if is_elsewhere(command)
    ]
    for beginning, job in ELSEWHERE.items():
        assert any(beginning in command for command in left_out), f"nobody writes {beginning}"
        _, found, rest = jobs.partition(f"\n{job}() {{")
        assert found, f"{beginning} has no job"
        body = rest.partition("\n}\n")[0]
        # As it stands, from the README, or by the function that installs the wheel.
        run_by = (beginning, "readme_command", "install_wheel")
        assert any(command in body for command in run_by), f"{job} does not run {beginning}"


def test_blocks_are_found_with_their_lines(tmp_path):
    """Fenced by either character, indented, in lists."""
    document = tmp_path / "document.md"
    document.write_text(
        "# T\n\n```python\na = 1\n```\n\n- x\n\n  ~~~sh\n  ls\n  ~~~\n\n# U\n\n    b = 2\n"
    )
    found = [(block.line, block.language, block.code) for block in blocks_of(document)]
    assert found == [(4, "python", "a = 1\n"), (10, "sh", "ls\n"), (15, "", "b = 2\n")]


def test_python_blocks_share_a_namespace_and_their_output_is_checked(written):
    """In order; dots stand for anything."""
    done = written(
        "```python\na = 3\n```\n\n```python\nprint(a)  # 3\nprint('x', a, 'y')  # x ... y\n```\n"
    )
    assert (done.returncode, done.stdout) == (0, "3\nx 3 y\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nwhat\n```", "document.md:2: no known language: ''"),
        ("    what\n", "document.md:1: no known language: ''"),
        ("```ruby\nputs\n```", "document.md:2: no known language: 'ruby'"),
        ("```python\n\n1 / 0\n```", 'document.md", line 3'),
        ("```python\nprint(2)  # 3\n```", "nothing printed '3', but: '2\\n'"),
        ("```python\nprint(2)  # 2\nprint(1)  # 2\n```", "nothing printed '2'"),
        ("```sh\nfalse\ntrue\n```", "document.md:2: this block failed"),
        ("```sh\nfalse | cat\n```", "document.md:2: this block failed"),
        ("```sh\npip install x\nls\n```", "stand in a block of their own"),
        ("```json\n{]\n```", "JSONDecodeError"),
        ("```toml\na =\n```", "TOMLDecodeError"),
        ("```c\nint x = ;\n```", "document.md:2: this block failed"),
        ("```cython\ncdef int f(:\n```", "document.md:2: this block failed"),
    ],
)
def test_a_block_that_is_wrong_fails(written, text, message):
    """And is named."""
    done = written(text)
    assert done.returncode != 0
    assert message in done.stderr


def test_blocks_that_are_not_run(written):
    """Output, what Sphinx reads, and what is left to .ci/run."""
    done = written(
        "```text\n1\n```\n```{toctree}\nx\n```\n"
        "```sh\n# first\npython3 -m venv .venv && exit 1\n.venv/bin/pip install \\\n  x\n```\n"
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_cython_block_is_a_module_for_those_after_it(written):
    """Under the name in its first line."""
    done = written(
        "```cython\n# doubles.pyx\nfrom dataflare cimport SKIP\n\ndef double(int x):\n"
        "    return 2 * x, SKIP\n```\n"
        "```python\nimport doubles\nprint(doubles.double(2))  # (4, 2)\n```\n"
    )
    assert done.returncode == 0, done.stderr
