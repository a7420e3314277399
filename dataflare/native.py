"""The functions and structs of ``dataflare.h``, for plugins in languages that cannot include it.

Numba calls the functions from compiled code, ctypes from Python; any other language can be handed
their addresses.

Attributes
----------
commit, emit, fail, forward, reserve : ctypes functions
    ``df_commit`` and so on. They are called with the plugin's ``out``, and only while it is the
    plugin's turn.
capsule : function
    From a ``df_plugin`` to what `NativePlugin.from_capsule` takes.
PROCESS : ctypes function type
    ``int (*)(const df_record *, df_emitter *, void *)``.
RECORD : numpy.dtype
    ``df_record``, as numbers: ``value`` and ``key`` are addresses, `key` 0 if there is none.
SUCCESS, FILTERED, SKIP, ERROR : int
    What a plugin returns.

Raises
------
PluginConfigurationError
    When a function or a capsule is asked for on the pure backend.
"""

from __future__ import annotations

import ctypes
from typing import Any, cast

import numpy

from dataflare._backend import c_functions, new_capsule
from dataflare._pointers import LARGEST

__all__ = [
    "ERROR",
    "FILTERED",
    "PROCESS",
    "RECORD",
    "SKIP",
    "SUCCESS",
    "capsule",
    "commit",  # noqa: F822, here and below: made when asked for
    "emit",  # noqa: F822
    "fail",  # noqa: F822
    "forward",  # noqa: F822
    "reserve",  # noqa: F822
]

SUCCESS, FILTERED, SKIP, ERROR = range(4)

PROCESS = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

RECORD = numpy.dtype(
    [
        ("value", numpy.uintp),
        ("value_size", numpy.intp),
        ("key", numpy.uintp),
        ("key_size", numpy.intp),
        ("timestamp", numpy.int64),
        ("offset", numpy.int64),
        ("partition", numpy.int32),
    ],
    align=True,
)

_pointer, _size, _int = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_SIGNATURES = {
    "commit": (_int, _pointer, _size),
    "emit": (_int, _pointer, _pointer, _size),
    "fail": (_int, _pointer, _int, _pointer),
    "forward": (_int, _pointer, _pointer, _size, _size),
    "reserve": (_pointer, _pointer, _size),
}


def capsule(descriptor: object) -> object:
    """The capsule of a descriptor, for `NativePlugin.from_capsule`.

    Parameters
    ----------
    descriptor : ctypes object or int
        A ``df_plugin``, or its address: ``ctypes.c_char.in_dll(library, "words_plugin")`` is that
        of a library. The capsule, and each plugin of it, keeps the object; what an address leads
        to must stay valid as long.

    Returns
    -------
    PyCapsule

    Raises
    ------
    TypeError
        It is neither.
    ValueError
        The address is NULL, or none.
    PluginConfigurationError
        On the pure backend.
    """
    address = descriptor if isinstance(descriptor, int) else ctypes.addressof(cast(Any, descriptor))
    if not address:
        raise ValueError("the descriptor is a NULL pointer")
    if not 0 < address <= LARGEST:
        raise ValueError(f"{address} is no address of a descriptor")
    return new_capsule(address, descriptor)


def __getattr__(name: str) -> Any:
    if name not in _SIGNATURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = ctypes.CFUNCTYPE(*_SIGNATURES[name])(c_functions()[name])
    globals()[name] = function
    return function
