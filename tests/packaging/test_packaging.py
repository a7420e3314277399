"""What is installed: the backend that was built, and all that users and authors need."""

import subprocess
import sys
from pathlib import Path

import dataflare
from dataflare import _build_info

PACKAGE = Path(dataflare.__file__).parent
SOURCE = Path(__file__).parents[2]


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run this Python."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )


def test_the_compiled_backend_is_loaded() -> None:
    """A build for tests is a compiled one, and it is what runs."""
    assert _build_info.COMPILED
    assert dataflare.backend == "cython"
    assert dataflare.RecordBatch.__module__ == "dataflare._compiled.batch"


def test_the_package_is_not_the_source_tree() -> None:
    """Tests run against what was installed."""
    assert SOURCE not in PACKAGE.parents or ".venv" in PACKAGE.parts


def test_authors_find_what_they_need() -> None:
    """The .pxd files, the header, the stubs and the marker for types are installed."""
    assert (Path(dataflare.get_include()) / "dataflare.h").is_file()
    assert (PACKAGE / "__init__.pxd").is_file()
    assert (PACKAGE / "py.typed").is_file()
    for name in ("types", "plugin", "pool", "batch"):
        assert (PACKAGE / "_compiled" / f"{name}.pxd").is_file()
    for source in (SOURCE / "dataflare").rglob("*.py*"):
        if source.suffix in {".py", ".pxd", ".pyi"}:
            assert (PACKAGE / source.relative_to(SOURCE / "dataflare")).is_file(), source


def test_authors_page_is_short() -> None:
    """What a native plugin may use is read in two minutes."""
    assert len((PACKAGE / "__init__.pxd").read_text().splitlines()) <= 60


def test_version_comes_from_one_place() -> None:
    """The version of the package is that of its metadata."""
    from importlib.metadata import version

    assert dataflare.__version__ == version("dataflare")


def test_source_tree_says_what_to_do() -> None:
    """Importing an unbuilt source tree is an error of one sentence."""
    done = python("-c", "import dataflare", cwd=SOURCE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: DataFlare is not built here: this is its source tree, so run "
        "'pip install .' in it and start Python in another directory"
    )


def test_broken_install_says_what_to_do(tmp_path: Path) -> None:
    """A compiled module that is missing is an error of one sentence, not a silent fallback."""
    import shutil

    copy = tmp_path / "dataflare"
    shutil.copytree(PACKAGE, copy)
    for extension in (copy / "_compiled").glob("pool.*.so"):
        extension.unlink()
    done = python("-c", "import dataflare", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: DataFlare's compiled backend cannot be loaded")
    assert "install the package again, or set DATAFLARE_PURE_PYTHON=1" in last


def test_pure_mode_by_environment(tmp_path: Path) -> None:
    """DATAFLARE_PURE_PYTHON=1 selects the pure backend, which refuses native plugins."""
    code = "import dataflare; print(dataflare.backend); dataflare.NativePlugin()"
    done = python("-c", code, cwd=tmp_path, env={"DATAFLARE_PURE_PYTHON": "1"})
    assert done.stdout == "python\n"
    assert done.stderr.splitlines()[-1].startswith("dataflare.errors.PluginConfigurationError:")


def test_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    """DATAFLARE_SIMD with a name that this CPU lacks is an error of one sentence."""
    done = python("-c", "import dataflare", cwd=tmp_path, env={"DATAFLARE_SIMD": "mmx"})
    assert "DATAFLARE_SIMD: this CPU has no instruction set 'mmx'" in done.stderr
    code = "from dataflare import _backend; print(_backend.simd_level())"
    assert python("-c", code, cwd=tmp_path, env={"DATAFLARE_SIMD": "scalar"}).stdout == "scalar\n"
