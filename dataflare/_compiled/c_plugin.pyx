"""Plugins whose code is a C function: of a library, of cffi, of Numba, or in a capsule.

Design
------
a. A `CPlugin` calls through two pointers, set once. What they lead to belongs to `owner`, which
   lives as long as the plugin, also if the collector takes a cycle apart that the plugin is in.
b. A descriptor is read once, checked, and copied; nothing of it is looked at again.
c. `init` runs when the plugin is made and `cleanup` when it is gone, not when a manager takes it in
   and out of service: so no call can come before the one or after the other.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.pycapsule cimport (
    PyCapsule_CheckExact, PyCapsule_GetContext, PyCapsule_GetName, PyCapsule_GetPointer,
    PyCapsule_New, PyCapsule_SetContext
)
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset, strcmp

from dataflare._compiled.plugin cimport NativePluginABI1
from dataflare._compiled.types cimport (
    DF_ABI_VERSION, DF_ERROR, DF_MESSAGE_SIZE, DF_PLUGIN_CAPSULE, DF_THREAD_SAFE, df_batch,
    df_cleanup, df_commit, df_emit, df_emitter, df_fail, df_forward, df_output, df_plugin,
    df_process, df_process_batch, df_record, df_reserve, df_view
)

from dataflare._pointers import function_pointer, memory_pointer
from dataflare.errors import IncompatiblePluginError, PluginInitializationError
from dataflare.types import PluginInfo

cdef extern from *:
    """
    /* Up to the last field of the first df_plugin: stays when fields are added behind it. */
    #define DF_FIRST_SIZE (offsetof(df_plugin, state) + sizeof(void *))
    """
    const size_t DF_FIRST_SIZE

cdef size_t LONGEST = 4096               # of a descriptor: more is no descriptor
cdef str AGAIN = "build the plugin again with the DataFlare it runs with"


@cython.final
@cython.no_gc_clear                      # `cleanup` and the code it runs need `owner` to the end
cdef class CPlugin(NativePluginABI1):
    """A plugin made of a C function, by `NativePlugin.from_function` or `from_capsule`."""
    # Invariants: `function` is never NULL. What `function`, `batch_function`, `clean` and, if
    # `clean` is NULL, `handle` lead to is valid as long as `owner` lives. If `clean` is not NULL,
    # `handle` is this plugin's own and freed by it.
    cdef df_process function
    cdef df_process_batch batch_function  # NULL: `function`, record by record
    cdef df_cleanup clean
    cdef void *handle                     # the plugin's state; nobody here looks into it
    cdef object owner
    cdef readonly str name
    cdef readonly str description
    cdef readonly bint thread_safe

    def __cinit__(self):
        self.function = undefined
        self.name = self.description = ""

    def __init__(self):
        raise TypeError(
            "a plugin of a C function is made by NativePlugin.from_function or from_capsule"
        )

    def __dealloc__(self):
        if self.clean is not NULL:
            self.clean(self.handle)

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        return self.function(record, out, self.handle)

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        cdef Py_ssize_t before
        if self.batch_function is NULL:
            return NativePluginABI1.c_process_batch(self, batch, out)
        while out.position < batch.length:
            if self.batch_function(batch, out, self.handle) == 0:
                break
            before = out.position
            if before < batch.length:  # the record that it stopped at failed
                out.status[before] = DF_ERROR
                out.position += 1
        return 0

    def info(self):
        """Name and description, as they were given."""
        return PluginInfo(name=self.name, description=self.description, author="")

    def __repr__(self):
        return f"<native plugin {self.name!r} of a C function>"

    def __reduce__(self):
        raise TypeError(
            f"the plugin {self.name!r} is a C function of this process and cannot be pickled"
        )


cdef int undefined(const df_record *record, df_emitter *out, void *state) noexcept nogil:
    return df_fail(out, 0, b"the plugin has no C function")


def from_function(function, *, name=None, state=None, thread_safe=False, description=""):
    """See `NativePlugin.from_function`."""
    cdef CPlugin plugin = CPlugin.__new__(CPlugin)
    pointer = function_pointer(function, (sizeof(df_record), sizeof(df_emitter)))
    memory = memory_pointer(state)
    plugin.owner = (pointer.owner, memory.owner)
    plugin.function = <df_process><uintptr_t>pointer.address
    plugin.handle = <void *><uintptr_t>memory.address
    plugin.name = as_text(name, "name") or pointer.name or "C function"
    plugin.description = as_text(description, "description")
    plugin.thread_safe = thread_safe
    return plugin


def from_capsule(capsule, *, name=None, config=""):
    """See `NativePlugin.from_capsule`."""
    cdef df_plugin given
    cdef CPlugin plugin = CPlugin.__new__(CPlugin)
    cdef bytes text = config if isinstance(config, bytes) else as_text(config, "config").encode()
    read_descriptor(capsule, &given)
    plugin.name = as_text(name, "name") or given.name.decode("utf-8", "replace")
    if given.description is not NULL:
        plugin.description = given.description.decode("utf-8", "replace")
    plugin.owner = capsule
    plugin.function = given.process
    plugin.batch_function = given.process_batch
    plugin.handle = given.state
    plugin.thread_safe = (given.flags & DF_THREAD_SAFE) != 0
    if given.init is not NULL:
        make_state(plugin, &given, text)
        plugin.clean = given.cleanup
    elif text:
        raise ValueError(f"the plugin {plugin.name!r} takes no configuration")
    return plugin


cdef int make_state(CPlugin plugin, const df_plugin *given, bytes config) except -1:
    cdef char[DF_MESSAGE_SIZE] message
    cdef df_view text
    cdef int failed
    memset(message, 0, sizeof(message))
    text.data = PyBytes_AS_STRING(config)
    text.size = PyBytes_GET_SIZE(config)
    try:
        failed = given.init(&plugin.handle, text, message)
    except Exception as error:
        raise PluginInitializationError(
            f"{type(error).__name__}: {error}", plugin=plugin.name
        ) from error
    message[DF_MESSAGE_SIZE - 1] = 0
    if failed:
        reason = message.decode("utf-8", "replace") or "the plugin's init gave no reason"
        raise PluginInitializationError(reason, plugin=plugin.name)
    return 0


cdef int read_descriptor(object capsule, df_plugin *given) except -1:
    """Copy the descriptor in a capsule, if it is one of this ABI and whole."""
    cdef const char *label
    cdef const char *data
    cdef const df_plugin *source
    cdef size_t size, i
    if not PyCapsule_CheckExact(capsule):
        raise TypeError(f"from_capsule takes a PyCapsule, not {type(capsule).__name__}")
    label = PyCapsule_GetName(capsule)
    if label is NULL or strcmp(label, DF_PLUGIN_CAPSULE) != 0:
        found = "has no name" if label is NULL else f"is named {label.decode('utf-8', 'replace')!r}"
        raise TypeError(
            f"the capsule {found}, that of a plugin is named {DF_PLUGIN_CAPSULE.decode()!r}"
        )
    data = <const char *>PyCapsule_GetPointer(capsule, DF_PLUGIN_CAPSULE)
    source = <const df_plugin *>data
    if source.abi_version != DF_ABI_VERSION:
        raise IncompatiblePluginError(
            f"the plugin was built for DataFlare's native ABI {source.abi_version}, "
            f"this DataFlare has ABI {DF_ABI_VERSION}: {AGAIN}"
        )
    size = source.struct_size
    if not DF_FIRST_SIZE <= size <= LONGEST:
        raise_size("df_plugin", size, sizeof(df_plugin))
    for i in range(sizeof(df_plugin), size):
        if data[i]:
            raise IncompatiblePluginError(
                "the plugin needs a newer DataFlare: its descriptor uses a field that this one "
                "does not know"
            )
    memset(given, 0, sizeof(df_plugin))
    memcpy(given, source, min(size, sizeof(df_plugin)))
    check_size("df_record", given.record_size, sizeof(df_record))
    check_size("df_batch", given.batch_size, sizeof(df_batch))
    check_size("df_emitter", given.emitter_size, sizeof(df_emitter))
    check_size("df_output", given.output_size, sizeof(df_output))
    if given.flags & ~DF_THREAD_SAFE or given.reserved:
        raise IncompatiblePluginError(
            f"the plugin sets flags that this DataFlare does not know: {given.flags:#x}"
        )
    if given.name is NULL:
        raise ValueError("the plugin's descriptor has no name")
    if given.process is NULL:
        raise ValueError("the plugin's descriptor has no function: process is NULL")
    if given.cleanup is not NULL and given.init is NULL:
        raise ValueError(
            "the plugin's descriptor has a cleanup but no init: each plugin made of it would free "
            "the same state"
        )
    return 0


cdef int check_size(str struct, size_t found, size_t wanted) except -1:
    if found != wanted:
        raise_size(struct, found, wanted)
    return 0


cdef int raise_size(str struct, size_t found, size_t wanted) except -1:
    raise IncompatiblePluginError(
        f"the plugin was built with a {struct} of {found} bytes, this DataFlare has one of "
        f"{wanted}: {AGAIN}"
    )


cdef str as_text(object text, str what):
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be str, not {type(text).__name__}")
    return text


def c_functions():
    """Addresses of the functions of dataflare.h, for those who cannot include it.

    Returns
    -------
    dict of str to int
        They lead into this module, which is never unloaded.
    """
    return {
        "commit": <uintptr_t>&df_commit,
        "emit": <uintptr_t>&df_emit,
        "fail": <uintptr_t>&df_fail,
        "forward": <uintptr_t>&df_forward,
        "reserve": <uintptr_t>&df_reserve,
    }


def new_capsule(address, owner):
    """A capsule of the descriptor at an address, which is valid as long as `owner` lives."""
    capsule = PyCapsule_New(<void *><uintptr_t>address, DF_PLUGIN_CAPSULE, forget_owner)
    Py_INCREF(owner)                     # the capsule's own, given back by `forget_owner`
    PyCapsule_SetContext(capsule, <void *>owner)
    return capsule


cdef void forget_owner(object capsule) noexcept:
    Py_XDECREF(<PyObject *>PyCapsule_GetContext(capsule))
