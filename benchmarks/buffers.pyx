"""Buffers as compiled code sees them."""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

from dataflare._compiled.pool cimport MemoryPool, Slab


def pairs(MemoryPool pool not None, Py_ssize_t size, Py_ssize_t count):
    """Take a slab and give it back, `count` times; returns the sum of their capacities."""
    cdef Slab slab
    cdef Py_ssize_t total = 0
    for _ in range(count):
        pool.c_take(size, &slab)
        total += slab.capacity
        pool.c_give(&slab)
    return total


def touch(list held not None):
    """Write into every page of every buffer; returns the number of pages."""
    cdef Py_buffer view
    cdef Py_ssize_t i, pages = 0
    for buffer in held:
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        for i in range(0, view.len, 4096):
            (<unsigned char *>view.buf)[i] = 1
            pages += 1
        PyBuffer_Release(&view)
    return pages
