"""The engine: runs a plugin over a batch and keeps each record's failure to that record.

A native plugin runs without the GIL. A failure leaves the inner loop, is noted, and the loop goes
on with the next record: nothing is set up or looked at per record for the case that it fails.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport uint8_t
from libc.string cimport memset

from dataflare._compiled.arena cimport Arena
from dataflare._compiled.batch cimport RecordBatch, from_columns, new_views
from dataflare._compiled.chain cimport Chain
from dataflare._compiled.output cimport Output, plugin_name
from dataflare._compiled.plugin cimport (
    FilterPlugin, MapPlugin, NativePluginABI1, as_bytes, process_single
)
from dataflare._compiled.pool cimport MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport (
    BatchResult, Gathering, as_plugin_error, finish_result, make_result, raise_wrong_type,
    record_error
)
from dataflare._compiled.types cimport DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS, df_view

from dataflare.errors import PluginProcessingError


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


def run_batch(plugin, RecordBatch batch not None, MemoryPool pool=None):
    """Run a plugin on every record of a batch.

    Parameters
    ----------
    plugin : DataFlarePlugin
    batch : RecordBatch
    pool : MemoryPool, optional
        Where output is written; the system's allocator if not given.

    Returns
    -------
    BatchResult
        ``processing_time`` is left at 0; who calls measures.
    """
    return run(plugin, batch, pool)


cdef PluginResult run_one(object plugin, PluginRecord record, MemoryPool guarded):
    """Run a plugin on one record; `guarded` is a pool in debug mode, or None."""
    if isinstance(plugin, NativePluginABI1):
        return process_single(plugin, record, guarded)
    try:
        if guarded is not None and isinstance(plugin, Chain):
            return (<Chain>plugin).run_single(record, guarded)
        result = plugin.process(record)
        if type(result) is not PluginResult:
            raise_wrong_type(result)
    except Exception as error:
        raise as_plugin_error(error, plugin_name(plugin))
    return result


cdef BatchResult run(object plugin, RecordBatch batch, MemoryPool pool):
    if isinstance(plugin, NativePluginABI1):
        return run_native(plugin, batch, pool)
    if type(plugin) is MapPlugin:
        return run_map(plugin, batch, pool)
    if type(plugin) is FilterPlugin:
        return run_filter(plugin, batch, pool)
    if isinstance(plugin, Chain):
        return run_chain(plugin, batch, pool)
    if hasattr(plugin, "process_batch"):
        return run_whole(plugin, batch)
    return run_python(plugin, batch, pool)


cdef BatchResult run_native(NativePluginABI1 plugin, RecordBatch batch, MemoryPool pool):
    cdef Output output = Output.__new__(Output)
    cdef Py_ssize_t length = batch.columns.length
    output.begin(batch, pool, plugin)
    while output.run.out.position < length:
        try:
            if plugin.needs_gil:
                plugin.c_process_batch(&batch.columns, &output.run.out)
            else:
                with nogil:
                    plugin.c_process_batch(&batch.columns, &output.run.out)
            break
        except Exception as error:
            if output.run.out.position >= length:
                raise  # not the failure of any record
            output.catch(error)
    return output.finish(batch, plugin)


cdef BatchResult run_map(MapPlugin plugin, RecordBatch batch, MemoryPool pool):
    """The views of the output are filled while each new value is still in the cache."""
    cdef Py_ssize_t i = 0, made = 0, total = 0, length = batch.columns.length
    cdef object function = plugin.function
    cdef Arena arena = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    cdef df_view *values = new_views(arena, length)
    cdef list errors = []
    cdef tuple objects = PyTuple_New(length)
    while i < length:
        try:
            while i < length:
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
    if made < length:
        objects = objects[:made]
    cdef RecordBatch output = from_columns(values, made, (arena, objects))
    output.objects = objects
    output.total = total
    return finish_result(batch, status, arena, output, errors, None, pool)


cdef BatchResult run_filter(FilterPlugin plugin, RecordBatch batch, MemoryPool pool):
    cdef Py_ssize_t i = 0, kept = 0, length = batch.columns.length
    cdef object function = plugin.function
    cdef Arena arena = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    cdef df_view *values = new_views(arena, length)
    cdef list errors = []
    cdef list objects = None if batch.objects is None else []
    while i < length:
        try:
            while i < length:
                value = batch.value_at(i)
                if function(value):
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
    cdef RecordBatch output = from_columns(values, kept, (arena, *batch.owners))
    if objects is not None:
        output.objects = tuple(objects)
    return finish_result(batch, status, arena, output, errors, None, pool)


cdef BatchResult run_python(object plugin, RecordBatch batch, MemoryPool pool):
    cdef Gathering gathering = Gathering(batch, pool)
    cdef Py_ssize_t length = batch.columns.length
    cdef str name = None
    process = plugin.process
    while gathering.position < length:
        try:
            while gathering.position < length:
                result = process(batch.record_at(gathering.position))
                if type(result) is not PluginResult:
                    raise_wrong_type(result)
                gathering.add(result)
        except Exception as error:
            gathering.fail(record_error(error, None))
    for _, error in gathering.errors:
        if error.plugin is None:
            name = name or plugin_name(plugin)
            error.plugin = name
    return gathering.finish()


cdef BatchResult run_whole(object plugin, RecordBatch batch):
    """A plugin that takes batches; what it raises is its own failure, not that of a record."""
    name = plugin_name(plugin)
    try:
        result = plugin.process_batch(batch)
    except Exception as error:
        raise as_plugin_error(error, name)
    if not isinstance(result, BatchResult):
        raise PluginProcessingError(
            f"process_batch returned {type(result).__name__}, not a BatchResult", plugin=name
        )
    if (<BatchResult>result).total != batch.columns.length:
        raise PluginProcessingError(
            f"process_batch returned {(<BatchResult>result).total} results "
            f"for {batch.columns.length} records",
            plugin=name,
        )
    return result


cdef BatchResult run_chain(Chain chain, RecordBatch batch, MemoryPool pool):
    cdef Py_ssize_t i, place, length = batch.columns.length
    cdef Arena arena = Arena(pool), scratch = Arena(pool)
    cdef uint8_t *status = <uint8_t *>arena.allocate(length)
    # origin[i] is the position in the input of record i of the batch between two stages.
    cdef Py_ssize_t *origin = <Py_ssize_t *>scratch.allocate(length * sizeof(Py_ssize_t))
    cdef RecordBatch current = batch
    cdef BatchResult result
    cdef list errors = [], given = None, given_before
    if len(chain.stages) == 1:
        return run(chain.stages[0], batch, pool)
    memset(status, DF_SKIP, <size_t>length)
    for i in range(length):
        origin[i] = i
    for stage in chain.stages:
        result = run(stage, current, pool)
        errors.extend([(origin[index], error) for index, error in result.errors])
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
