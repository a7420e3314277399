"""The header and the examples in C are clean in both languages."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("compiler", "standard", "suffix"), [("cc", "c99", "c"), ("c++", "c++11", "cc")]
)
@pytest.mark.parametrize("name", ["examples/c_plugin/words.c", "tests/cdoor/door.c"])
def test_header_and_examples_are_clean(compiling, tmp_path, name, compiler, standard, suffix):
    """In strict C99 and C++11, without a warning."""
    source = tmp_path / f"plugin.{suffix}"
    shutil.copy(ROOT / name, source)
    compiling(tmp_path / "plugin.o", source, f"-std={standard}", "-c", compiler=compiler)
