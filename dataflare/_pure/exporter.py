"""The buffer protocol for classes written in Python.

From Python 3.12 on the interpreter calls a class's `__buffer__` and `__release_buffer__` (PEP 688).
On 3.11 the base class `Exporter` does so: a type with two slots of CPython's stable ABI, made
through ctypes. Memory that is exported must stay where it is until it is released.
"""

import ctypes
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING or sys.version_info >= (3, 12):

    class Exporter:
        """Base of classes that define `__buffer__` and `__release_buffer__`."""

        __slots__ = ()

    def refusing(cls: type) -> type:
        """A class for instances of `cls` whose `__buffer__` is going to raise from now on."""
        return cls

else:

    class _Slot(ctypes.Structure):
        _fields_ = (("slot", ctypes.c_int), ("function", ctypes.c_void_p))

    class _Spec(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p),
            ("basicsize", ctypes.c_int),
            ("itemsize", ctypes.c_int),
            ("flags", ctypes.c_uint),
            ("slots", ctypes.c_void_p),
        )

    _BF_GETBUFFER, _BF_RELEASEBUFFER = 1, 2
    _FLAGS = 1 << 10 | 1 << 18  # Py_TPFLAGS_BASETYPE | Py_TPFLAGS_DEFAULT

    _fill_info = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t,
        ctypes.c_int, ctypes.c_int,
    )(("PyBuffer_FillInfo", ctypes.pythonapi))  # fmt: skip

    @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
    def _getbuffer(exporter, view, flags):
        try:
            memory = np.asarray(exporter.__buffer__(flags))
        except BufferError:  # another thread returned it while this one was about to ask
            return -1
        return _fill_info(view, exporter, memory.ctypes.data, memory.nbytes, 0, flags)

    @ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_void_p)
    def _releasebuffer(exporter, view):
        exporter.__release_buffer__(memoryview(b""))

    def _make_type(name, slots):
        slots = (_Slot * (len(slots) + 1))(
            *((slot, ctypes.cast(function, ctypes.c_void_p)) for slot, function in slots.items())
        )
        spec = _Spec(name, object.__basicsize__, 0, _FLAGS, ctypes.addressof(slots))
        from_spec = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p)
        return from_spec(("PyType_FromSpec", ctypes.pythonapi))(ctypes.addressof(spec))

    Exporter = _make_type(
        b"dataflare.Exporter", {_BF_GETBUFFER: _getbuffer, _BF_RELEASEBUFFER: _releasebuffer}
    )
    # A callback through ctypes cannot raise. PyObject_IsTrue can: it calls `__bool__`, looks at its
    # first argument only, and like bf_getbuffer returns -1 with the exception set.
    _Refuser = _make_type(b"dataflare.Refuser", {_BF_GETBUFFER: ctypes.pythonapi.PyObject_IsTrue})
    # Exporters may be collected after this module is.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_getbuffer))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_releasebuffer))

    def refusing(cls):
        return type(
            cls.__name__,
            (_Refuser, cls),
            {
                "__slots__": (),
                "__module__": cls.__module__,
                "__doc__": cls.__doc__,
                "__bool__": lambda self: bool(self.__buffer__(0)),
            },
        )
