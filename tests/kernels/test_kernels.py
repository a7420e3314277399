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


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        pytest.param(["-O2"], 20_000, id="optimised"),
        pytest.param(["-O1", *SANITIZE], 2_000, id="sanitized"),
    ],
)
def test_kernels_agree_with_naive_loops(tmp_path: Path, options: list[str], rounds: int) -> None:
    """Every kernel answers as a naive loop does and stays inside its ranges."""
    program = tmp_path / "check_kernels"
    includes = [f"-I{KERNELS}", f"-I{PACKAGE / 'include'}"]
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    subprocess.run(
        [*compiler, *STRICT, *options, *includes, HERE / "check_kernels.c", "-o", program],
        check=True,
    )
    checked = subprocess.run([program, str(rounds)], capture_output=True, text=True, timeout=300)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[-1] == "scalar"
