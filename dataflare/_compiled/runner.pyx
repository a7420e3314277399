"""One plugin in service: runs it, one call at a time, measures it and keeps its state true."""
cimport cython
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, PyThread_type_lock, NOWAIT_LOCK, WAIT_LOCK
)
from libc.stdint cimport int64_t

from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.counters cimport PluginCounters
from dataflare._compiled.loop cimport run, run_one
from dataflare._compiled.output cimport plugin_name
from dataflare._compiled.plugin cimport DataFlarePlugin
from dataflare._compiled.pool cimport DEBUG, MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport BatchResult
from dataflare._compiled.types cimport DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS

from dataflare.errors import PluginDisabledError, PluginProcessingError, RunnerStoppedError
from dataflare.types import PluginState

cdef extern from "time.h" nogil:
    ctypedef long time_t
    cdef struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef object READY = PluginState.READY
cdef object RUNNING = PluginState.RUNNING


cdef inline int64_t nanoseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


@cython.final
cdef class PluginRunner:
    """Runs a plugin for a manager.

    Parameters
    ----------
    plugin : DataFlarePlugin
        Initialised.
    pool : MemoryPool
        Where output is written.
    counters : PluginCounters, optional
        Those of the plugin that this one replaces.

    Notes
    -----
    Calls from several threads wait for each other; a plugin that calls itself through its manager
    does not wait for itself.
    """
    cdef readonly DataFlarePlugin plugin
    cdef readonly PluginCounters counters
    cdef public bint enabled
    cdef MemoryPool pool
    cdef MemoryPool guarded              # the pool in debug mode, else None: for single records
    cdef PyThread_type_lock lock         # held while depth > 0, by the thread `owner`
    cdef unsigned long owner
    cdef Py_ssize_t depth
    cdef bint stopped

    def __cinit__(self, DataFlarePlugin plugin not None, MemoryPool pool not None,
                  PluginCounters counters=None):
        self.plugin = plugin
        self.pool = pool
        self.guarded = pool if pool.flags >= DEBUG else None
        self.counters = PluginCounters() if counters is None else counters
        self.enabled = True
        self.lock = PyThread_allocate_lock()
        if self.lock is NULL:
            raise MemoryError("no memory for a lock")

    def __dealloc__(self):
        if self.lock is not NULL:
            PyThread_free_lock(self.lock)

    cdef int enter(self) except -1:
        """Wait for the plugin and mark it running; `leave` must follow."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.depth == 0 or self.owner != me:
            if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
                with nogil:
                    PyThread_acquire_lock(self.lock, WAIT_LOCK)
            self.owner = me
        self.depth += 1
        if self.stopped or not self.enabled:
            stopped = self.stopped
            self.leave()
            if stopped:
                raise RunnerStoppedError(
                    "the plugin is not in service any more", plugin=plugin_name(self.plugin)
                )
            raise PluginDisabledError("the plugin is disabled", plugin=plugin_name(self.plugin))
        self.plugin.state = RUNNING
        return 0

    cdef void leave(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            if self.plugin.state is RUNNING:
                self.plugin.state = READY
            PyThread_release_lock(self.lock)

    def process_record(self, PluginRecord record not None):
        """Run the plugin on one record.

        Raises
        ------
        PluginError
            The record failed.
        """
        cdef PluginResult result
        cdef int status = DF_ERROR
        cdef int64_t started, size_out = 0
        self.enter()
        started = nanoseconds()
        try:
            result = run_one(self.plugin, record, self.guarded)
            status = result.status
            if status == DF_SUCCESS:
                size_out = len(result.data)
            elif status == DF_SKIP:
                size_out = len(record.value)
            elif status == DF_ERROR:
                raise PluginProcessingError(
                    result.message, plugin=plugin_name(self.plugin), code=result.code
                )
            return result
        finally:
            self.counters.c_observe(
                1, status == DF_SUCCESS, status == DF_FILTERED, status == DF_SKIP,
                status == DF_ERROR, len(record.value), size_out, nanoseconds() - started
            )
            self.leave()

    def process_batch(self, RecordBatch batch not None):
        """Run the plugin on a batch.

        Returns
        -------
        BatchResult

        Raises
        ------
        PluginError
            A plugin that takes whole batches failed; all records count as failed.
        """
        cdef BatchResult result = None
        cdef Py_ssize_t length = batch.columns.length
        cdef int64_t started, elapsed
        self.enter()
        started = nanoseconds()
        try:
            result = run(self.plugin, batch, self.pool)
        finally:
            elapsed = nanoseconds() - started
            if result is None:
                self.counters.c_observe(length, 0, 0, 0, length, batch.size_in_bytes(), 0, elapsed)
            else:
                result.processing_time = elapsed / 1e9
                self.counters.c_observe(
                    length, result.counts[DF_SUCCESS], result.counts[DF_FILTERED],
                    result.counts[DF_SKIP], result.counts[DF_ERROR],
                    batch.size_in_bytes(), result.output.size_in_bytes(), elapsed
                )
            self.leave()
        return result

    def stop(self):
        """Take the plugin out of service, once no call is running; what it was doing it ends."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint inside = self.depth > 0 and self.owner == me
        if not inside:
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.stopped = True
        if not inside:
            PyThread_release_lock(self.lock)
