"""Chains of plugins; consecutive native ones run fused, without a batch in between.

A fused run takes one record through all its members before the next record. If the first member is
a filter that can search a whole block (`Filter.c_seek`), it is asked for the next record it keeps,
and the rest of the run never sees the others.
"""
cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memmove, memset

from dataflare._compiled.output cimport Run, plugin_name, rewind_mark, settle
from dataflare._compiled.plugin cimport fill_rest, process_single
from dataflare._compiled.result cimport as_plugin_error, raise_wrong_type
from dataflare._compiled.types cimport (
    DF_SKIP, DF_SUCCESS, df_drop, df_emitter, df_output, df_pass, df_record
)

from dataflare.types import PluginInfo


cdef class Filter(NativePluginABI1):
    """Base of the native filters that come with the library."""

    cdef Py_ssize_t c_seek(self, const df_batch *batch, Py_ssize_t start) except -1 nogil:
        """The first record from `start` on that is kept, or the length of the batch."""
        return start

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        cdef Py_ssize_t kept
        while out.position < batch.length:
            kept = self.c_seek(batch, out.position)
            df_drop(out, kept - out.position)
            if kept < batch.length:
                df_pass(out, batch)
        return 0


@cython.final
cdef class Fused(NativePluginABI1):
    """Consecutive native plugins of a chain, as one."""

    def __cinit__(self, *members):
        cdef Py_ssize_t i
        self.members = members
        self.length = len(members)
        self.stages = <void **>PyMem_RawMalloc(self.length * sizeof(void *))
        if self.stages is NULL:
            raise MemoryError("no memory for a chain")
        for i in range(self.length):
            self.stages[i] = <void *>(<NativePluginABI1?>members[i])
            self.needs_gil |= (<NativePluginABI1>members[i]).needs_gil
        self.seeks = isinstance(members[0], Filter)

    def __dealloc__(self):
        PyMem_RawFree(self.stages)

    def info(self):
        return PluginInfo(name=" | ".join([plugin_name(member) for member in self.members]))

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil:
        return self.run_from(0, record, out)

    cdef int run_from(self, Py_ssize_t first, const df_record *record,
                      df_emitter *out) except? -1 nogil:
        """Take the record through the members from `first` on."""
        cdef Run *run = <Run *>out
        cdef df_record current = record[0]
        cdef char *mark = rewind_mark(run)
        cdef bint changed = False
        cdef Py_ssize_t i
        cdef int status
        for i in range(first, self.length):
            run.member = <int>i
            out.value.data = NULL
            status = (<NativePluginABI1>self.stages[i]).c_process(&current, out)
            if status == DF_SKIP:
                continue
            if status != DF_SUCCESS or out.value.data is NULL:
                return status
            current.value = out.value
            changed = True
        if not changed:
            return DF_SKIP
        out.value = current.value
        compact(run, mark)
        return DF_SUCCESS

    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil:
        cdef Run *run = <Run *>out
        cdef Py_ssize_t i
        cdef df_record record
        cdef char *mark
        cdef int status
        memset(&record, 0, sizeof(record))
        run.ordered = True
        while out.position < batch.length:
            run.member = 0
            if self.seeks:
                i = (<Filter>self.stages[0]).c_seek(batch, out.position)
                df_drop(out, i - out.position)
                if i == batch.length:
                    break
            i = out.position
            record.value = batch.values[i]
            fill_rest(&record, batch, i)
            out.emitter.value.data = NULL
            mark = rewind_mark(run)
            status = self.run_from(self.seeks, &record, &out.emitter)
            settle(run, status, &batch.values[i], mark)
        return 0


cdef void compact(Run *run, char *mark) noexcept nogil:
    """Move the record's final value over what the members before the last one wrote."""
    cdef df_emitter *out = &run.out.emitter
    cdef char *data = <char *>out.value.data
    if not run.block <= mark <= out.cursor:
        mark = run.block  # a new block was begun since, for this record alone
    if mark <= data <= out.cursor:
        if data != mark:
            memmove(mark, data, <size_t>out.value.size)
            out.value.data = mark
        out.cursor = mark + out.value.size
    elif not run.block <= data <= out.limit:
        out.cursor = mark  # the value is part of the record itself, or in an earlier block


@cython.final
cdef class Chain(DataFlarePlugin):
    """Several plugins, one after the other.

    Parameters
    ----------
    *plugins : DataFlarePlugin
        At least one. Chains among them are taken apart.

    Notes
    -----
    A record that a plugin drops or that fails does not reach the plugins behind it. Consecutive
    native plugins run fused: record by record, without the GIL, with nothing in between.
    """

    def __cinit__(self, *plugins):
        if not plugins:
            raise TypeError("a chain needs at least one plugin")
        flat = []
        for plugin in plugins:
            if isinstance(plugin, Chain):
                flat.extend((<Chain>plugin).plugins)
            elif isinstance(plugin, DataFlarePlugin):
                flat.append(plugin)
            else:
                raise TypeError(f"a chain is made of plugins, not of {type(plugin).__name__}")
        self.plugins = tuple(flat)
        self.stages = fuse(flat)

    def process(self, record):
        """Take one record through the chain.

        Parameters
        ----------
        record : PluginRecord

        Returns
        -------
        PluginResult
            Skip, if every member passed the record on unchanged.
        """
        return self.run_single(record, None)

    cdef PluginResult run_single(self, PluginRecord record, MemoryPool guarded):
        """`process`; `guarded` is a pool in debug mode, or None."""
        cdef PluginRecord current = record
        cdef PluginResult result
        changed = False
        metadata = None
        for stage in self.stages:
            try:
                if guarded is not None and isinstance(stage, NativePluginABI1):
                    outcome = process_single(stage, current, guarded)
                else:
                    outcome = stage.process(current)
                if not isinstance(outcome, PluginResult):
                    raise_wrong_type(outcome)
            except Exception as error:
                raise as_plugin_error(error, plugin_name(stage))
            result = outcome
            if result.status == DF_SKIP:
                continue
            if result.status != DF_SUCCESS:
                return result
            changed = True
            if result.metadata is not None:
                metadata = result.metadata
            current = PluginRecord(
                result.data, key=current.key,
                metadata=current.metadata if metadata is None else metadata,
                timestamp=current.timestamp, partition=current.partition, offset=current.offset,
            )
        return PluginResult.success(current.value, metadata) if changed else PluginResult.skip()

    def info(self):
        """Name: those of the members, with bars in between."""
        return PluginInfo(
            name=" | ".join([plugin_name(plugin) for plugin in self.plugins]),
            description="Several plugins, one after the other.",
        )

    def initialize(self, config):
        """Initialise every member with the same configuration."""
        for plugin in self.plugins:
            plugin.initialize(config)

    def cleanup(self):
        """Clean every member up."""
        for plugin in self.plugins:
            plugin.cleanup()

    def health_check(self):
        """Whether every member is fit for work."""
        return all([plugin.health_check() for plugin in self.plugins])

    def __reduce__(self):
        return Chain, self.plugins

    def __repr__(self):
        return f"Chain({', '.join([repr(plugin) for plugin in self.plugins])})"


cdef tuple fuse(list plugins):
    stages = []
    run = []
    for plugin in [*plugins, None]:
        if isinstance(plugin, NativePluginABI1):
            run.append(plugin)
            continue
        if run:
            stages.append(run[0] if len(run) == 1 else Fused(*run))
            run = []
        if plugin is not None:
            stages.append(plugin)
    return tuple(stages)
