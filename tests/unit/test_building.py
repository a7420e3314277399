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


def test_what_another_user_built_is_not_run(
    compiled: list[bytes], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless that is the superuser."""
    built = building.build(source)
    if os.geteuid() == 0:
        os.chown(built, 1, 1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: -1)
    with pytest.raises(PluginConfigurationError, match="belongs to another user"):
        building.build(source)


def test_what_is_built_and_cannot_be_loaded(compiled: list[bytes], source: Path) -> None:
    """The sentence says where it is."""
    with pytest.raises(PluginConfigurationError) as caught:
        building.import_file(source)
    assert str(building.build(source)) in str(caught.value)
    assert re.search("failed: ImportError: ", str(caught.value))


def test_options_of_setuptools_are_not_passed_over(compiled: list[bytes], source: Path) -> None:
    """What the author asks for is not left out in silence."""
    source.write_text("# a plugin\n# distutils: libraries = z\n")
    with pytest.raises(PluginConfigurationError, match="says '# distutils: libraries = z'"):
        building.build(source)


def test_names_that_are_no_identifiers(compiled: list[bytes], tmp_path: Path) -> None:
    """C wants one."""
    path = tmp_path / "1-2.pyx"
    path.write_text("source")
    assert building.build(path).name.startswith("_1_2.")


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
