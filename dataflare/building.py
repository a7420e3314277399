"""Builds native plugins of a single file, and keeps what was built.

a) What is built is named by everything that it depends on: the source, the interface of this
   DataFlare, Python, Cython, NumPy and the compiler's command. So nothing in the cache is ever out
   of date, and nothing is built twice.
b) Cython and the compiler work on a copy of the source that was read for the name, in a folder of
   its own. A file beside it would not be part of the name, and so cannot be included. Nor would
   one that is named by its whole path, or by way of the folder above: that is refused.
c) The compiler is called the way this Python calls it for extension modules (`sysconfig`). That is
   one command and needs no package besides Cython: setuptools is not part of Python any more, and
   a project for meson takes longer to set up than the file takes to compile.
d) A result appears in the cache complete, by a rename. Who finds it missing takes the lock of its
   folder first, so that many processes that start together wait for one that builds.
e) What is in the cache runs as the user that loads it. So nobody else may own or write anything
   between the cache and the result, and that is looked at each time, and again under the lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import logging
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np

from dataflare._abi import why_not_loaded
from dataflare._backend import NativePlugin, backend
from dataflare._build_info import VERSION
from dataflare._later import Turns
from dataflare.errors import PluginConfigurationError

__all__ = ["build", "cache_directory"]

_PACKAGE = Path(__file__).parent
_OLDEST_CYTHON = (3, 1)
_FOR_SETUPTOOLS = re.compile(rb"^\s*#\s*distutils\s*:.*", re.M)
# `include "x"`, `cdef extern from "x"`, and C's `#include <x>` in what is taken over verbatim.
_INCLUDED = re.compile(
    rb"""\b(?:include|extern(?:\s|\\\n)+from)(?:\s|\\\n)*[a-zA-Z]?["'<]+([^"'<>\n]*)"""
)
_FOREIGN = re.compile(rb"/|.*(?<![^/])\.\.(?![^/])")
_LONGEST_NAME = 100  # of a module: what is made of it are names of files, of 255 bytes at most

_QUIET, _PATIENCE = 10.0, 300.0  # seconds of waiting for a lock: without a word, and at most

_logger = logging.getLogger("dataflare")
_turns = Turns()
_loaded: dict[Path, ModuleType] = {}
_failed: dict[Path, str] = {}  # why


def cache_directory() -> Path:
    """Where native plugins that were built are kept.

    Returns
    -------
    Path
        What the environment variable ``DATAFLARE_CACHE`` says; otherwise ``dataflare`` in the
        user's folder for caches: ``XDG_CACHE_HOME``, ``~/Library/Caches`` on macOS, ``~/.cache``.

    Raises
    ------
    PluginConfigurationError
        There is no home directory, and no variable that helps; or what it says is relative to a
        working directory that is gone.
    """
    if chosen := os.environ.get("DATAFLARE_CACHE"):
        return Path(_absolute(chosen, "DATAFLARE_CACHE"))
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # the specification says to ignore it then
        caches = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        caches = os.path.expanduser(caches)
        if not os.path.isabs(caches):
            raise PluginConfigurationError(
                "nobody knows the home directory, where what is built is kept: set DATAFLARE_CACHE"
            )
    return Path(caches, "dataflare")


def build(path: str | os.PathLike[str]) -> Path:
    """Build a native plugin of a single file, unless that was done before.

    Parameters
    ----------
    path : str or path-like
        A ``.pyx`` file. It includes nothing that stands beside it.

    Returns
    -------
    Path
        The extension module, in the cache; its folder holds nothing else.

    Raises
    ------
    PluginConfigurationError
        It does not compile; the message has what the compiler said. Or something is missing that
        is needed to build: the compiled backend, Cython, a C compiler, the headers of Python, or
        a cache that can be written.

    Notes
    -----
    The environment variables ``CC``, ``CFLAGS`` and ``LDFLAGS`` are heeded.
    """
    shown = os.fsdecode(path)
    if backend != "cython":
        NativePlugin()  # of the pure backend, which says what to do
    source = _read(shown)
    _cython_version()  # what follows needs it
    name = _module_name(Path(shown).stem)
    command = _compiler_command()
    key = _key(source, name, command)
    target = cache_directory() / "native" / f"{name}-{key}" / f"{name}{_config('EXT_SUFFIX')}"
    if not _is_built(target):
        compiler = _find_compiler(command[0])
        with _locked(target):
            if not _is_built(target):
                with _folder() as folder:
                    built = _compile(shown, source, name, [compiler, *command[1:]], folder)
                    _move(built, target)
    return target


def import_file(path: str | os.PathLike[str]) -> ModuleType:
    """The module of a native plugin of a single file, built if need be.

    Parameters
    ----------
    path : str or path-like
        A ``.pyx`` file. If it changed since it was loaded, it is another module.

    Raises
    ------
    PluginConfigurationError
        It cannot be built, or what was built cannot be loaded. If that failed once, it fails again
        in this process.
    """
    target = build(path)
    shown = f"{os.fsdecode(path)}, which was built as {target},"
    with _turns.take(target) as is_mine:
        if target in _failed:
            raise PluginConfigurationError(
                f"loading {shown} failed before, and Cython's modules can be loaded once in a "
                f"process: start a new one. It was {_failed[target]}"
            )
        if target not in _loaded:
            if not is_mine:
                raise PluginConfigurationError(f"loading {shown} needs what is in it already")
            try:
                _loaded[target] = _import(target)
            except BaseException as error:
                _failed[target] = why_not_loaded(error)
                if not isinstance(error, Exception | SystemExit):
                    raise
                raise PluginConfigurationError(
                    f"loading {shown} failed: {_failed[target]}"
                ) from error
        return _loaded[target]


def _read(path: str) -> bytes:
    if not path.endswith(".pyx"):
        raise PluginConfigurationError(f"{path} is not a .pyx file")
    try:
        source = Path(path).read_bytes()
    except FileNotFoundError:
        raise PluginConfigurationError(f"there is no file {path}") from None
    except OSError as error:
        raise PluginConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # characters that no path has
        raise PluginConfigurationError(f"{path!r} is not the path of a file: {error}") from error
    if found := _FOR_SETUPTOOLS.search(source):
        line = found[0].decode(errors="replace").strip()
        raise PluginConfigurationError(
            f"{path} says {line!r}, which only setuptools understands: make a package of it"
        )
    for included in _INCLUDED.findall(source):
        if _FOREIGN.match(included):
            name = included.decode(errors="replace")
            raise PluginConfigurationError(
                f"{path} includes {name!r}, and would not be built again if that changed: make a "
                f"package of it"
            )
    return source


def _module_name(stem: str) -> str:
    """A name for a module that C allows, too, and that nobody takes for another module."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)[:_LONGEST_NAME]
    if not name.isidentifier():
        name = f"_{name}"
    return f"plugin_{name}" if _is_taken(name) else name


def _is_taken(name: str) -> bool:
    """Whether Cython, or what the file imports, means something else by the name of a module."""
    if name in sys.stdlib_module_names or name in ("cython", "dataflare") or name.startswith("__"):
        return True
    cython = Path(importlib.import_module("Cython").__path__[0])
    return any(
        (folder / declared).is_file()
        for folder in (_PACKAGE.parent, Path(np.__file__).parents[1], cython / "Includes")
        for declared in (f"{name}.pxd", f"{name}/__init__.pxd")
    )


def _config(name: str) -> str:
    return str(sysconfig.get_config_var(name) or "")


def _headers() -> str:
    return sysconfig.get_path("include")


def _compiler_command() -> list[str]:
    """How the compiler is called, but for the names of files."""
    configured = shlex.split(_config("CC"))
    compiler = _words("CC") or configured or ["cc"]
    if os.sep in compiler[0]:  # it is called in another folder
        compiler[0] = _absolute(compiler[0], "CC")
    linker = shlex.split(_config("LDSHARED"))
    if linker[: len(configured)] == configured:
        linker = linker[len(configured) :]
    flags = [*_config("CFLAGS").split(), *_config("CCSHARED").split()]
    folders = [_headers(), str(_PACKAGE / "include"), np.get_include()]
    added = [*_words("CFLAGS"), *_words("LDFLAGS")]
    return [*compiler, *linker, *flags, *(f"-I{folder}" for folder in folders), *added]


def _words(variable: str) -> list[str]:
    """What an environment variable says, as a shell takes it."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise PluginConfigurationError(
            f"the environment variable {variable} is {value!r}, which no shell would take: {error}"
        ) from error


def _absolute(path: str, variable: str) -> str:
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        raise PluginConfigurationError(
            f"the environment variable {variable} is {path!r}, which is relative, and there is no "
            f"working directory: {error.strerror}"
        ) from error


def _key(source: bytes, name: str, command: Sequence[str]) -> str:
    """A name for all that the result depends on."""
    interface = [_PACKAGE / "__init__.pxd", *sorted(_PACKAGE.glob("_compiled/*.pxd"))]
    interface += sorted(_PACKAGE.glob("include/*.h"))
    digest = hashlib.sha256()
    for part in (
        *(path.read_bytes() for path in interface),
        f"{VERSION} {NativePlugin.__name__}".encode(),
        f"{sys.version} {_config('EXT_SUFFIX')}".encode(),
        f"{_cython_version()} {np.__version__}".encode(),
        os.fsencode("\0".join(command)),
        name.encode(),
        source,
    ):
        digest.update(b"%d\0" % len(part) + part)
    return digest.hexdigest()[:32]


def _cython_version() -> str:
    try:
        version = str(importlib.import_module("Cython").__version__)
    except ImportError:
        raise PluginConfigurationError(
            "building a native plugin needs Cython: pip install 'dataflare[build]'"
        ) from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST_CYTHON:
        raise PluginConfigurationError(
            f"building a native plugin needs Cython 3.1 or newer, and this is {version}: "
            f"pip install 'dataflare[build]'"
        )
    return version


def _find_compiler(wanted: str) -> str:
    """The program that compiles C, once it is clear that it has what it needs."""
    # Python may have been built with a compiler that is not on this machine.
    others = () if os.environ.get("CC") else ("cc", "gcc", "clang")
    found = next(filter(None, map(shutil.which, (wanted, *others))), None)
    if found is None:
        raise PluginConfigurationError(
            f"building a native plugin needs a C compiler, and there is no {wanted!r}: install "
            f"gcc or clang, or say in the environment variable CC what to call"
        )
    if not os.path.isfile(os.path.join(_headers(), "Python.h")):
        raise PluginConfigurationError(
            f"building a native plugin needs the headers of Python, and there is no Python.h in "
            f"{_headers()}: install the package that has them, such as python3-dev"
        )
    return os.path.abspath(found)  # it is called in another folder


@contextmanager
def _written_to(where: str, variable: str) -> Iterator[None]:
    """Say which variable helps where something cannot be written."""
    try:
        yield
    except OSError as error:
        raise PluginConfigurationError(
            f"building a native plugin writes to {where}, and that failed: {error.strerror}: let "
            f"{variable} be a directory that can be written"
        ) from error


def _written_to_temporary() -> AbstractContextManager[None]:
    return _written_to("a temporary directory", "TMPDIR")


def _written_to_cache() -> AbstractContextManager[None]:
    return _written_to(f"the cache {cache_directory()}", "DATAFLARE_CACHE")


def _folders(target: Path) -> list[Path]:
    """From the cache down to that of a result."""
    return [target.parents[2], target.parents[1], target.parent]


def _is_built(target: Path) -> bool:
    """Whether the result is there; an error if somebody else may have put it there, or could."""
    cache, *inside = _folders(target)
    with _written_to_cache():
        try:
            # The user may have put the cache elsewhere by a link. Inside it there are none.
            if cache.is_symlink():
                _refuse_others(cache, cache.lstat().st_uid, 0)
            status = cache.stat()
            _refuse_others(cache, status.st_uid, status.st_mode)
            for path in (*inside, target):
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    raise PluginConfigurationError(
                        f"{path} is a symbolic link, which DataFlare did not make: remove it"
                    )
                _refuse_others(path, status.st_uid, status.st_mode)
        except FileNotFoundError:
            return False
    return stat.S_ISREG(status.st_mode)


def _refuse_others(path: Path, owner: int, mode: int) -> None:
    """Raise an error if other users can change what is at a path."""
    if owner not in (0, os.geteuid()):
        raise PluginConfigurationError(
            f"{path} belongs to another user, whose code would run as yours: set "
            f"DATAFLARE_CACHE to a directory of your own"
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PluginConfigurationError(
            f"{path} can be written by other users, whose code would run as yours: take that "
            f"away (chmod go-w), or set DATAFLARE_CACHE to a directory of your own"
        )


def _make_folders(target: Path) -> None:
    folders = _folders(target)
    folders[0].parent.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        folder.mkdir(0o755, exist_ok=True)  # for the user alone to write, whatever the umask


@contextmanager
def _folder() -> Iterator[Path]:
    with ExitStack() as stack:
        with _written_to_temporary():
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="dataflare-", ignore_cleanup_errors=True)
            )
        yield Path(folder)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Make the folder of a result, and be the only one in it."""
    descriptor = None
    with _written_to_cache():
        while descriptor is None:
            _make_folders(target)
            _is_built(target)  # a folder that others made in between is refused, not waited for
            with suppress(FileNotFoundError):  # somebody who failed took it away in between
                descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _lock(descriptor, target.parent)
        try:
            yield
        finally:
            with suppress(OSError):  # there is something in it, unless it failed
                target.parent.rmdir()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock of a folder; an error if somebody else keeps it for too long."""
    begun = time.monotonic()
    is_said = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - begun
        except OSError:
            # Some network file systems have no locks: then several build, the last result stays.
            return
        else:
            return
        if waited >= _PATIENCE:
            # Whoever can read the folder can keep its lock, and a process may be stopped.
            raise PluginConfigurationError(
                f"another process keeps {folder} locked, as if it built the same file, for more "
                f"than {_PATIENCE:g} seconds: end it, or set DATAFLARE_CACHE to another directory"
            )
        if waited >= _QUIET and not is_said:
            _logger.warning("waiting for another process, which has %s locked to build it", folder)
            is_said = True
        time.sleep(0.02)


def _compile(path: str, source: bytes, name: str, compiler: Sequence[str], folder: Path) -> Path:
    """Make an extension module of `source` in a folder."""
    pyx, c, built = f"{name}.pyx", f"{name}.c", f"{name}.so"
    with _written_to_temporary():
        (folder / pyx).write_bytes(source)
    translate = [sys.executable, "-P", "-m", "cython", "-3", "--line-directives"]
    for command, made in (
        ([*translate, f"-I{_PACKAGE.parent}", f"--module-name={name}", pyx], c),
        ([*compiler, c, "-o", built], built),
    ):
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise PluginConfigurationError(
                f"building a native plugin calls {command[0]}, and that cannot be run: "
                f"{error.strerror}"
            ) from error
        said = re.sub(rf"\b{re.escape(pyx)}(?=:\d+)", lambda _: path, done.stdout).strip()
        if done.returncode != 0:
            said = said or f"{command[0]} ended with status {done.returncode}"
            raise PluginConfigurationError(f"{path} does not compile:\n{said}")
        if not (folder / made).is_file():
            raise PluginConfigurationError(
                f"building a native plugin calls {command[0]}, which ended well and made nothing"
                + f":\n{said}" * bool(said)
            )
    return folder / built


def _move(built: Path, target: Path) -> None:
    """Put a file in its place in one step; it is whole, also after the machine lost power."""
    content = built.read_bytes()
    with _written_to_cache():
        _make_folders(target)  # whoever had the lock before and failed has taken it away
        descriptor, temporary = tempfile.mkstemp(dir=target.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.chmod(temporary, 0o755)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def _import(target: Path) -> ModuleType:
    name = target.name.partition(".")[0]
    spec = spec_from_file_location(name, target)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        # Cython's modules enter themselves. This one stands for its file alone, and must not be
        # what somebody else's `import` finds.
        if sys.modules.get(name) is module:
            del sys.modules[name]
    return module
