"""The engine: runs a plugin over a batch and keeps each record's failure to that record.

A native plugin runs without the GIL. A failure leaves the inner loop, is noted, and the loop goes
on with the next record: nothing is set up or looked at per record for the case that it fails.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from dataflare._compiled.arena cimport Arena
from dataflare._compiled.batch cimport NO_VALUE, RecordBatch, from_columns, new_views
from dataflare._compiled.chain cimport Chain
from dataflare._compiled.clock cimport Pace, begin_pace, is_late, nanoseconds, next_lap
from dataflare._compiled.functions cimport FilterPlugin, MapPlugin, as_bytes, as_truth
from dataflare._compiled.output cimport Output, leave_undecided, plugin_name
from dataflare._compiled.plugin cimport NativePluginABI1, process_single
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport (
    BatchResult, Gathering, as_plugin_error, finish_result, make_result, raise_wrong_type,
    record_error
)
from dataflare._compiled.types cimport (
    DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS, df_batch, df_output, df_view
)

from dataflare.errors import (
    TOO_LATE, PluginError, PluginProcessingError, PluginTimeoutError, refuse_coroutine,
)

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(PyObject *item)


def run_record(plugin, PluginRecord record not None):
    """Run a plugin on one record.

    Parameters
    ----------
    plugin : DataFlarePlugin
    record : PluginRecord

    Returns
    -------
    PluginResult

    Raises
    ------
    PluginError
        The plugin raised, or returned something else than a result.
    """
    return run_one(plugin, record, None)


def run_batch(plugin, RecordBatch batch not None, MemoryPool pool=None, timeout=None):
    """Run a plugin on every record of a batch.

    Parameters
    ----------
    plugin : DataFlarePlugin
    batch : RecordBatch
    pool : MemoryPool, optional
        Where output is written; the system's allocator if not given.
    timeout : float, optional
        Seconds after which no further record is begun: what is left fails with
        `PluginTimeoutError`. A record that is being processed is not interrupted, nor is a plugin
        that takes whole batches.

    Returns
    -------
    BatchResult
        ``processing_time`` is left at 0; who calls measures.
    """
    return run(plugin, batch, pool, deadline_after(timeout))


cdef int64_t deadline_after(object timeout) except? -1:
    return 0 if timeout is None else nanoseconds() + <int64_t>(timeout * 1e9)


cdef PluginResult run_one(object plugin, PluginRecord record, MemoryPool guarded):
    """Run a plugin on one record; `guarded` is a pool in debug mode, or None."""
    if isinstance(plugin, NativePluginABI1):
        return <PluginResult>process_single(plugin, record, guarded)
    try:
        if guarded is not None and isinstance(plugin, Chain):
            return (<Chain>plugin).run_single(record, guarded)
        result = plugin.process(record)
        if type(result) is not PluginResult:
            raise_wrong_type(result)
    except Exception as error:
        raise as_plugin_error(error, plugin_name(plugin))
    return result


cdef BatchResult run(object plugin, RecordBatch batch, MemoryPool pool, int64_t deadline):
    if batch.nullable and batch.count_nulls():
        return run_beside_nulls(plugin, batch, pool, deadline)
    if isinstance(plugin, NativePluginABI1):
        return run_native(plugin, batch, pool, deadline)
    if type(plugin) is MapPlugin:
        return run_map(plugin, batch, pool, deadline)
    if type(plugin) is FilterPlugin:
        return run_filter(plugin, batch, pool, deadline)
    if isinstance(plugin, Chain):
        return run_chain(plugin, batch, pool, deadline)
    if hasattr(plugin, "process_batch"):
        return run_whole(plugin, batch)
    return run_python(plugin, batch, pool, deadline)


cdef BatchResult run_beside_nulls(object plugin, RecordBatch batch, MemoryPool pool,
                                  int64_t deadline):
    """Records without a value go past the plugin: they are skipped."""
    cdef Py_ssize_t i, made = 0, place = 0, at = 0, length = batch.columns.length
    cdef Arena arena = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    cdef df_view *values = new_views(arena, length)
    cdef list origin = [i for i in range(length) if batch.columns.values[i].data != NO_VALUE]
    cdef BatchResult part = run(plugin, batch.take(origin), pool, deadline)
    cdef list given = None if part.given is None else []
    cdef list errors = [(origin[index], error) for index, error in part.errors]
    for i in range(length):
        if batch.columns.values[i].data == NO_VALUE:
            status[i] = DF_SKIP
            values[made] = batch.columns.values[i]
            made += 1
            if given is not None:
                given.append(None)
            continue
        status[i] = part.statuses[at]
        at += 1
        if status[i] == DF_SUCCESS or status[i] == DF_SKIP:
            values[made] = part.output.columns.values[place]
            made += 1
            if given is not None:
                given.append(part.given[place])
            place += 1
    cdef RecordBatch output = from_columns(values, made, (arena, part.output))
    output.nullable = True
    return finish_result(batch, status, arena, output, errors, given, pool)


cdef object too_late(object plugin):
    return PluginTimeoutError(TOO_LATE, plugin=plugin)


cdef BatchResult run_native(NativePluginABI1 plugin, RecordBatch batch, MemoryPool pool,
                            int64_t deadline):
    cdef Output output = Output.__new__(Output)
    output.begin(batch, pool, plugin)
    if deadline:
        run_until(plugin, output, &batch.columns, deadline)
    else:
        run_up_to(plugin, output, &batch.columns)
    return output.finish(batch, plugin)


cdef int run_up_to(NativePluginABI1 plugin, Output output, const df_batch *columns) except -1:
    """Every record from the output's position to the end of the columns."""
    while output.run.out.position < columns.length:
        try:
            if plugin.needs_gil:
                plugin.c_process_batch(columns, &output.run.out)
            else:
                with nogil:
                    plugin.c_process_batch(columns, &output.run.out)
            break
        except Exception as error:
            if output.run.out.position >= columns.length:
                raise  # not the failure of any record
            output.catch(error)
    return 0


cdef int run_until(NativePluginABI1 plugin, Output output, const df_batch *columns,
                   int64_t deadline) except -1:
    """`run_up_to`, lap by lap, and no lap begins after the deadline."""
    cdef df_output *out = &output.run.out
    cdef Pace pace
    begin_pace(&pace, deadline)
    out.total = 0
    while out.position < columns.length and not pace.late:
        try:
            if plugin.needs_gil:
                run_laps(plugin, output, columns, &pace)
            else:
                with nogil:
                    run_laps(plugin, output, columns, &pace)
        except Exception as error:
            if out.position >= out.total:
                raise  # not the failure of any record
            output.catch(error)
    out.total = columns.length
    if pace.late:
        output.expire(too_late(plugin_name(plugin)))
    return 0


cdef int run_laps(NativePluginABI1 plugin, Output output, const df_batch *columns,
                  Pace *pace) except -1 nogil:
    """The plugin sees a batch that grows, and goes on where it stopped.

    ``out.total`` is the end of the lap: who comes back after a failure goes on in the same one.
    """
    cdef df_output *out = &output.run.out
    cdef df_batch lap = columns[0]
    while out.position < columns.length:
        if out.position >= out.total:
            if next_lap(pace):
                return 0
            out.total = min(out.position + pace.lap, columns.length)
        lap.length = out.total
        if columns.block.data is not NULL:
            lap.block.size = columns.block.size
            if lap.length < columns.length:
                lap.block.size = columns.values[lap.length].data - columns.block.data
        plugin.c_process_batch(&lap, out)
        leave_undecided(&output.run)
    return 0


cdef BatchResult run_map(MapPlugin plugin, RecordBatch batch, MemoryPool pool, int64_t deadline):
    """The views of the output are filled while each new value is still in the cache."""
    cdef Py_ssize_t i = 0, made = 0, total = 0, length = batch.columns.length
    cdef object function = plugin.function
    cdef Arena arena = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    cdef df_view *values = new_views(arena, length)
    cdef list errors = []
    cdef tuple objects = PyTuple_New(length)
    cdef Pace pace
    begin_pace(&pace, deadline)
    # Nobody may find it while it has gaps; of `bytes` alone, it is of no use to the collector.
    PyObject_GC_UnTrack(<PyObject *>objects)
    while i < length:
        try:
            while i < length and not is_late(&pace):
                data = function(batch.value_at(i))
                if type(data) is not bytes:
                    data = as_bytes(data)
                values[made].data = PyBytes_AS_STRING(data)
                values[made].size = PyBytes_GET_SIZE(data)
                total += values[made].size
                Py_INCREF(data)
                PyTuple_SET_ITEM(objects, made, data)
                made += 1
                status[i] = DF_SUCCESS
                i += 1
        except Exception as error:
            errors.append((i, record_error(error, plugin.name)))
            status[i] = DF_ERROR
            i += 1
        if pace.late:
            i = expire(status, i, length, errors, plugin.name)
    if made < length:
        objects = objects[:made]
    cdef RecordBatch output = from_columns(values, made, (arena, objects))
    output.objects = objects
    output.total = total
    return finish_result(batch, status, arena, output, errors, None, pool)


cdef BatchResult run_filter(FilterPlugin plugin, RecordBatch batch, MemoryPool pool,
                            int64_t deadline):
    cdef Py_ssize_t i = 0, kept = 0, length = batch.columns.length
    cdef object function = plugin.function
    cdef Arena arena = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    cdef df_view *values = new_views(arena, length)
    cdef list errors = []
    cdef list objects = None if batch.objects is None else []
    cdef Pace pace
    begin_pace(&pace, deadline)
    while i < length:
        try:
            while i < length and not is_late(&pace):
                value = batch.value_at(i)
                if as_truth(function(value)):
                    if objects is not None:
                        objects.append(value)
                    values[kept] = batch.columns.values[i]
                    kept += 1
                    status[i] = DF_SKIP
                else:
                    status[i] = DF_FILTERED
                i += 1
        except Exception as error:
            errors.append((i, record_error(error, plugin.name)))
            status[i] = DF_ERROR
            i += 1
        if pace.late:
            i = expire(status, i, length, errors, plugin.name)
    cdef RecordBatch output = from_columns(values, kept, (arena, *batch.owners))
    if objects is not None:
        output.objects = tuple(objects)
    return finish_result(batch, status, arena, output, errors, None, pool)


cdef Py_ssize_t expire(uint8_t *status, Py_ssize_t i, Py_ssize_t length, list errors,
                       object plugin) except -1:
    """The records from `i` on were not reached in time."""
    error = too_late(plugin)
    while i < length:
        errors.append((i, error))
        status[i] = DF_ERROR
        i += 1
    return i


cdef BatchResult run_python(object plugin, RecordBatch batch, MemoryPool pool, int64_t deadline):
    cdef Gathering gathering = Gathering(batch, pool)
    cdef Py_ssize_t length = batch.columns.length
    cdef object name = None
    cdef Pace pace
    begin_pace(&pace, deadline)
    process = plugin.process
    while gathering.position < length:
        try:
            while gathering.position < length and not is_late(&pace):
                result = process(batch.record_at(gathering.position))
                if type(result) is not PluginResult:
                    raise_wrong_type(result)
                gathering.add(result)
        except Exception as error:
            gathering.fail(record_error(error, None))
        if pace.late:
            late = too_late(None)
            while gathering.position < length:
                gathering.fail(late)
    for _, error in gathering.errors:
        if error.plugin is None:
            name = name or plugin_name(plugin)
            error.plugin = name
    return gathering.finish()


cdef BatchResult run_whole(object plugin, RecordBatch batch):
    """A plugin that takes batches; what it raises is the failure of every record."""
    name = plugin_name(plugin)
    try:
        result = plugin.process_batch(batch)
        if not isinstance(result, BatchResult) or (<BatchResult>result).output is None:
            refuse_coroutine(result, "process_batch")
            raise PluginProcessingError(
                f"process_batch returned {type(result).__name__}, not a BatchResult"
            )
        if (<BatchResult>result).total != batch.columns.length:
            raise PluginProcessingError(
                f"process_batch returned {(<BatchResult>result).total} results "
                f"for {batch.columns.length} records"
            )
        check_errors(result)
    except Exception as error:
        return BatchResult.failed(batch, record_error(error, name))
    return result


cdef int check_errors(BatchResult result) except -1:
    """The list of errors is in the hands of whoever made the result."""
    cdef Py_ssize_t i
    places = []
    if result.counts[DF_ERROR]:
        places = [i for i in range(result.total) if result.statuses[i] == DF_ERROR]
    found = [index for index, error in result.errors if isinstance(error, PluginError)]
    if len(found) < len(result.errors) or found != places:
        raise PluginProcessingError("process_batch returned errors that do not fit its results")
    return 0


cdef BatchResult run_chain(Chain chain, RecordBatch batch, MemoryPool pool, int64_t deadline):
    cdef int64_t began
    cdef BatchResult result
    if len(chain.stages) > 1:
        if deadline and not any([hasattr(stage, "process_batch") for stage in chain.stages]):
            return run_stages_until(chain, batch, pool, deadline)
        return run_stages(chain, batch, pool, deadline)
    began = nanoseconds()
    result = run(chain.stages[0], batch, pool, deadline)
    chain.stage_ns[0] += nanoseconds() - began
    return result


cdef BatchResult run_stages_until(Chain chain, RecordBatch batch, MemoryPool pool,
                                  int64_t deadline):
    """Lap by lap through all stages, so that what was begun in time is not lost behind it."""
    cdef Py_ssize_t start = 0, stop, length = batch.columns.length
    cdef RecordBatch rest
    cdef Pace pace
    parts = []
    begin_pace(&pace, deadline)
    while start < length and not next_lap(&pace):
        stop = min(start + pace.lap, length)
        parts.append(run_stages(chain, batch.cut(start, stop), pool, 0))
        start = stop
    if start < length:
        rest = batch.cut(start, length)
        parts.append(BatchResult.failed(rest, too_late(plugin_name(chain))))
    return BatchResult.joined(batch, parts, pool)


cdef BatchResult run_stages(Chain chain, RecordBatch batch, MemoryPool pool, int64_t deadline):
    cdef Py_ssize_t i, place, at, failed, length = batch.columns.length
    cdef Arena arena = Arena(pool), scratch = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    # origin[i] is the position in the input of record i of the batch between two stages.
    cdef Py_ssize_t *origin = <Py_ssize_t *>scratch.allocate(length * sizeof(Py_ssize_t))
    cdef RecordBatch current = batch
    cdef BatchResult result
    cdef int64_t began
    cdef list errors = [], given = None, given_before
    memset(status, DF_SKIP, <size_t>length)
    for i in range(length):
        origin[i] = i
    for at, stage in enumerate(chain.stages):
        began = nanoseconds()
        result = run(stage, current, pool, deadline)
        chain.stage_ns[at] += nanoseconds() - began
        for index, error in result.errors:
            failed = index
            errors.append((origin[failed], error))
        given_before = given
        given = [] if given is not None or result.given is not None else None
        place = 0
        for i in range(result.total):
            if result.statuses[i] == DF_FILTERED or result.statuses[i] == DF_ERROR:
                status[origin[i]] = result.statuses[i]
                continue
            if result.statuses[i] == DF_SUCCESS:
                status[origin[i]] = DF_SUCCESS
            if given is not None:
                metadata = None if result.given is None else result.given[place]
                if metadata is None and given_before is not None:
                    metadata = given_before[i]
                given.append(metadata)
            origin[place] = origin[i]
            place += 1
        current = result.output
    errors.sort(key=first)
    # The last output has the other columns already: every stage passed them on.
    return make_result(status, length, arena, current, errors, given)


def first(pair):
    """The first of two; errors are sorted by it."""
    return pair[0]
