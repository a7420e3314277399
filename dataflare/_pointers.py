"""From what names a C function or memory to its address, and to what keeps it valid.

ctypes, cffi and Numba are looked up among the modules that are loaded: whoever has an object of
theirs has loaded them, and nobody else needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from dataflare.errors import IncompatiblePluginError

__all__ = ["Pointer", "function_pointer", "memory_pointer"]

SIGNATURE = "int process(const df_record *, df_emitter *, void *)"
STRUCTS = ("df_record", "df_emitter")
LARGEST = 2 * sys.maxsize + 1
WITHOUT_RELEASE = 4  # ctypes: the function is called with the GIL, and may count on it


class Pointer(NamedTuple):
    """An address, what must stay alive for it, and what it calls itself."""

    address: int
    owner: object
    name: str | None = None


def function_pointer(function: object, sizes: Sequence[int]) -> Pointer:
    """Where a C function is.

    Parameters
    ----------
    function : ctypes function, cffi function pointer, numba.cfunc, or int
    sizes : sequence of int
        Bytes of a df_record and of a df_emitter.

    Raises
    ------
    TypeError
        It is no C function, or is declared with another signature.
    ValueError
        It is NULL, or no address.
    IncompatiblePluginError
        It is declared with structs of other sizes.
    """
    ctypes, cffi = sys.modules.get("ctypes"), sys.modules.get("_cffi_backend")
    if isinstance(function, int) and not isinstance(function, bool):
        found = Pointer(function, function)
    elif ctypes and isinstance(function, ctypes._CFuncPtr):
        found = _of_ctypes(ctypes, function, sizes)
    elif cffi and isinstance(function, cffi._CDataBase):
        found = _of_cffi(cffi, function, sizes)
    elif isinstance(getattr(function, "address", None), int):
        found = _of_numba(function)
    else:
        raise TypeError(
            f"a C function is a ctypes function, a cffi function pointer, a numba.cfunc or an "
            f"address, not {type(function).__name__}{_hint(function)}"
        )
    if found.address == 0:
        raise ValueError("the C function is a NULL pointer")
    return _checked(found, "C function")


def memory_pointer(state: object) -> Pointer:
    """Where a plugin's state is.

    Parameters
    ----------
    state : None, int, ctypes or cffi pointer, or writable buffer

    Raises
    ------
    TypeError
        It is none of these.
    ValueError
        It is no address, or a buffer that is read-only, not contiguous or empty.
    """
    ctypes, cffi = sys.modules.get("ctypes"), sys.modules.get("_cffi_backend")
    if state is None:
        return Pointer(0, None)
    if isinstance(state, int) and not isinstance(state, bool):
        return _checked(Pointer(state, state), "state")
    if ctypes and isinstance(
        state, (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_wchar_p)
    ):
        # It may be made to point elsewhere later: what it points to now is kept as well.
        kept = state._objects.copy() if isinstance(state._objects, dict) else state._objects
        return Pointer(ctypes.cast(state, ctypes.c_void_p).value or 0, (state, kept))
    if ctypes and isinstance(state, (ctypes.py_object, ctypes._CFuncPtr)):
        raise TypeError(f"the state is a {type(state).__name__}, which leads to nothing to be used")
    if cffi and isinstance(state, cffi._CDataBase):
        if cffi.typeof(state).kind not in {"pointer", "array"}:
            raise TypeError(f"the state is {state!r}, not a pointer")
        return Pointer(_cffi_address(cffi, state), state)
    try:
        view = memoryview(state)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"the state is an address, a pointer of ctypes or cffi, or a writable buffer, "
            f"not {type(state).__name__}"
        ) from None
    if view.readonly or not view.c_contiguous or not view.nbytes:
        raise ValueError("the state must be a buffer that is writable, contiguous and not empty")
    import numpy

    return Pointer(int(numpy.frombuffer(view, numpy.uint8).ctypes.data), view)


def _checked(pointer: Pointer, what: str) -> Pointer:
    if not 0 <= pointer.address <= LARGEST:
        raise ValueError(f"{pointer.address} is no address of a {what}")
    return pointer


def _hint(function: object) -> str:
    if type(function).__name__ == "builtin_function_or_method":
        return "; of a cffi library that was compiled, take ffi.addressof(library, 'name')"
    if callable(function):
        return "; a function in Python becomes a plugin by dataflare.map_plugin"
    return ""


def _wrong(declared: str) -> TypeError:
    return TypeError(f"the C function is declared as {declared}, a plugin is {SIGNATURE}")


def _check_size(place: int, size: int, sizes: Sequence[int]) -> None:
    if size != sizes[place]:
        raise IncompatiblePluginError(
            f"the C function is declared with a {STRUCTS[place]} of {size} bytes, "
            f"this DataFlare has one of {sizes[place]}"
        )


def _of_ctypes(ctypes: ModuleType, function: Any, sizes: Sequence[int]) -> Pointer:
    if type(function)._flags_ & WITHOUT_RELEASE:
        raise TypeError("a function of ctypes.PyDLL or PYFUNCTYPE needs the GIL, a plugin has none")
    result, arguments = function.restype, function.argtypes
    if result is not ctypes.c_int or (arguments is not None and len(arguments) != 3):
        raise _wrong(_ctypes_declaration(result, arguments))
    for place, argument in enumerate(arguments or ()):
        if argument is ctypes.c_void_p:
            continue
        inner = getattr(argument, "_type_", None) if _is_pointer(ctypes, argument) else None
        if inner is None or (place < 2 and not issubclass(inner, ctypes.Structure)):
            raise _wrong(_ctypes_declaration(result, arguments))
        if place < 2 and hasattr(inner, "_fields_"):
            _check_size(place, ctypes.sizeof(inner), sizes)
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    return Pointer(address, function, getattr(function, "__name__", None))


def _is_pointer(ctypes: ModuleType, kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, ctypes._Pointer)


def _ctypes_declaration(result: Any, arguments: Sequence[Any] | None) -> str:
    inner = "..." if arguments is None else ", ".join(_ctypes_name(kind) for kind in arguments)
    return f"{'void' if result is None else _ctypes_name(result)} ({inner})"


def _ctypes_name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))


def _of_cffi(cffi: ModuleType, function: Any, sizes: Sequence[int]) -> Pointer:
    kind = cffi.typeof(function)
    if kind.kind != "function":
        raise TypeError(f"the cffi object {function!r} is no function pointer")
    result = kind.result
    returns_int = result.kind == "enum" or result.cname in {"int", "int32_t"}
    if not returns_int or kind.ellipsis or len(kind.args) != 3:
        raise _wrong(kind.cname)
    for place, argument in enumerate(kind.args):
        if argument.kind != "pointer":
            raise _wrong(kind.cname)
        inner = argument.item
        if place == 2 or inner.kind == "void":
            continue
        if inner.cname.removeprefix("struct ") != STRUCTS[place]:
            raise _wrong(kind.cname)
        if inner.fields is not None:  # else the struct is declared, and no more
            _check_size(place, cffi.sizeof(inner), sizes)
    return Pointer(_cffi_address(cffi, function), function)


def _cffi_address(cffi: ModuleType, data: object) -> int:
    return int(cffi.cast(cffi.new_primitive_type("uintptr_t"), data))


def _of_numba(function: Any) -> Pointer:
    signature = getattr(function, "_sig", None)
    if signature is not None:
        arguments = [str(kind) for kind in signature.args]
        fits = len(arguments) == 3 and all(kind.endswith("*") for kind in arguments)
        if str(signature.return_type) != "int32" or not fits:
            raise _wrong(f"{signature.return_type} ({', '.join(arguments)})")
    return Pointer(function.address, function, getattr(function, "__name__", None))
