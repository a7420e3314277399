"""The doors of C functions on both backends."""

import subprocess
import sys

import numpy
import pytest

from dataflare import PluginConfigurationError, native

SENTENCE = "a native plugin needs the compiled backend"


def test_pure_mode_refuses_native_plugins(backends) -> None:
    """The same names, and one sentence whatever they are given."""
    pure = backends[1].NativePlugin
    for call in (
        pure,
        lambda: pure.from_function(5, name="x", state=None, thread_safe=True, description=""),
        lambda: pure.from_capsule(None, name="x", config=""),
        backends[1].c_functions,
    ):
        with pytest.raises(PluginConfigurationError, match=SENTENCE):
            call()


def test_pure_mode_has_no_functions(tmp_path) -> None:
    """The module is there; what is missing says why."""
    code = "import dataflare.native as n; print(n.RECORD.itemsize, n.SKIP); n.emit"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"DATAFLARE_PURE_PYTHON": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "56 2\n"
    assert f"PluginConfigurationError: {SENTENCE}" in done.stderr.splitlines()[-1]


def test_the_module_has_what_it_says() -> None:
    """Layout and statuses, and no more."""
    assert (native.SUCCESS, native.FILTERED, native.SKIP, native.ERROR) == (0, 1, 2, 3)
    assert native.RECORD.fields["timestamp"] == (numpy.dtype(numpy.int64), 32)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = native.nothing


def test_who_makes_no_such_plugin_loads_nothing_for_it(tmp_path) -> None:
    """Neither the door nor ctypes is part of the package's start."""
    code = (
        "import sys, dataflare; print({'dataflare.native', 'dataflare._pointers', "
        "'dataflare._compiled.c_plugin'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
