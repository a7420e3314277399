"""Plugins of a C function pointer: from ctypes, cffi, Numba, and addresses."""

import ctypes
import gc
import pickle
import struct
import subprocess
import sys
import weakref
from ctypes import POINTER, c_char_p, c_int, c_int64, c_long, c_void_p

import cffi
import numpy
import pytest

import dataflare
from dataflare import IncompatiblePluginError, NativePlugin, PluginRecord, native
from dataflare.plugins import Chain, Contains, Upper

SIGNATURE = "a plugin is int process(const df_record *, df_emitter *, void *)"


@pytest.fixture
def manager():
    """A manager, closed after the test."""
    with dataflare.PluginManager() as manager:
        yield manager


def run(manager, plugin, values):
    """Run a plugin once over some values."""
    manager.register_plugin("plugin", plugin)
    return manager.process_batch("plugin", values)


def typed(door, name, *arguments, result=c_int):
    """A function of the library, declared."""
    return ctypes.CFUNCTYPE(result, *arguments)((name, door))


# What runs


def test_a_batch(manager, door):
    """Values go on, failures are those of their records."""
    plugin = NativePlugin.from_function(door.first_word)
    result = run(manager, plugin, [b"GET /", b"none", b"PUT /cart"])
    assert result.output.to_pylist() == [b"GET", b"PUT"]
    [(index, error)] = result.errors
    assert (index, str(error), error.code, error.plugin) == (
        1, "the line has no word", 7, "first_word")  # fmt: skip


def test_single_records(manager, door):
    """Of any size, and with a failure."""
    manager.register_plugin("first", NativePlugin.from_function(door.first_word))
    for size in (1, 100, 100_000):
        record = PluginRecord(b"x" * size + b" y")
        assert manager.process_record("first", record).data == b"x" * size
    with pytest.raises(dataflare.PluginError, match="the line has no word"):
        manager.process_record("first", PluginRecord(b""))


def test_a_fused_chain(manager, door):
    """C functions and the library's plugins run as one stage."""
    chain = Chain(
        Contains(" "),
        NativePlugin.from_function(door.first_word),
        Upper(),
        NativePlugin.from_function(door.odd),
    )
    assert len(chain.stages) == 1
    result = run(manager, chain, [b"get /", b"none", b" x", b"put /"])
    assert result.output.to_pylist() == [b"GET", b"", b"PUT"]


def test_who_it_is(door):
    """Name, description and representation."""
    plugin = NativePlugin.from_function(door.odd)
    assert (plugin.info().name, plugin.info().description) == ("odd", "")
    named = NativePlugin.from_function(door.odd, name="mine", description="Odd.", thread_safe=True)
    assert (named.info().name, named.info().description) == ("mine", "Odd.")
    assert repr(named) == "<native plugin 'mine' of a C function>"
    assert (plugin.thread_safe, named.thread_safe, named.releases_gil) == (False, True, True)
    assert isinstance(named, NativePlugin)


def test_an_address(door):
    """A bare address is taken as it is."""
    address = ctypes.cast(door.odd, c_void_p).value
    plugin = NativePlugin.from_function(address)
    assert plugin.info().name == "C function"
    assert plugin.process(PluginRecord(b"-")).is_skip


def test_the_lock_is_free_in_batches(manager, door):
    """A batch, and a large record, run without the GIL; nothing is given up for a small one."""
    plugin = NativePlugin.from_function(door.show_lock)
    assert run(manager, plugin, [b"a", b"b"]).output.to_pylist() == [b"free", b"free"]
    assert plugin.process(PluginRecord(b"x" * 100_000)).data == b"free"
    assert plugin.process(PluginRecord(b"x")).data == b"held"


@pytest.mark.parametrize("safe", [True, False])
def test_in_parallel(manager, door, safe):
    """Threads share a batch, and meet inside the function, if it says that they may."""
    state = (c_int64 * 3)()
    plugin = NativePlugin.from_function(door.meet, state=state, thread_safe=safe)
    values = [b"meet" if i % 2_500 == 0 and safe else b"x" for i in range(10_000)]
    result = run(manager, plugin, values)
    assert result.output.to_pylist() == values
    assert list(state) == ([10_000, 4, 4] if safe else [10_000, 0, 0])


def test_all_of_a_record_arrives(manager, door):
    """Key and numbers, in a batch and alone."""
    batch = dataflare.RecordBatch.from_values(
        [b"a", b"b"], [b"key", None], timestamps=[1, 2], partitions=[3, 4], offsets=[5, 6]
    )
    plugin = NativePlugin.from_function(door.show_record)
    want = [struct.pack("4q", 1, 5, 3, 3), struct.pack("4q", 2, 6, 4, -1)]
    manager.register_plugin("show", plugin)
    assert manager.process_batch("show", batch).output.to_pylist() == want
    assert [plugin.process(record).data for record in batch] == want


def test_output_of_any_size(manager, door):
    """Output grows over the buffers of the pool."""
    plugin = NativePlugin.from_function(door.repeat, state=bytearray(b"x"))
    sizes = [0, 1, 300, 5_000, 70_000, 2_000_000, 5_000_000, 10]
    result = run(manager, plugin, [b"%d" % size for size in sizes])
    assert [len(value) for value in result.output.to_pylist()] == sizes
    assert all(set(value) <= {ord("x")} for value in result.output.to_pylist())
    del result
    assert manager.get_memory_pool_stats().in_use == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"u", "the plugin returned the unknown status 42"),
        (b"m", "the plugin returned the unknown status -1"),
        (b"s", "the plugin returned SUCCESS without committing a value"),
        (b"c", "the plugin committed a size that it had not reserved"),
        (b"r", "the plugin reserved a negative size"),
        (b"f", "the plugin forwarded bytes that are not in the record"),
        (b"e", "the plugin gave no reason"),
        (b"x", "a reason"),
        (b"n", "the plugin gave no reason"),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_nonsense_is_the_records_error(manager, door, value, message, fused):
    """What a plugin must not do fails its record, with a sentence; the others go on."""
    plugin = NativePlugin.from_function(door.odd)
    result = run(manager, Chain(plugin, Upper()) if fused else plugin, [b"a", value, b"d", b"b"])
    assert [(i, str(e), e.plugin) for i, e in result.errors] == [(1, message, "odd")]
    assert result.output.to_pylist() == ([b"A", b"B"] if fused else [b"a", b"b"])
    with pytest.raises(dataflare.PluginProcessingError):
        plugin.process(PluginRecord(value))


def test_too_much_room_is_the_records_error(manager, door):
    """The system has no such memory; the pool says so."""
    [(_, error)] = run(manager, NativePlugin.from_function(door.odd), [b"h"]).errors
    assert "memory" in str(error) or "bytes" in str(error)


# What stays alive


def test_the_function_lives_as_long_as_the_plugin():
    """What was given is kept, and let go."""

    @native.PROCESS
    def process(record, out, state):
        return native.SKIP

    seen = weakref.ref(process)
    plugin = NativePlugin.from_function(process)
    del process
    gc.collect()
    assert plugin.process(PluginRecord(b"a")).is_skip
    del plugin
    gc.collect()
    assert seen() is None


def test_a_cycle_through_the_function_is_collected():
    """A function that leads to its own plugin does not keep both for ever."""

    def make():
        holder = {}

        def process(record, out, state):
            return native.SKIP if holder else native.FILTERED

        holder["plugin"] = NativePlugin.from_function(native.PROCESS(process))
        assert holder["plugin"].process(PluginRecord(b"a")).is_skip
        return weakref.ref(process)

    seen = make()
    gc.collect()
    assert seen() is None


def test_the_state_lives_as_long_as_the_plugin(manager, door):
    """A buffer stays where it is while there is a plugin of it."""
    state = bytearray(b"z" * 10)
    plugin = NativePlugin.from_function(door.repeat, state=state)
    with pytest.raises(BufferError):
        state.clear()
    assert plugin.process(PluginRecord(b"3")).data == b"zzz"
    del plugin
    state.clear()


def test_states_of_every_kind(door):
    """Addresses, pointers of ctypes and cffi, buffers: all lead to the same place."""
    ffi = cffi.FFI()
    array = (ctypes.c_char * 8)()
    address = ctypes.addressof(array)
    pointers = [
        address,
        array,
        c_void_p(address),
        ctypes.cast(array, POINTER(c_int64)),
        ffi.cast("void *", address),
        numpy.frombuffer(array, numpy.uint8),
    ]
    for state in pointers:
        plugin = NativePlugin.from_function(door.show_state, state=state)
        assert plugin.process(PluginRecord(b"")).data == struct.pack("N", address), state
    nothing = NativePlugin.from_function(door.show_state)
    assert nothing.process(PluginRecord(b"")).data == struct.pack("N", 0)


def test_a_failing_callback_is_no_crash(monkeypatch, manager):
    """What a ctypes callback raises is shown by ctypes, which returns no status to speak of."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    @native.PROCESS
    def process(record, out, state):
        raise LookupError("inside")

    result = run(manager, NativePlugin.from_function(process, name="callback"), [b"a"])
    assert result.processed_count == 1
    assert [type(one.exc_value) for one in shown] == [LookupError]


# What is refused


@pytest.mark.parametrize(
    ("kind", "declared"),
    [
        (ctypes.CFUNCTYPE(c_int), "c_int ()"),
        (
            ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p),
            "void (c_void_p, c_void_p, c_void_p",
        ),
        (ctypes.CFUNCTYPE(c_long, c_void_p, c_void_p, c_void_p), "c_long (c_void_p, c_void_p, c_"),
        (ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p), "c_int (c_void_p, c_void_p)"),
        (ctypes.CFUNCTYPE(c_int, c_char_p, c_void_p, c_void_p), "c_int (c_char_p, c_void_p, c_vo"),
        (ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_void_p), "c_int (c_void_p, c_int, c_void_p)"),
        (ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_int), "c_int (c_void_p, c_void_p, c_int)"),
        (ctypes.CFUNCTYPE(c_int, POINTER(c_int), c_void_p, c_void_p), "c_int (LP_c_int, c_void_p"),
    ],
)
def test_ctypes_functions_of_another_signature(door, kind, declared):
    """Declared wrong: refused, and told both."""
    with pytest.raises(TypeError) as caught:
        NativePlugin.from_function(kind(("odd", door)))
    assert str(caught.value).startswith(f"the C function is declared as {declared}")
    assert str(caught.value).endswith(SIGNATURE)


def test_ctypes_symbols_of_another_signature(door):
    """The same, of a symbol whose types were set."""
    function = door["odd"]  # a new one each time
    function.argtypes = [c_void_p]
    with pytest.raises(TypeError, match=r"declared as c_int \(c_void_p\)"):
        NativePlugin.from_function(function)
    function = door["odd"]
    function.restype = None
    with pytest.raises(TypeError, match=r"declared as void \(\.\.\.\)"):
        NativePlugin.from_function(function)


def test_ctypes_structs(door):
    """A struct that the function is declared with has the right size, or is refused."""

    class View(ctypes.Structure):
        _fields_ = (("data", c_void_p), ("size", ctypes.c_ssize_t))

    class Record(ctypes.Structure):
        _fields_ = (
            ("value", View), ("key", View), ("timestamp", c_int64), ("offset", c_int64),
            ("partition", ctypes.c_int32))  # fmt: skip

    class Unknown(ctypes.Structure):
        pass

    for kind in (Record, Unknown):
        function = typed(door, "odd", POINTER(kind), POINTER(Unknown), POINTER(c_int))
        assert NativePlugin.from_function(function).process(PluginRecord(b"-")).is_skip
    function = typed(door, "odd", POINTER(View), c_void_p, c_void_p)
    size = ctypes.sizeof(Record)
    with pytest.raises(IncompatiblePluginError) as caught:
        NativePlugin.from_function(function)
    assert str(caught.value) == (
        f"the C function is declared with a df_record of {ctypes.sizeof(View)} bytes, "
        f"this DataFlare has one of {size}"
    )


def test_functions_that_need_the_lock(door):
    """A function of PyDLL counts on the GIL, which a plugin does not have."""
    with pytest.raises(TypeError, match="needs the GIL"):
        NativePlugin.from_function(ctypes.PyDLL(door._name).odd)


@pytest.mark.parametrize("null", [0, native.PROCESS(0), ctypes.CFUNCTYPE(c_int)(0)])
def test_null(null):
    """NULL is no function, however it comes."""
    with pytest.raises((ValueError, TypeError), match=r"is a NULL pointer|is declared as"):
        NativePlugin.from_function(null)


@pytest.mark.parametrize("address", [-1, 1 << 64, 1 << 200])
def test_numbers_that_are_no_address(address):
    """Neither for the function nor for the state."""
    with pytest.raises(ValueError, match="is no address of a C function"):
        NativePlugin.from_function(address)
    with pytest.raises(ValueError, match="is no address of a state"):
        NativePlugin.from_function(1, state=address)


@pytest.mark.parametrize(
    ("what", "kind"), [("text", "str"), (None, "NoneType"), (True, "bool"), (1.5, "float")]
)
def test_no_function_at_all(what, kind):
    """Anything else is named."""
    with pytest.raises(TypeError, match=f"or an address, not {kind}$"):
        NativePlugin.from_function(what)


def test_functions_in_python_are_told_the_way():
    """They have a door of their own."""
    with pytest.raises(TypeError, match="becomes a plugin by dataflare"):
        NativePlugin.from_function(lambda value: value)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("text", TypeError, "or a writable buffer, not str"),
        (True, TypeError, "not bool"),
        (b"constant", ValueError, "must be a buffer that is writable"),
        (numpy.zeros(10)[::2], ValueError, "contiguous"),
        (bytearray(), ValueError, "not empty"),
        (cffi.FFI().cast("int", 5), TypeError, "not a pointer"),
    ],
)
def test_states_that_are_none(door, state, error, message):
    """What is no memory of its own is refused."""
    with pytest.raises(error, match=message):
        NativePlugin.from_function(door.odd, state=state)


def test_it_is_neither_made_by_hand_nor_pickled(door):
    """There is nothing to call then."""
    plugin = NativePlugin.from_function(door.odd)
    with pytest.raises(TypeError, match="made by NativePlugin"):
        type(plugin)()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(plugin)
    empty = type(plugin).__new__(type(plugin))
    with pytest.raises(dataflare.PluginError, match="the plugin has no C function"):
        empty.process(PluginRecord(b"a"))
    with pytest.raises(TypeError, match="name must be str, not int"):
        NativePlugin.from_function(door.odd, name=5)


# cffi


def test_cffi(manager, door):
    """A function pointer of cffi, with the structs declared, unknown, or void."""
    ffi = cffi.FFI()
    ffi.cdef(
        """
        typedef struct df_record df_record;
        struct df_emitter;
        int first_word(const df_record *, struct df_emitter *, void *);
        int odd(void *, void *, int64_t *);
        """
    )
    library = ffi.dlopen(door._name)
    plugin = NativePlugin.from_function(library.first_word, name="first")
    assert run(manager, plugin, [b"GET /"]).output.to_pylist() == [b"GET"]
    assert NativePlugin.from_function(library.odd).process(PluginRecord(b"-")).is_skip
    callback = ffi.callback("int(df_record *, struct df_emitter *, void *)", lambda *all: 2)
    assert NativePlugin.from_function(callback).process(PluginRecord(b"-")).is_skip


@pytest.mark.parametrize(
    "signature",
    ["void(*)(void *, void *, void *)", "long(*)(void *, void *, void *)", "int(*)(void *, ...)",
     "int(*)(void *, void *)", "int(*)(char *, void *, void *)", "int(*)(void *, int, void *)",
     "int(*)(void *, void *, int)", "int(*)(struct df_emitter *, void *, void *)"],
)  # fmt: skip
def test_cffi_functions_of_another_signature(signature):
    """Declared wrong: refused, and told both."""
    ffi = cffi.FFI()
    ffi.cdef("struct df_emitter;")
    with pytest.raises(TypeError, match="the C function is declared as ") as caught:
        NativePlugin.from_function(ffi.cast(signature, 4096))
    assert str(caught.value).endswith(SIGNATURE)


def test_cffi_objects_that_are_no_function():
    """Nor NULL, nor a struct of another size."""
    ffi = cffi.FFI()
    ffi.cdef("typedef struct { int small; } df_record;")
    with pytest.raises(TypeError, match="is no function pointer"):
        NativePlugin.from_function(ffi.new("int *"))
    with pytest.raises(ValueError, match="is a NULL pointer"):
        NativePlugin.from_function(ffi.cast("int(*)(void *, void *, void *)", 0))
    with pytest.raises(IncompatiblePluginError, match="a df_record of 4 bytes, this DataFlare has"):
        NativePlugin.from_function(ffi.cast("int(*)(df_record *, void *, void *)", 4096))


# Numba


def test_numba_functions_of_another_signature(tmp_path):
    """What Numba knows of the function is looked at; a process of its own, for Numba is large."""
    code = """
import numba
from numba import types
from dataflare import NativePlugin

@numba.cfunc(types.int64(types.voidptr, types.voidptr, types.voidptr))
def wide(record, out, state):
    return 0

@numba.cfunc(types.int32(types.voidptr, types.intp, types.voidptr))
def number(record, out, state):
    return 0

for function in (wide, number):
    try:
        NativePlugin.from_function(function)
    except TypeError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        f"the C function is declared as {declared}, {SIGNATURE}"
        for declared in ("int64 (void*, void*, void*)", "int32 (void*, int64, void*)")
    ], done.stderr


def test_a_pointer_of_ctypes_is_what_it_points_to(manager):
    """Not where the pointer itself is; and what it points to is kept."""
    seen = []

    @native.PROCESS
    def look(record, out, state):
        seen.append(ctypes.string_at(state, 5))
        return native.SKIP

    text = ctypes.create_string_buffer(b"HELLO")
    pointer = ctypes.pointer(text)
    states = [ctypes.c_char_p(b"HELLO"), pointer, ctypes.cast(text, c_void_p)]
    plugins = [NativePlugin.from_function(look, name="look", state=state) for state in states]
    pointer.contents = ctypes.create_string_buffer(b"OTHER")
    del text
    gc.collect()
    run(manager, Chain(*plugins), [b"a"])
    assert seen == [b"HELLO"] * 3
    for wrong in (ctypes.py_object(5), look):
        with pytest.raises(TypeError, match="leads to nothing to be used"):
            NativePlugin.from_function(look, name="look", state=wrong)


def test_a_c_function_is_no_factory(manager, door):
    """It is not called, which would end the process."""
    with pytest.raises(TypeError, match=r"first_word is a C function: .*from_function\(first_word"):
        manager.register_plugin("x", door.first_word)
    interface = cffi.FFI()
    interface.cdef("int abs(int);")
    with pytest.raises(TypeError, match="is a C function"):
        manager.register_plugin("x", interface.dlopen(None).abs)
    assert manager.list_plugins() == []
