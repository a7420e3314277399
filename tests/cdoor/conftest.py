"""Compiling C as the authors of plugins do, and the library of the tests."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import dataflare

HERE = Path(__file__).parent
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def compile_to(target: Path, source: Path, *options: str, compiler: str = "cc") -> Path:
    """Compile one file; what the compiler says is the test's failure."""
    command = [compiler, *STRICT, f"-I{dataflare.get_include()}", *options, str(source)]
    done = subprocess.run(
        [*command, "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def compiling() -> Callable[..., Path]:
    """`compile_to`."""
    return compile_to


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions of door.c."""
    target = tmp_path_factory.mktemp("door") / "libdoor.so"
    return ctypes.CDLL(
        str(compile_to(target, HERE / "door.c", "-std=c99", "-O1", "-g", "-shared", "-fPIC"))
    )
