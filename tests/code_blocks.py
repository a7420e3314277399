"""Run the code blocks of a document in order, in the current directory: ``code_blocks.py FILE``.

| language | what happens |
|---|---|
| python | runs, in one namespace for the whole document; ``print(...)  # text`` must print that text, in which ``...`` stands for anything; ``# about ...`` is not checked; is not run but written to the file that its first line names: ``# words.py`` |
| cython | compiled against the DataFlare that is installed, as the module that its first line names: ``# words.pyx`` |
| sh | runs in bash, which stops at the first command that fails |
| c | must compile without a warning against ``dataflare.h``, as C99 and as C++11; is written to the file that its first line names: ``/* words.c */`` |
| json, toml | must be read |
| text, promql | is output, a file, a drawing, a query: nothing happens |

Any other language is an error, as is a block without one. Blocks of MyST (``{toctree}``) are for
Sphinx, which fails at what it does not know.
"""  # noqa: E501

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ELSEWHERE = {
    "python3 -m venv": "job_readme",
    "pip install": "job_docs",
    "python -m benchmarks": "job_benchmarks",
    "sphinx-build": "job_docs",
}
"""Commands that need a network, or an environment of their own, and the job of .ci/run that has
them. A block of these alone is not run here; one that mixes them with others is an error."""

STANDARDS = {"c": "-std=c99", "c++": "-std=c++11"}


@dataclass(frozen=True)
class Block:
    """A code block of a document.

    Attributes
    ----------
    path : Path
    line : int
        Of its first line of code, counted from 1.
    language : str
        What stands behind the opening fence; empty of an indented block.
    code : str
    """

    path: Path
    line: int
    language: str
    code: str


def blocks_of(path: Path) -> list[Block]:
    """The code blocks of a document, in order, those in lists and quotations too."""
    found = []
    for token in MarkdownIt("commonmark").parse(path.read_text()):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            line = token.map[0] + (2 if token.type == "fence" else 1)
            found.append(Block(path, line, token.info.strip(), token.content))
    return found


def run(blocks: list[Block]) -> None:
    """Run blocks of one document."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    runners: dict[str, Callable[[Block], object]] = {
        "python": lambda block: run_python(block, namespace),
        "cython": build_cython,
        "sh": run_shell,
        "c": check_c,
        "json": lambda block: [json.loads(line) for line in block.code.splitlines()],
        "toml": lambda block: tomllib.loads(block.code),
        "text": lambda block: None,
        "promql": lambda block: None,
    }
    for block in blocks:
        if block.language.startswith("{"):
            continue
        if block.language not in runners:
            raise SystemExit(f"{block.path}:{block.line}: no known language: {block.language!r}")
        try:
            runners[block.language](block)
        except Exception:
            print(f"{block.path}:{block.line}: this block failed", file=sys.stderr)
            raise


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    """Run Python code; a traceback shows the lines of the document."""
    if named := re.match(r"# (\w+\.py)\n", block.code):
        Path(named[1]).write_text(block.code)
        return
    tree = ast.increment_lineno(ast.parse(block.code, str(block.path)), block.line - 1)
    output = StringIO()
    with redirect_stdout(output):
        exec(compile(tree, str(block.path), "exec"), namespace)
    sys.stdout.write(output.getvalue())
    printed = output.getvalue().splitlines()
    for expected in promised(block):
        pattern = ".*".join(map(re.escape, expected.split("...")))
        while printed and not re.fullmatch(pattern, printed[0]):
            del printed[0]
        assert printed, f"nothing printed {expected!r}, but: {output.getvalue()!r}"
        del printed[0]


def promised(block: Block) -> list[str]:
    """What the comments behind calls of `print` say that they print."""
    lines = block.code.splitlines()
    found = []
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
            assert node.end_lineno is not None
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            _, sign, comment = rest.partition("# ")
            if sign and not comment.startswith("about "):
                found.append((node.lineno, comment))
    return [comment for _, comment in sorted(found)]


def build_cython(block: Block) -> None:
    """Build an extension module in the current directory."""
    named = re.match(r"# (\w+)\.pyx\n", block.code)
    name = named[1] if named else f"block_{block.line}"
    Path(f"{name}.pyx").write_text(block.code)
    subprocess.run([sys.executable, "-m", "cython", "-3", f"{name}.pyx"], check=True)
    link = shlex.split(f"{variable('LDSHARED')} {variable('CFLAGS')} {variable('CCSHARED')}")
    target = f"{name}{variable('EXT_SUFFIX')}"
    subprocess.run([*link, "-O1", *includes(), f"{name}.c", "-o", target], check=True)
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True)


def check_c(block: Block) -> None:
    """Let the compilers look at C code, and leave it to the blocks behind it."""
    for kind in ("c", "c++"):
        command = [*shlex.split(variable("CC")), *includes(), f"-x{kind}", STANDARDS[kind]]
        command += ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-"]
        subprocess.run(command, input=block.code, text=True, check=True)
    if named := re.match(r"/\* (\w+\.c) \*/\n", block.code):
        Path(named[1]).write_text(block.code)


def includes() -> list[str]:
    """Where the headers of Python and of DataFlare are."""
    import dataflare

    return [f"-I{sysconfig.get_path('include')}", f"-I{dataflare.get_include()}"]


def variable(name: str) -> str:
    """How this Python builds extension modules."""
    return str(sysconfig.get_config_var(name))


def run_shell(block: Block) -> None:
    """Run commands; the programs of this environment come first."""
    elsewhere = [is_elsewhere(line) for line in commands_of(block)]
    if all(elsewhere):
        return
    assert not any(elsewhere), "commands for .ci/run stand in a block of their own"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})


def commands_of(block: Block) -> list[str]:
    """Its lines, without comments, what is continued joined."""
    joined = block.code.replace("\\\n", " ")
    lines = [line.strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def is_elsewhere(command: str) -> bool:
    """Whether a command is left to .ci/run."""
    return command.removeprefix(".venv/bin/").startswith(tuple(ELSEWHERE))


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    run(blocks_of(Path(sys.argv[1])))
