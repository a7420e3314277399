"""One plugin in service: runs it, one call at a time, measures it and keeps its state true."""
cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, PyThread_type_lock, NOWAIT_LOCK
)
from libc.stdint cimport int64_t

from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.counters cimport PluginCounters
from dataflare._compiled.loop cimport run, run_one
from dataflare._compiled.output cimport plugin_name
from dataflare._compiled.plugin cimport DataFlarePlugin
from dataflare._compiled.pool cimport MemoryPool
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

cdef extern from "pythread.h" nogil:
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long us, int interrupts)

cdef object READY = PluginState.READY
cdef object RUNNING = PluginState.RUNNING


cdef inline int64_t nanoseconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef int wait_for(PyThread_type_lock lock) except -1:
    """Acquire a lock; what the handler of a signal raises ends the wait."""
    cdef PyLockStatus status
    if PyThread_acquire_lock(lock, NOWAIT_LOCK):
        return 0
    while True:
        with nogil:
            status = PyThread_acquire_lock_timed(lock, -1, 1)
        if status == PY_LOCK_ACQUIRED:
            return 0
        PyErr_CheckSignals()


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
    cdef PyThread_type_lock lock         # held while depth > 0, by the thread `owner`
    cdef unsigned long owner
    cdef Py_ssize_t depth
    cdef bint stopped
    cdef object afterwards               # called when the outermost call ends, or None

    def __cinit__(self, DataFlarePlugin plugin not None, MemoryPool pool not None,
                  PluginCounters counters=None):
        self.plugin = plugin
        self.pool = pool
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
            wait_for(self.lock)
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

    cdef int leave(self) except -1:
        self.depth -= 1
        if self.depth == 0:
            if self.plugin.state is RUNNING:
                self.plugin.state = READY
            afterwards = self.afterwards
            self.afterwards = None
            PyThread_release_lock(self.lock)
            if afterwards is not None:
                afterwards()
        return 0

    def process_record(self, PluginRecord record not None):
        """Run the plugin on one record.

        Raises
        ------
        PluginError
            The record failed.
        """
        cdef PluginResult result
        cdef int status = DF_ERROR
        # Asked for now, because the plugin can release the view that the value may be.
        cdef int64_t started, size_in = len(record.value), size_out = 0
        self.enter()
        started = nanoseconds()
        try:
            result = run_one(self.plugin, record)
            status = result.status
            if status == DF_SUCCESS:
                size_out = len(result.data)
            elif status == DF_SKIP:
                size_out = size_in
            elif status == DF_ERROR:
                raise PluginProcessingError(
                    result.message, plugin=plugin_name(self.plugin), code=result.code
                )
            return result
        finally:
            self.counters.c_observe(
                1, status == DF_SUCCESS, status == DF_FILTERED, status == DF_SKIP,
                status == DF_ERROR, size_in, size_out, nanoseconds() - started
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

    def stop(self, afterwards=None):
        """Take the plugin out of service, once no call is running; what it was doing it ends.

        Parameters
        ----------
        afterwards : callable, optional
            Called then: at once, or, when a call of the plugin stops it, as that call ends.
        """
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.depth > 0 and self.owner == me:
            self.stopped = True
            self.afterwards = afterwards
            return
        wait_for(self.lock)
        self.stopped = True
        PyThread_release_lock(self.lock)
        if afterwards is not None:
            afterwards()
