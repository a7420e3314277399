"""The base classes of plugins, and how a native one runs."""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.string cimport memset

from dataflare._compiled.output cimport Output, Run, member_name, rewind_mark, settle
from dataflare._compiled.record cimport PluginRecord, view_of
from dataflare._compiled.result cimport as_plugin_error
from dataflare._compiled.types cimport df_fail

import importlib

from dataflare.errors import IncompatiblePluginError, PluginConfigurationError
from dataflare.types import PluginInfo, PluginState

cdef extern from *:
    """
    /* What stands at the end of a class's table of methods. The names are Cython's. */
    #define DF_TABLE(name) name##_9dataflare_9_compiled_6plugin_NativePluginABI1
    #define df_end_of(table) ((void *)((struct DF_TABLE(__pyx_vtabstruct) *)(table))->c_end)
    #define df_own_end() ((void *)DF_TABLE(__pyx_vtabptr)->c_end)
    #define df_has_own(table, method) \
        (((struct DF_TABLE(__pyx_vtabstruct) *)(table))->method == DF_TABLE(__pyx_vtabptr)->method)
    #define df_overrides_none(table) \
        (df_has_own(table, c_process) && df_has_own(table, c_process_batch))
    """
    bint df_overrides_none(void *table) nogil
    void *df_end_of(void *table) nogil
    void *df_own_end() nogil

# Longer records are processed without the GIL even one by one; shorter ones are done sooner than
# the GIL is given up and taken again.
cdef Py_ssize_t RELEASE_FROM = 65536


def first_line(docstring):
    """The first line of a docstring that has text, or nothing."""
    lines = (docstring or "").strip().splitlines()
    return lines[0].strip() if lines else ""


cdef api class DataFlarePlugin [
    object DataFlare_DataFlarePlugin, type DataFlare_DataFlarePlugin_Type, check_size error
]:
    """Base class of every plugin. A plugin in Python overrides `process`, and what else it needs.

    Attributes
    ----------
    thread_safe : bool
        Whether several threads may run one instance at the same time. False by default: then the
        manager lets one thread at a time have it.
    releases_gil : bool
        Whether processing spends its time without the GIL, waiting or computing. Only then, or
        where the interpreter has no GIL, does the manager share a batch out among threads. False
        by default for plugins in Python; native ones know.
    retryable_errors : tuple of exception types
        What is worth another attempt; see `FailureRecoveryConfig`. An exception with a true
        attribute ``retryable`` is so, too.
    """
    thread_safe = False
    releases_gil = False
    retryable_errors = ()

    def process(self, record):
        """Say what becomes of one record.

        Parameters
        ----------
        record : PluginRecord

        Returns
        -------
        PluginResult

        Notes
        -----
        An exception that this raises is the failure of that record alone.
        """
        raise PluginConfigurationError(f"{type(self).__name__} does not define process(record)")

    def info(self):
        """Who this plugin is.

        Returns
        -------
        PluginInfo
            By default the class's name and the first line of its docstring.
        """
        return PluginInfo(name=type(self).__name__, description=first_line(type(self).__doc__))

    def get_state(self):
        """Where in its life the plugin is, kept true by the manager.

        Returns
        -------
        PluginState
        """
        if self.state is None:
            return PluginState.UNINITIALIZED
        if isinstance(self.state, DataFlarePlugin):
            return DataFlarePlugin.get_state(self.state)
        return self.state

    def initialize(self, config):
        """Called once by the manager before the first record.

        Parameters
        ----------
        config : Mapping
            What was given to `PluginManager.register_plugin`, or an empty mapping.
        """

    def cleanup(self):
        """Called once by the manager after the last record."""

    def health_check(self):
        """Whether the plugin is fit for work.

        Returns
        -------
        bool
        """
        return True


def set_state(DataFlarePlugin plugin not None, state):
    """Note where in its life a plugin is: a state, or the plugin whose member it is.

    For the manager alone.
    """
    plugin.state = state


cdef api class NativePluginABI1(DataFlarePlugin) [
    object DataFlare_NativePluginABI1, type DataFlare_NativePluginABI1_Type, check_size error
]:
    """Base class of plugins in Cython: ``from dataflare cimport NativePlugin``.

    A subclass overrides ``c_process``, which runs without the GIL for each record, and may override
    ``c_process_batch``, which gets a batch at a time. ``dataflare/__init__.pxd`` says how. A C
    function is made one by `from_function`, a ``df_plugin`` of ``dataflare.h`` by `from_capsule`.
    """

    def __cinit__(self):
        check_table(type(self))

    @property
    def releases_gil(self):
        """bool: Whether the engine runs it without the GIL."""
        return not self.needs_gil

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        return df_fail(out, 0, b"the plugin does not define c_process")

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        """Every record from ``out.position`` on, one by one."""
        cdef Run *run = <Run *>out
        cdef df_record record
        cdef Py_ssize_t i
        cdef int status
        cdef char *mark
        memset(&record, 0, sizeof(record))
        run.ordered = True
        cdef bint plain = (
            batch.keys is NULL and batch.timestamps is NULL
            and batch.offsets is NULL and batch.partitions is NULL
        )
        while out.position < batch.length:
            i = out.position
            record.value = batch.values[i]
            if not plain:
                fill_rest(&record, batch, i)
            out.emitter.value.data = NULL
            mark = rewind_mark(run)
            status = self.c_process(&record, &out.emitter)
            settle(run, status, &batch.values[i], mark)
        return 0

    cdef void c_end(self) noexcept nogil:
        pass

    def process(self, record):
        """Run ``c_process`` on one record.

        Parameters
        ----------
        record : PluginRecord

        Returns
        -------
        PluginResult

        Raises
        ------
        PluginError
            The record failed.
        """
        if not isinstance(record, PluginRecord):
            raise TypeError(f"record must be a PluginRecord, not {type(record).__name__}")
        return process_single(self, record, None)

    @staticmethod
    def from_function(function, *, name=None, state=None, thread_safe=False, description=""):
        """A plugin of a C function ``int process(const df_record *, df_emitter *, void *)``.

        Parameters
        ----------
        function : ctypes function, cffi function pointer, numba.cfunc, or int
            Where the function is. The plugin keeps the object; of a bare address, whoever gives it
            sees to it that the code stays loaded.
        name : str, optional
            The function's own, if it has one.
        state : int, ctypes or cffi pointer, or writable buffer, optional
            What the function gets as its third argument; NULL if not given. The plugin keeps the
            object, and a buffer stays exported; what is in there is the function's own business.
        thread_safe : bool
            Whether several threads may call the function with this state at the same time.
        description : str
            One line.

        Returns
        -------
        NativePlugin

        Raises
        ------
        TypeError
            It is no C function, or is declared with another signature.
        ValueError
            A NULL pointer, or a state that is no writable, contiguous buffer.
        IncompatiblePluginError
            It is declared with structs of other sizes than those of this DataFlare.

        Notes
        -----
        A pointer carries no version: what ctypes, cffi and Numba know about the function is
        checked, the rest is a promise. A capsule is checked whole: see `from_capsule`.
        """
        return c_door("from_function")(function, name=name, state=state, thread_safe=thread_safe,
                                       description=description)

    @staticmethod
    def from_capsule(capsule, *, name=None, config=""):
        """A plugin of the ``df_plugin`` that a capsule holds; see ``dataflare.h``.

        Parameters
        ----------
        capsule : PyCapsule
            Named ``"dataflare.plugin"``. The plugin keeps it, and with it the code.
        name : str, optional
            That of the descriptor if not given.
        config : str or bytes
            Text for the plugin's ``init``, as UTF-8.

        Returns
        -------
        NativePlugin
            With a state of its own, if the descriptor has an ``init``: made by it now, and freed by
            ``cleanup`` when the plugin is gone.

        Raises
        ------
        TypeError
            It is no capsule, or another library's.
        ValueError
            The descriptor has no name or no function, or takes no configuration.
        IncompatiblePluginError
            It was built for another version of the ABI, or with structs of other sizes.
        PluginInitializationError
            The plugin's ``init`` failed.
        """
        return c_door("from_capsule")(capsule, name=name, config=config)


def undefined(DataFlarePlugin plugin not None):
    """What a plugin would have to define to process anything; None if it does.

    Parameters
    ----------
    plugin : DataFlarePlugin

    Returns
    -------
    str or None
        What is said behind the name of its class.
    """
    if isinstance(plugin, NativePluginABI1):
        if df_overrides_none(PyCapsule_GetPointer(type(plugin).__pyx_vtable__, NULL)):
            return ("defines neither c_process nor c_process_batch: let it define c_process in "
                    "Cython; a plugin in Python is derived from DataFlarePlugin")
        return None
    for name in ("process", "process_batch"):
        # In the order in which Python looks for it; an instance may have one of its own.
        if name in getattr(plugin, "__dict__", ()):
            return None
        for kind in type(plugin).__mro__:
            if kind is DataFlarePlugin:
                break
            if name in vars(kind):
                return None
    return "defines neither process nor process_batch: let it define process(self, record)"


cdef int check_table(object kind) except -1:
    """Refuse a class whose methods stand in other places than here: calling one would call another.

    The table of a class that was built with fewer methods is shorter, so what stands at the place
    of the end may be other static data of its module. It is compared, not followed.
    """
    cdef void *table = PyCapsule_GetPointer(kind.__pyx_vtable__, NULL)
    if df_end_of(table) != df_own_end():
        raise IncompatiblePluginError(
            f"the plugin class {kind.__qualname__} was built with other methods of {BASE} than "
            f"this DataFlare has: {AGAIN}"
        )
    return 0


cdef object c_door(str name):
    """What makes plugins of C functions: of a module above this one, which few programs need.

    It is loaded when it is first asked for, and costs the others nothing.
    """
    return getattr(importlib.import_module("dataflare._compiled.c_plugin"), name)


def c_functions():
    """Addresses of the functions of dataflare.h, by their names without ``df_``."""
    return c_door("c_functions")()


cdef void fill_rest(df_record *record, const df_batch *batch, Py_ssize_t i) noexcept nogil:
    if batch.keys is not NULL:
        record.key = batch.keys[i]
    if batch.timestamps is not NULL:
        record.timestamp = batch.timestamps[i]
    if batch.offsets is not NULL:
        record.offset = batch.offsets[i]
    if batch.partitions is not NULL:
        record.partition = batch.partitions[i]


cdef object process_single(NativePluginABI1 plugin, object given, object guarded):
    """Run ``c_process`` on one PluginRecord; `guarded` is a pool in debug mode, or None."""
    cdef PluginRecord record = <PluginRecord>given
    cdef Output output = Output.__new__(Output)
    cdef df_emitter *emitter = &output.run.out.emitter
    cdef df_record view
    cdef int status
    # References and views of our own, because others can release those of the record.
    cdef object value = own(record.value)
    cdef object key = record.key
    output.begin_single()
    if guarded is not None:
        output.guard_single(guarded, plugin)
    view_of(value, &view.value)
    if key is None:
        view.key.data = NULL
        view.key.size = 0
    else:
        key = own(key)
        view_of(key, &view.key)
    view.timestamp = record.timestamp
    view.offset = record.offset
    view.partition = record.partition
    try:
        if view.value.size < RELEASE_FROM or plugin.needs_gil:
            status = plugin.c_process(&view, emitter)
        else:
            with nogil:
                status = plugin.c_process(&view, emitter)
    except Exception as error:
        raise as_plugin_error(error, member_name(plugin, output.run.member))
    return output.finish_single(status, plugin)


cdef object own(object data):
    return data if type(data) is bytes else memoryview(data)


NativePlugin = NativePluginABI1
cdef str BASE = NativePlugin.__name__
cdef str AGAIN = "build the plugin again with the DataFlare it runs with"


def __getattr__(name):
    # Reached by a plugin that was built for another ABI: see plugin.pxd.
    if name.startswith("NativePluginABI"):
        base = "NativePluginABI"
        raise ImportError(
            f"the plugin was built for DataFlare's native ABI {name[len(base):]}, this DataFlare "
            f"has ABI {BASE[len(base):]}: {AGAIN}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def new_capsule(address, owner):
    """See `dataflare._compiled.c_plugin`."""
    return c_door("new_capsule")(address, owner)
