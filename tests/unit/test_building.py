"""Where what is built is kept, and under which name; nothing is compiled here."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_threads

from dataflare import building
from dataflare.errors import PluginConfigurationError


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The sources that would have been compiled; what comes of them is their own text."""
    sources: list[bytes] = []

    def compile(path: str, source: bytes, name: str, command: object, folder: Path) -> Path:
        sources.append(source)
        (folder / "built").write_bytes(source)
        return folder / "built"

    # A package of its own, and no compiled one: a build in pure Python runs these tests, too.
    package = tmp_path / "package"
    (package / "include").mkdir(parents=True)
    (package / "__init__.pxd").touch()
    (package / "include" / "dataflare.h").touch()
    monkeypatch.setattr(building, "_PACKAGE", package)
    monkeypatch.setattr(building, "backend", "cython")
    monkeypatch.setattr(building, "_compile", compile)
    monkeypatch.setenv("DATAFLARE_CACHE", str(tmp_path / "cache"))
    for name in ("CC", "CFLAGS", "LDFLAGS"):
        monkeypatch.delenv(name, raising=False)
    return sources


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a plugin ü.pyx"
    path.write_text("source")
    return path


def test_the_name_of_a_result_has_all_that_it_depends_on(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: the same again is not built again."""
    package = tmp_path / "package"
    changes: list[Callable[[], object]] = [
        lambda: source.write_text("another source"),
        lambda: monkeypatch.setenv("CFLAGS", "-O1"),
        lambda: monkeypatch.setenv("LDFLAGS", "-lm"),
        lambda: monkeypatch.setenv("CC", "cc -pipe"),
        lambda: monkeypatch.setattr(building, "VERSION", "9.9"),
        lambda: monkeypatch.setattr(sys, "version", "3.99"),
        lambda: monkeypatch.setattr("Cython.__version__", "9.9"),
        lambda: monkeypatch.setattr(building.np, "__version__", "9.9"),
        lambda: monkeypatch.setattr(building, "NativePlugin", type("NativePluginABI99", (), {})),
        lambda: (package / "__init__.pxd").write_text("another interface"),
        lambda: (package / "include" / "dataflare.h").write_text("another header"),
    ]
    seen = [building.build(source)]
    for change in changes:
        change()
        seen.append(building.build(source))
        assert building.build(source) == seen[-1]
    assert len(set(seen)) == len(compiled) == len(changes) + 1
    assert {path.name.partition(".")[0] for path in seen} == {"a_plugin__"}


def test_threads_that_start_together_build_once(compiled: list[bytes], source: Path) -> None:
    """The lock is one between threads, too."""
    found: list[Path] = []
    run_threads(*[lambda: found.append(building.build(source))] * 4)
    assert len(set(found)) == len(compiled) == 1


def test_a_failure_leaves_the_others_a_chance(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for a build that fails builds itself."""
    compile = building._compile
    attempts: list[Path] = []

    def fail_first(path: str, source: bytes, name: str, command: object, folder: Path) -> Path:
        attempts.append(folder)
        if len(attempts) == 1:
            time.sleep(0.05)  # the others are waiting then
            raise PluginConfigurationError("interrupted")
        return compile(path, source, name, command, folder)

    monkeypatch.setattr(building, "_compile", fail_first)
    ended: list[object] = []

    def build() -> None:
        try:
            ended.append(building.build(source).read_text())
        except PluginConfigurationError as error:
            ended.append(str(error))

    run_threads(*[build] * 4)
    assert sorted(map(str, ended)) == ["interrupted", "source", "source", "source"]


def test_a_cache_that_fails_in_the_middle(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half is left, and the next attempt begins anew."""

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(PluginConfigurationError, match=r"the cache .*No space left"):
            building.build(source)
    assert not [*(tmp_path / "cache" / "native").iterdir()]
    assert building.build(source).read_text() == "source"


@pytest.mark.parametrize("which", range(4))
def test_what_another_user_built_is_not_run(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """Nor what one could have put there; the folders up to the cache count, too."""
    built = building.build(source)
    path = [built, *built.parents][which]
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(PluginConfigurationError, match="can be written by other users") as caught:
        building.build(source)
    assert str(caught.value).startswith(f"{path} ")
    path.chmod(0o755)
    assert building.build(source) == built
    if os.geteuid() == 0:
        os.chown(path, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: -1)
    with pytest.raises(PluginConfigurationError, match="belongs to another user"):
        building.build(source)


def test_a_link_in_the_cache_is_not_followed(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is the cache itself, which its user put elsewhere."""
    monkeypatch.setenv("DATAFLARE_CACHE", str(tmp_path / "link"))
    (tmp_path / "elsewhere").mkdir(0o755)
    (tmp_path / "link").symlink_to("elsewhere")
    built = building.build(source)
    for path in (built, built.parent):
        path.rename(path.with_name("moved"))
        path.symlink_to("moved")
        with pytest.raises(PluginConfigurationError, match=f"{path} is a symbolic link"):
            building.build(source)
        path.unlink()
        path.with_name("moved").rename(path)


def test_who_has_the_lock_may_be_another_user(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found after the wait is looked at, too."""
    built = building.build(source)
    built.unlink()
    flock = building.fcntl.flock

    def leave_a_trap(*arguments: int) -> None:
        flock(*arguments)
        built.write_bytes(b"another user's code")
        built.chmod(0o777)

    monkeypatch.setattr(building.fcntl, "flock", leave_a_trap)
    with pytest.raises(PluginConfigurationError, match="can be written by other users"):
        building.build(source)


def test_a_folder_of_another_user_is_not_even_locked(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who would have to be waited for."""
    folder = building.build(source).parent
    [built] = folder.iterdir()
    built.unlink()
    folder.chmod(0o777)
    monkeypatch.setattr(building.fcntl, "flock", lambda *arguments: pytest.fail("it is locked"))
    with pytest.raises(PluginConfigurationError, match="can be written by other users"):
        building.build(source)


def test_a_lock_that_is_never_given_back(
    compiled: list[bytes],
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The wait is told, and ends; what the others have there is left to them."""
    built = building.build(source)
    built.unlink()
    descriptor = os.open(built.parent, os.O_RDONLY)
    building.fcntl.flock(descriptor, building.fcntl.LOCK_EX)
    monkeypatch.setattr(building, "_QUIET", 0.0)
    monkeypatch.setattr(building, "_PATIENCE", 0.1)
    with pytest.raises(PluginConfigurationError, match=r"keeps .* more than 0\.1 seconds"):
        building.build(source)
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process, which has {built.parent} locked to build it"
    ]
    assert built.parent.is_dir()
    os.close(descriptor)
    assert building.build(source) == built


def test_no_umask_lets_others_write_to_the_cache(compiled: list[bytes], source: Path) -> None:
    """Many systems let the group of a user write to what is new."""
    before = os.umask(0o002)
    try:
        built = building.build(source)
    finally:
        os.umask(before)
    assert building.build(source) == built


def test_what_is_built_and_cannot_be_loaded(compiled: list[bytes], source: Path) -> None:
    """The sentence says where it is."""
    with pytest.raises(PluginConfigurationError) as caught:
        building.import_file(source)
    assert str(building.build(source)) in str(caught.value)
    assert re.search("failed: ImportError: ", str(caught.value))


def test_what_was_built_for_other_base_classes(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a result that somebody copied: what to do is said, and Cython's sentence is the cause."""
    error = ValueError(
        "dataflare._compiled.plugin.DataFlarePlugin size changed, may indicate binary "
        "incompatibility. Expected 24 from C header, got 32 from PyObject"
    )

    def refuse(target: Path) -> None:
        raise error

    monkeypatch.setattr(building, "_import", refuse)
    with pytest.raises(PluginConfigurationError) as caught:
        building.import_file(source)
    assert re.search(
        "failed: it was built with another .*: build the plugin again", str(caught.value)
    )
    assert caught.value.__cause__ is error


def test_options_of_setuptools_are_not_passed_over(compiled: list[bytes], source: Path) -> None:
    """What the author asks for is not left out in silence."""
    source.write_text("# a plugin\n# distutils: libraries = z\n")
    with pytest.raises(PluginConfigurationError, match="says '# distutils: libraries = z'"):
        building.build(source)


@pytest.mark.parametrize(
    "line",
    [
        'include "/usr/x.pxi"',
        "include\t'../x.pxi'",
        'cdef extern from "/usr/k.h":',
        'cdef  extern  from\\\n  r"a/../k.h" nogil:',
        'cdef extern from *:\n    """\n    #include </usr/k.h>\n    """',
        '    # include "../../k.h"',
    ],
)
def test_nothing_is_included_that_may_change(
    compiled: list[bytes], source: Path, line: str
) -> None:
    """Without the name of the result changing with it."""
    source.write_text(f"import x\n{line}\n")
    with pytest.raises(PluginConfigurationError, match=r" includes '.*(k.h|x.pxi)', and would not"):
        building.build(source)
    source.write_text("include 'a..b/x.pxi'\ncdef extern from 'sys/k.h': pass\n#include <a/..b>\n")
    assert building.build(source).is_file()


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("1-2", "_1_2"),  # C wants an identifier
        ("x" * 251, "x" * 100),
        ("__init__", "plugin___init__"),
        ("numpy", "plugin_numpy"),
        ("cython", "plugin_cython"),
        ("cpython", "plugin_cpython"),
        ("dataflare", "plugin_dataflare"),
        ("json", "plugin_json"),
        ("not_empty", "not_empty"),
    ],
)
def test_names_of_modules(compiled: list[bytes], tmp_path: Path, stem: str, name: str) -> None:
    """They are those of the files, unless something else is called so."""
    path = tmp_path / f"{stem}.pyx"
    path.write_text("source")
    assert building.build(path).name.partition(".")[0] == name


@pytest.mark.parametrize("variable", ["CC", "CFLAGS", "LDFLAGS"])
def test_a_variable_that_is_no_command(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """It is named."""
    monkeypatch.setenv(variable, "-DX='")
    with pytest.raises(PluginConfigurationError, match=f'variable {variable} is "-DX=\'", which'):
        building.build(source)


def test_a_working_directory_that_is_gone(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is relative to it has no meaning, and the rest goes on."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert building.build(source).is_file()
    for variable in ("CC", "DATAFLARE_CACHE"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "./here")
            with pytest.raises(PluginConfigurationError, match=f"variable {variable} is './here'"):
                building.build(source)


def test_a_cache_that_cannot_be_entered(
    compiled: list[bytes], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence is that of one that cannot be written."""
    stat = Path.stat

    def refuse(path: Path, **options: bool) -> os.stat_result:
        if path.is_relative_to(tmp_path / "cache"):  # which the superuser could enter
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PluginConfigurationError, match=r"the cache .*Permission denied"):
        building.build(source)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG specification says, and where macOS has them; a variable of ours comes first."""
    monkeypatch.delenv("DATAFLARE_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert building.cache_directory() == Path("/caches/dataflare")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert building.cache_directory() == Path("/home/ada/.cache/dataflare")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert building.cache_directory() == Path("/home/ada/Library/Caches/dataflare")
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "expanduser", lambda path: path)
        with pytest.raises(PluginConfigurationError, match="set DATAFLARE_CACHE"):
            building.cache_directory()
    monkeypatch.setenv("DATAFLARE_CACHE", "here")
    assert building.cache_directory() == Path.cwd() / "here"
