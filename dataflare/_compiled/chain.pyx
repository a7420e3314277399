"""Chains of plugins; consecutive native ones run fused, without a batch in between.

A fused run takes one record through all its members before the next record. If the first member is
a filter that can search a whole block (`Filter.c_seek`), it is asked for the next record it keeps,
and the rest of the run never sees the others.

How much of its time a fused run spends in which member is measured on every `SAMPLE`-th record
that passes the first search: reading the clock between all members of all records would cost more
than they do.
"""
cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t
from libc.string cimport memmove, memset

from dataflare._compiled.clock cimport nanoseconds

from dataflare._compiled.output cimport Run, plugin_name, rewind_mark, settle
from dataflare._compiled.plugin cimport fill_rest, process_single
from dataflare._compiled.result cimport as_plugin_error, raise_wrong_type
from dataflare._compiled.types cimport (
    DF_SKIP, DF_SUCCESS, df_drop, df_emitter, df_output, df_pass, df_record
)

from contextlib import ExitStack

from dataflare.types import PluginInfo

cdef extern from *:
    """
    static void df_add(int64_t *counter, int64_t value) {
        __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
    }
    """
    void df_add(int64_t *counter, int64_t value) noexcept nogil

cdef Py_ssize_t SAMPLE = 128


cdef int64_t cost_of_clock() noexcept:
    """Nanoseconds that two readings of the clock are apart at least."""
    cdef int64_t least = 1_000_000, before
    for _ in range(200):
        before = nanoseconds()
        least = min(least, nanoseconds() - before)
    return least


cdef int64_t CLOCK_COST = cost_of_clock()


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
        self.sampled_ns = <int64_t *>PyMem_RawCalloc(self.length, sizeof(int64_t))
        if self.stages is NULL or self.sampled_ns is NULL:
            raise MemoryError("no memory for a chain")
        for i in range(self.length):
            self.stages[i] = <void *>(<NativePluginABI1?>members[i])
            self.needs_gil |= (<NativePluginABI1>members[i]).needs_gil
        self.seeks = isinstance(members[0], Filter)
        self.member_ns = [0.0] * self.length

    def __dealloc__(self):
        PyMem_RawFree(self.stages)
        PyMem_RawFree(self.sampled_ns)

    cdef list shares(self):
        """The part of the time of the run that each member takes; equal parts before a sample."""
        cdef Py_ssize_t i
        total = sum([max(self.sampled_ns[i], 0) for i in range(self.length)])
        if total == 0:
            return [1 / self.length] * self.length
        return [max(self.sampled_ns[i], 0) / total for i in range(self.length)]

    cdef list times(self, int64_t total_ns):
        """Nanoseconds of each member, of the so many of the run.

        What came since the last call is shared out by what the samples show now. What was said of a
        member before stays, so its time never falls when they show something else.
        """
        cdef int64_t new = total_ns - self.shared_ns
        self.shared_ns = total_ns
        self.member_ns = [
            before + new * share for before, share in zip(self.member_ns, self.shares())
        ]
        return self.member_ns

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

    cdef int run_timed(self, Py_ssize_t first, const df_record *record,
                       df_emitter *out) except? -1 nogil:
        """`run_from`, with a look at the clock behind each member."""
        cdef Run *run = <Run *>out
        cdef df_record current = record[0]
        cdef char *mark = rewind_mark(run)
        cdef bint changed = False
        cdef Py_ssize_t i
        cdef int status
        cdef int64_t began
        for i in range(first, self.length):
            run.member = <int>i
            out.value.data = NULL
            began = nanoseconds()
            status = (<NativePluginABI1>self.stages[i]).c_process(&current, out)
            df_add(&self.sampled_ns[i], nanoseconds() - began - CLOCK_COST)
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
        # Who comes back, after a failure or lap by lap, does not begin with a sample each time.
        cdef Py_ssize_t i, until_sample = SAMPLE - (out.position + SAMPLE - 1) % SAMPLE
        cdef df_record record
        cdef char *mark
        cdef int status
        cdef bint sampled
        cdef int64_t began = 0
        memset(&record, 0, sizeof(record))
        run.ordered = True
        while out.position < batch.length:
            run.member = 0
            until_sample -= 1
            sampled = until_sample == 0
            if sampled:
                until_sample = SAMPLE
                began = nanoseconds()
            if self.seeks:
                i = (<Filter>self.stages[0]).c_seek(batch, out.position)
                if sampled:
                    df_add(&self.sampled_ns[0], nanoseconds() - began - CLOCK_COST)
                df_drop(out, i - out.position)
                if i == batch.length:
                    break
            i = out.position
            record.value = batch.values[i]
            fill_rest(&record, batch, i)
            out.emitter.value.data = NULL
            mark = rewind_mark(run)
            if sampled:
                status = self.run_timed(self.seeks, &record, &out.emitter)
            else:
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


cdef object make_named = None


def let_strings_name_plugins(make):
    """From here on, a string in the place of a plugin is what names one.

    Parameters
    ----------
    make : callable
        Makes the plugin that a string names. Only `dataflare.loading` can: it stands above this
        module, which cannot import it.
    """
    global make_named
    make_named = make


def as_member(value):
    """The plugin that a string names; anything else as it is."""
    return make_named(value) if isinstance(value, str) and make_named is not None else value


cdef str not_a_member(object value):
    """Why something that is no plugin cannot be in a chain."""
    if isinstance(value, type) and issubclass(value, DataFlarePlugin):
        return f"{value.__name__} is a class: give an instance, {value.__name__}()"
    if isinstance(value, (list, tuple)):
        return "give the plugins one by one: Chain(*plugins)"
    return f"a chain is made of plugins, not of {type(value).__name__}"


cdef class Chain(DataFlarePlugin):
    """Several plugins, one after the other.

    Parameters
    ----------
    *plugins : DataFlarePlugin or str
        At least one; of a string the plugin that it names, as in `PluginManager.register_plugin`.
        Chains among them are taken apart.

    Raises
    ------
    TypeError
        There is none, or one of them is no plugin.
    PluginError
        A string names no plugin that can be used.

    Notes
    -----
    A record that a plugin drops or that fails does not reach the plugins behind it. Consecutive
    native plugins run fused: record by record, without the GIL, with nothing in between.
    """

    def __cinit__(self, *plugins):
        if not plugins:
            raise TypeError("a chain needs at least one plugin")
        flat = []
        for given in plugins:
            plugin = as_member(given)
            if isinstance(plugin, Chain):
                flat.extend((<Chain>plugin).plugins)
            elif isinstance(plugin, DataFlarePlugin):
                flat.append(plugin)
            else:
                raise TypeError(not_a_member(plugin))
        self.plugins = tuple(flat)
        self.stages = fuse(flat)
        self.stage_ns = <int64_t *>PyMem_RawCalloc(len(self.stages), sizeof(int64_t))
        if self.stage_ns is NULL:
            raise MemoryError("no memory for a chain")

    def __dealloc__(self):
        PyMem_RawFree(self.stage_ns)

    @property
    def thread_safe(self):
        """bool: Whether every member is."""
        return all([plugin.thread_safe for plugin in self.plugins])

    @property
    def releases_gil(self):
        """bool: Whether every member does."""
        return all([plugin.releases_gil for plugin in self.plugins])

    @property
    def retryable_errors(self):
        """tuple of exception types: Those of all members."""
        return tuple([kind for plugin in self.plugins for kind in plugin.retryable_errors])

    def exclusive_times(self):
        """Seconds that batches spent in each plugin alone.

        Returns
        -------
        list of (str, float)
            Name and time of every member; a time never falls. Members that run fused share the time
            that was measured for them together, in the proportion that samples of them show.
        """
        cdef Py_ssize_t i
        times = []
        for i, stage in enumerate(self.stages):
            if isinstance(stage, Fused):
                shared = (<Fused>stage).times(self.stage_ns[i])
                times.extend([(plugin_name(member), elapsed / 1e9)
                              for member, elapsed in zip(stage.members, shared)])
            else:
                times.append((plugin_name(stage), self.stage_ns[i] / 1e9))
        return times

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
        if not isinstance(record, PluginRecord):
            raise TypeError(f"record must be a PluginRecord, not {type(record).__name__}")
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
        with ExitStack() as stack:
            for plugin in each_once(self.plugins):
                plugin.initialize(config)
                stack.callback(plugin.cleanup)  # if one behind it fails
            stack.pop_all()

    def cleanup(self):
        """Clean every member up."""
        with ExitStack() as stack:  # what one raises does not spare the others
            for plugin in reversed(each_once(self.plugins)):
                stack.callback(plugin.cleanup)

    def health_check(self):
        """Whether every member is fit for work."""
        return all([plugin.health_check() for plugin in self.plugins])

    def __reduce__(self):
        return Chain, self.plugins

    def __repr__(self):
        return f"Chain({', '.join([repr(plugin) for plugin in self.plugins])})"


cdef list each_once(tuple plugins):
    """The members without repetitions; two that are equal are two all the same."""
    return list({id(plugin): plugin for plugin in plugins}.values())


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
