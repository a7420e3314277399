"""Compiles the harness of the C kernels and runs it at every level this CPU has."""

import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "dataflare"
KERNELS = PACKAGE / "_compiled" / "kernels"

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


INCLUDES = [f"-I{KERNELS}", f"-I{PACKAGE / 'include'}"]


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        pytest.param(["-O2"], 20_000, id="optimised"),
        pytest.param(["-O1", *SANITIZE], 2_000, id="sanitized"),
    ],
)
def test_kernels_agree_with_naive_loops(tmp_path: Path, options: list[str], rounds: int) -> None:
    """Every kernel answers as a naive loop does and stays inside its ranges."""
    check(tmp_path, shlex.split(sysconfig.get_config_var("CC")), options, rounds)


@pytest.mark.compilers
def test_kernels_of_clang(tmp_path: Path) -> None:
    """The same, at the same levels of the CPU."""
    levels = check(tmp_path, ["clang"], ["-O2"], 20_000)
    assert levels == check(tmp_path, shlex.split(sysconfig.get_config_var("CC")), ["-O2"], 1)


@pytest.mark.compilers
def test_kernels_compile_for_arm(tmp_path: Path) -> None:
    """Where there is the portable version alone."""
    compiler = ["aarch64-linux-gnu-gcc", *STRICT, "-O2", *INCLUDES, "-c"]
    target = tmp_path / "kernels.o"
    subprocess.run([*compiler, KERNELS / "kernels.c", "-o", target], check=True)
    assert b"avx" not in target.read_bytes()


def check(folder: Path, compiler: list[str], options: list[str], rounds: int) -> list[str]:
    """Build the harness, run it, and return the levels that it tried."""
    program = folder / "check_kernels"
    source = HERE / "check_kernels.c"
    subprocess.run([*compiler, *STRICT, *options, *INCLUDES, source, "-o", program], check=True)
    checked = subprocess.run([program, str(rounds)], capture_output=True, text=True, timeout=300)
    assert checked.returncode == 0, checked.stderr
    levels = checked.stdout.splitlines()
    assert levels[-1] == "scalar"
    return levels
