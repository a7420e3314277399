"""Plugins of a descriptor in a capsule: what runs, what lives how long, what is refused."""

import ctypes
import datetime
import gc
import weakref

import numpy
import pytest

import dataflare
from dataflare import IncompatiblePluginError, NativePlugin, PluginRecord, native
from dataflare.plugins import Chain, Upper

CLOSE = b"dataflare.plugin.v7"  # kept: a capsule has no more than the pointer
AGAIN = "build the plugin again with the DataFlare it runs with"


class Descriptor(ctypes.Structure):
    """`df_plugin`, and room behind it."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("record_size", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
        ("emitter_size", ctypes.c_uint32),
        ("output_size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("process", ctypes.c_void_p),
        ("process_batch", ctypes.c_void_p),
        ("init", ctypes.c_void_p),
        ("cleanup", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("future", ctypes.c_uint64 * 512),
    )


def size_of_descriptor() -> int:
    """Without the room behind it."""
    return Descriptor.future.offset


def changed(door, **fields):
    """A copy of a descriptor of the library with other fields, and its capsule."""
    copy = Descriptor()
    source = ctypes.c_char.in_dll(door, "bare")
    ctypes.memmove(ctypes.byref(copy), ctypes.byref(source), size_of_descriptor())
    assert copy.struct_size == size_of_descriptor()
    for field, value in fields.items():
        setattr(copy, field, value)
    return copy, native.capsule(copy)


def plugin_of(door, symbol, **options):
    """The plugin of a descriptor of the library."""
    capsule = native.capsule(ctypes.c_char.in_dll(door, symbol))
    return NativePlugin.from_capsule(capsule, **options)


def states(door):
    """How many states there are."""
    return ctypes.c_int64.in_dll(door, "states").value


@pytest.fixture
def manager():
    """A manager, closed after the test."""
    with dataflare.PluginManager() as manager:
        yield manager


def test_a_plugin_with_a_state(manager, door):
    """Each plugin of a descriptor has a state of its own, from first to last."""
    before = states(door)
    plugins = [plugin_of(door, "with_state", config=config) for config in ("one", b"two", "")]
    assert states(door) == before + 3
    assert [plugin.process(PluginRecord(b"")).data for plugin in plugins] == [b"one", b"two", b""]
    plugin = plugins[0]
    assert (plugin.info().name, plugin.info().description) == (
        "with state", "Shows its configuration.")  # fmt: skip
    assert plugin.thread_safe
    manager.register_plugin("one", plugin)
    assert manager.process_batch("one", [b"a"] * 3).output.to_pylist() == [b"one"] * 3
    manager.unregister_plugin("one")
    assert plugin.process(PluginRecord(b"")).data == b"one"
    del plugins, plugin
    gc.collect()
    assert states(door) == before


def test_a_factory_makes_one_per_thread(manager, door):
    """As with any other plugin."""
    before = states(door)
    manager.register_plugin("many", lambda: plugin_of(door, "with_state", config="x"))
    assert states(door) > before
    assert manager.process_batch("many", [b"a"]).output.to_pylist() == [b"x"]
    manager.unregister_plugin("many")
    gc.collect()
    assert states(door) == before


def test_an_init_that_fails(door):
    """Its message, or that it gave none; nothing is left behind."""
    before = states(door)
    with pytest.raises(dataflare.PluginInitializationError, match="gave no reason") as caught:
        plugin_of(door, "with_state", config="!")
    assert caught.value.plugin == "with state"
    with pytest.raises(dataflare.PluginInitializationError, match=r"^m{255}$"):
        plugin_of(door, "with_state", config="!!")
    gc.collect()
    assert states(door) == before


def test_a_batch_hook(manager, door):
    """Decides in order; a return that is not 0 fails one record, leaving early fails the rest."""
    manager.register_plugin("odd", plugin_of(door, "with_batch"))
    result = manager.process_batch("odd", [b"a", b"x", b"d", b"e", b"b"])
    assert result.output.to_pylist() == [b"a", b"b"]
    assert [(i, str(e), e.plugin) for i, e in result.errors] == [
        (1, "a reason", "odd"), (3, "the plugin gave no reason", "odd")]  # fmt: skip
    result = manager.process_batch("odd", [b"a", b"stop", b"b"])
    assert [(i, str(e)) for i, e in result.errors] == [
        (i, "the plugin left the record undecided") for i in (1, 2)]  # fmt: skip
    chain = Chain(plugin_of(door, "with_batch"), Upper())
    manager.register_plugin("chain", chain)
    assert manager.process_batch("chain", [b"a", b"d", b"b"]).output.to_pylist() == [b"A", b"B"]


def test_names(door):
    """UTF-8, or whatever comes close; another on request."""
    assert plugin_of(door, "bare").info().name == "bär"
    assert plugin_of(door, "bare", name="mine").info().name == "mine"
    _kept, capsule = changed(door, name=b"\xff\xfe")
    assert NativePlugin.from_capsule(capsule).info().name == "\ufffd\ufffd"


def test_a_descriptor_is_copied(door):
    """What happens to it later changes no plugin."""
    copy, capsule = changed(door, state=77)
    plugin = NativePlugin.from_capsule(capsule)
    want = plugin.process(PluginRecord(b"")).data
    copy.state, copy.process, copy.abi_version = 78, 0, 99
    assert plugin.process(PluginRecord(b"")).data == want
    assert int.from_bytes(want, "little") == 77


def test_a_descriptor_of_a_later_release(door):
    """One that grew is taken, unless it needs what grew."""
    copy, capsule = changed(door, struct_size=size_of_descriptor() + 24)
    assert NativePlugin.from_capsule(capsule).info().name == "bär"
    copy.future[2] = 1
    with pytest.raises(IncompatiblePluginError, match="the plugin needs a newer DataFlare"):
        NativePlugin.from_capsule(native.capsule(copy))


@pytest.mark.parametrize("version", [0, 2, 4_000_000_000])
def test_another_version(door, version):
    """Both versions are named, and nothing else is looked at."""
    _copy, capsule = changed(door, abi_version=version, struct_size=3, name=None)
    with pytest.raises(IncompatiblePluginError) as caught:
        NativePlugin.from_capsule(capsule)
    assert str(caught.value) == (
        f"the plugin was built for DataFlare's native ABI {version}, this DataFlare has ABI 1: "
        f"{AGAIN}"
    )


@pytest.mark.parametrize("struct", ["record", "batch", "emitter", "output"])
@pytest.mark.parametrize("by", [-8, 8])
def test_structs_of_another_size(door, struct, by):
    """Both sizes are named."""
    size = getattr(changed(door)[0], f"{struct}_size")
    _copy, capsule = changed(door, **{f"{struct}_size": size + by})
    with pytest.raises(IncompatiblePluginError) as caught:
        NativePlugin.from_capsule(capsule)
    assert str(caught.value) == (
        f"the plugin was built with a df_{struct} of {size + by} bytes, this DataFlare has one of "
        f"{size}: {AGAIN}"
    )


@pytest.mark.parametrize("size", [0, 8, size_of_descriptor() - 1, 4097, 0xFFFFFFFF])
def test_descriptors_of_an_impossible_size(door, size):
    """Too short to be one, or too long; neither is read."""
    _copy, capsule = changed(door, struct_size=size)
    with pytest.raises(IncompatiblePluginError, match=f"a df_plugin of {size} bytes"):
        NativePlugin.from_capsule(capsule)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"process": None}, ValueError, "has no function: process is NULL"),
        ({"name": None}, ValueError, "has no name"),
        ({"cleanup": 4096}, ValueError, "has a cleanup but no init"),
        (
            {"flags": 2},
            IncompatiblePluginError,
            "flags that this DataFlare does not know: 0x2",
        ),
        ({"reserved": 1}, IncompatiblePluginError, "sets flags"),
    ],
)
def test_descriptors_that_are_not_whole(door, fields, error, message):
    """What must be there is there."""
    _copy, capsule = changed(door, **fields)
    with pytest.raises(error, match=message):
        NativePlugin.from_capsule(capsule)


def other_capsules():
    """Capsules of other libraries, and one without a name."""
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    new = kind(("PyCapsule_New", ctypes.pythonapi))
    array = numpy.zeros(3).__array_struct__
    return [
        (datetime.datetime_CAPI, "is named 'datetime.datetime_CAPI'"),
        (array, "has no name"),
        (new(4096, None, None), "has no name"),
        (new(4096, CLOSE, None), "is named 'dataflare.plugin.v7'"),
    ]


@pytest.mark.parametrize(("capsule", "found"), other_capsules())
def test_capsules_of_other_libraries(capsule, found):
    """They are told from plugins by their names."""
    with pytest.raises(TypeError) as caught:
        NativePlugin.from_capsule(capsule)
    assert str(caught.value) == (
        f"the capsule {found}, that of a plugin is named 'dataflare.plugin'"
    )


@pytest.mark.parametrize("what", [None, 5, "dataflare.plugin", object])
def test_what_is_no_capsule(what):
    """Anything else is named."""
    with pytest.raises(TypeError, match=f"takes a PyCapsule, not {type(what).__name__}"):
        NativePlugin.from_capsule(what)


def test_configuration_that_nobody_takes(door):
    """A plugin without an init has nowhere to put it."""
    with pytest.raises(ValueError, match="the plugin 'bär' takes no configuration"):
        plugin_of(door, "bare", config="x")
    with pytest.raises(TypeError, match="config must be str, not int"):
        plugin_of(door, "with_state", config=5)
    with pytest.raises(ValueError, match="the descriptor is a NULL pointer"):
        native.capsule(0)


@pytest.mark.parametrize("address", [-1, 1 << 70])
def test_what_is_no_address_of_a_descriptor(address):
    """Refused with a sentence, and not cut to one that is."""
    with pytest.raises(ValueError, match="no address of a descriptor"):
        native.capsule(address)


def test_a_capsule_keeps_its_descriptor():
    """Also when nobody else does."""
    made = Descriptor()
    made.name = b"kept"
    gone = weakref.ref(made)
    capsule = native.capsule(made)
    del made
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None
