"""What became of a batch: a column of statuses, a batch of what goes on, and the errors."""
cimport cython
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memcpy

from bisect import bisect_left
from collections.abc import Sequence
from operator import itemgetter

import numpy as np

from dataflare._compiled.batch cimport (
    NO_VALUE, Piece, from_columns, from_objects, new_views, set_null
)
from dataflare._compiled.types cimport DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS, df_view

from dataflare._later import Later
from dataflare.errors import (
    PluginError, PluginProcessingError, drop_frames, refuse_coroutine, sentence_of,
)
from dataflare.units import counted

arrow = Later("dataflare._compiled.arrow")


cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object number, object error) except? -1

cdef extern from *:
    """
    /* Four counters kept apart in bytes would overflow; the compiler vectorises this form. */
    static void df_count_statuses(const uint8_t *status, Py_ssize_t n, Py_ssize_t counts[4]) {
        Py_ssize_t filtered = 0, skip = 0, error = 0;
        for (Py_ssize_t i = 0; i < n; i++) {
            filtered += status[i] == DF_FILTERED;
            skip += status[i] == DF_SKIP;
            error += status[i] == DF_ERROR;
        }
        counts[DF_FILTERED] = filtered;
        counts[DF_SKIP] = skip;
        counts[DF_ERROR] = error;
        counts[DF_SUCCESS] = n - filtered - skip - error;
    }
    """
    void df_count_statuses(const uint8_t *status, Py_ssize_t n, Py_ssize_t *counts) nogil


cdef BatchResult make_result(
    const uint8_t *statuses, Py_ssize_t total, Arena arena, RecordBatch output, list errors,
    list given
):
    cdef BatchResult result = BatchResult.__new__(BatchResult)
    result.statuses = statuses
    result.total = total
    result.arena = arena
    result.output = output
    result.errors = errors
    result.given = given
    df_count_statuses(statuses, total, result.counts)
    return result


@cython.final
cdef class BatchResult:
    """What became of the records of one batch, in input order.

    Attributes
    ----------
    output : RecordBatch
        What goes on: successes with their new value, skipped records as they were.
    errors : list of (int, PluginError)
        Position in the input and error of every record that failed.
    processing_time : float
        Seconds.
    """

    def __init__(self):
        raise TypeError("results come from a plugin; an author makes one with "
                        "BatchResult.from_results")

    def __dealloc__(self):
        PyMem_RawFree(self.places)

    @staticmethod
    def from_results(RecordBatch batch not None, results, double processing_time=0.0):
        """Make a result from one outcome per record, as the author of a `BatchPlugin` does.

        Parameters
        ----------
        batch : RecordBatch
            What was processed.
        results : iterable of PluginResult or Exception
            One for each record of `batch`, in order.
        processing_time : float
            Seconds it took.

        Returns
        -------
        BatchResult

        Raises
        ------
        TypeError
            An outcome is something else.
        ValueError
            There are not as many as records.
        """
        outcomes = list(results)
        if len(outcomes) != len(batch):
            raise ValueError(f"{len(outcomes)} results do not fit {len(batch)} records")
        cdef Gathering gathering = Gathering(batch, None)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, PluginResult):
                gathering.add(outcome)
            elif isinstance(outcome, Exception):
                gathering.fail(as_plugin_error(outcome, None))
            else:
                raise TypeError(f"result {index} must be a PluginResult or an exception, "
                                f"not {type(outcome).__name__}")
        cdef BatchResult result = gathering.finish()
        result.processing_time = processing_time
        return result

    @staticmethod
    def failed(RecordBatch batch not None, error):
        """Make the result of a batch that failed as a whole.

        Parameters
        ----------
        batch : RecordBatch
        error : PluginError
            Of every record.

        Returns
        -------
        BatchResult
        """
        cdef Gathering gathering = Gathering(batch, None)
        while gathering.position < batch.columns.length:
            gathering.fail(error)
        return gathering.finish()

    @staticmethod
    def joined(RecordBatch batch not None, parts, MemoryPool pool=None):
        """Make the result of a batch from those of its parts.

        Parameters
        ----------
        batch : RecordBatch
        parts : sequence of BatchResult
            Of consecutive parts of `batch`, in order, from its first record to its last.
        pool : MemoryPool, optional

        Returns
        -------
        BatchResult
        """
        cdef Py_ssize_t start = 0, made = 0, length = 0
        cdef BatchResult part
        for part in parts:
            made += part.output.columns.length
            length += part.total
        if length != batch.columns.length:
            raise ValueError(f"results of {length} records do not fit {batch.columns.length}")
        cdef Arena arena = Arena(pool)
        cdef uint8_t *status = <uint8_t *>arena.allocate(length)
        cdef df_view *values = new_views(arena, made)
        cdef bint noted = any([(<BatchResult>part).given is not None for part in parts])
        cdef list errors = [], given = [] if noted else None
        made = 0
        for part in parts:
            memcpy(status + start, part.statuses, <size_t>part.total)
            memcpy(values + made, part.output.columns.values,
                   <size_t>part.output.columns.length * sizeof(df_view))
            errors.extend([(start + index, error) for index, error in part.errors])
            if noted:
                given.extend(part.given or [None] * part.output.columns.length)
            start += part.total
            made += part.output.columns.length
        cdef RecordBatch output = from_columns(values, made, (arena, parts))
        output.nullable = batch.nullable
        return finish_result(batch, status, arena, output, errors, given, pool)

    @staticmethod
    def merged(RecordBatch batch not None, BatchResult first not None, indices,
               BatchResult second not None, MemoryPool pool=None):
        """Make the result of a batch of which some records were processed again.

        Parameters
        ----------
        batch : RecordBatch
        first : BatchResult
            Of the whole batch.
        indices : sequence of int
            Ascending; where the records of `second` stand in the batch.
        second : BatchResult
            Takes the place of what `first` says of these records.
        pool : MemoryPool, optional

        Returns
        -------
        BatchResult
        """
        cdef Py_ssize_t i, made = 0, again = 0, place, length = batch.columns.length
        cdef Arena arena = Arena(pool)
        cdef uint8_t *status = <uint8_t *>arena.allocate(length)
        cdef df_view *values = new_views(
            arena, first.output.columns.length + second.output.columns.length
        )
        cdef BatchResult source
        cdef bint noted = first.given is not None or second.given is not None
        cdef list given = [] if noted else None
        chosen = set(indices)
        errors = [(i, error) for i, error in first.errors if i not in chosen]
        errors += [(indices[i], error) for i, error in second.errors]
        errors.sort(key=itemgetter(0))
        for i in range(length):
            source, place = first, i
            if again < second.total and indices[again] == i:
                source, place = second, again
                again += 1
            status[i] = source.statuses[place]
            if status[i] == DF_SUCCESS or status[i] == DF_SKIP:
                place = source.place_of(place)
                values[made] = source.output.columns.values[place]
                made += 1
                if noted:
                    given.append(None if source.given is None else source.given[place])
        cdef RecordBatch output = from_columns(values, made, (arena, first.output, second.output))
        output.nullable = batch.nullable
        return finish_result(batch, status, arena, output, errors, given, pool)

    def to_arrow(self, columns=("value",), *, type=None, every=False):
        """What goes on, or what became of every record, as a table of Arrow data.

        Parameters
        ----------
        columns : sequence of str
            Those of `RecordBatch.to_arrow`; ``index``: the position of the record in the input;
            ``status``: ``success``, ``filtered``, ``skip`` or ``error``; ``error``: its message.
        type : str, optional
            As of `RecordBatch.to_arrow`.
        every : bool
            A row for every record that came in, so that the table fits beside the input's; of one
            that does not go on only index, status and error are there, the rest is null.

        Returns
        -------
        Export
            Has ``__arrow_c_schema__``, ``__arrow_c_array__`` and ``__arrow_c_stream__``.

        Raises
        ------
        ValueError
            There is no such column or type.
        """
        return arrow.Export(self.output, self, every, columns, type)

    def __arrow_c_schema__(self):
        return self.to_arrow().__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema=None):
        return self.to_arrow().__arrow_c_array__(requested_schema)

    def __arrow_c_stream__(self, requested_schema=None):
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    @property
    def results(self):
        """Sequence of PluginResult: The outcome of each record, made when it is asked for."""
        return Results(self)

    @property
    def status(self):
        """numpy.ndarray of uint8, shape (n,): 0 success, 1 filtered, 2 skip, 3 error; read-only."""
        if self.total == 0:
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(
            Piece.over(self.arena, <const char *>self.statuses, self.total), np.uint8
        )

    @property
    def processed_count(self):
        """int: Records that came in."""
        return self.total

    @property
    def success_count(self):
        """int: Records that go on with a new value."""
        return self.counts[DF_SUCCESS]

    @property
    def filtered_count(self):
        """int: Records that were dropped."""
        return self.counts[DF_FILTERED]

    @property
    def skipped_count(self):
        """int: Records that go on unchanged."""
        return self.counts[DF_SKIP]

    @property
    def error_count(self):
        """int: Records that failed."""
        return self.counts[DF_ERROR]

    @property
    def throughput_per_second(self):
        """float: Records per second of `processing_time`, 0.0 if no time was measured."""
        return self.total / self.processing_time if self.processing_time > 0 else 0.0

    def __len__(self):
        return self.total

    def __repr__(self):
        return (
            f"BatchResult({counted(self.total, 'record')}: {self.counts[DF_SUCCESS]} success, "
            f"{self.counts[DF_FILTERED]} filtered, {self.counts[DF_SKIP]} skipped, "
            f"{self.counts[DF_ERROR]} failed)"
        )

    cdef PluginResult result_at(self, Py_ssize_t index):
        cdef int status = self.statuses[index]
        cdef Py_ssize_t place
        if status == DF_FILTERED:
            return PluginResult.filtered()
        if status == DF_SKIP:
            return PluginResult.skip()
        if status == DF_ERROR:
            error = self.errors[bisect_left(self.errors, index, key=itemgetter(0))][1]
            return PluginResult.error(error.message, error.code)
        place = self.place_of(index)
        return PluginResult.success(
            self.output.value_at(place), None if self.given is None else self.given[place]
        )

    cdef Py_ssize_t place_of(self, Py_ssize_t index) except -1:
        """Where the value of a record that goes on stands in the output."""
        cdef Py_ssize_t i, place = 0
        if self.places is NULL:
            self.places = <Py_ssize_t *>PyMem_RawMalloc(self.total * sizeof(Py_ssize_t))
            if self.places is NULL:
                raise MemoryError("no memory to look results up")
            for i in range(self.total):
                self.places[i] = place
                place += self.statuses[i] == DF_SUCCESS or self.statuses[i] == DF_SKIP
        return self.places[index]


@cython.final
cdef class Results:
    """A view of a `BatchResult` as a sequence of `PluginResult`."""
    cdef BatchResult result

    def __cinit__(self, BatchResult result not None):
        self.result = result

    index = Sequence.index
    count = Sequence.count

    def __len__(self):
        return self.result.total

    def __getitem__(self, index):
        cdef Py_ssize_t i
        if isinstance(index, slice):
            return [self.result.result_at(i) for i in range(*index.indices(self.result.total))]
        i = PyNumber_AsSsize_t(index, IndexError)
        if i < 0:
            i += self.result.total
        if not 0 <= i < self.result.total:
            raise IndexError(f"result {index} of a batch of {self.result.total}")
        return self.result.result_at(i)

    def __repr__(self):
        return f"<{counted(self.result.total, 'result')}: {self.result!r}>"


Sequence.register(Results)


cdef object as_plugin_error(object error, object plugin):
    """A failure as a `PluginError` with the plugin's name; its own exception stays the cause."""
    if isinstance(error, PluginError):
        if error.plugin is None and plugin is not None:
            error.plugin = plugin
        return error
    wrapped = PluginProcessingError(sentence_of(error), plugin=plugin)
    wrapped.__cause__ = error
    return wrapped


cdef int raise_wrong_type(object outcome) except -1:
    refuse_coroutine(outcome, "process")
    raise PluginProcessingError(
        f"the plugin returned {type(outcome).__name__}, not a PluginResult"
    )


cdef object record_error(object error, object plugin):
    """`as_plugin_error` for one record of a batch, without the frames that lead to the batch."""
    drop_frames(error)
    return as_plugin_error(error, plugin)


@cython.final
cdef class Gathering:
    """Collects the outcomes of a Python plugin, record by record."""

    def __cinit__(self, RecordBatch batch not None, MemoryPool pool):
        cdef Py_ssize_t length = batch.columns.length
        self.batch = batch
        self.pool = pool
        self.arena = Arena(pool)
        self.status = <uint8_t *>self.arena.allocate(length)
        self.objects = []
        self.errors = []

    cdef int add(self, PluginResult result) except -1:
        """The next record has this outcome."""
        if result.status == DF_SUCCESS:
            data = result.data
            self.objects.append(data if type(data) is bytes else bytes(data))
            if result.metadata is not None:
                if self.given is None:
                    self.given = [None] * (len(self.objects) - 1)
                self.given.append(result.metadata)
            elif self.given is not None:
                self.given.append(None)
            self.decide(DF_SUCCESS)
        elif result.status == DF_SKIP:
            self.objects.append(self.batch.value_at(self.position))
            if self.given is not None:
                self.given.append(None)
            self.decide(DF_SKIP)
        elif result.status == DF_ERROR:
            self.fail(PluginProcessingError(result.message, code=result.code))
        else:
            self.decide(DF_FILTERED)
        return 0

    cdef int fail(self, object error) except -1:
        """The next record failed."""
        self.errors.append((self.position, error))
        self.decide(DF_ERROR)
        return 0

    cdef inline void decide(self, int status) noexcept:
        self.status[self.position] = <uint8_t>status
        self.position += 1

    cdef BatchResult finish(self):
        """The result; every record must have been decided."""
        cdef RecordBatch output = from_objects(tuple(self.objects), self.pool)
        if self.batch.nullable:
            keep_nulls(self.batch, self.status, output)
        return finish_result(
            self.batch, self.status, self.arena, output, self.errors, self.given, self.pool
        )


cdef int keep_nulls(RecordBatch batch, const uint8_t *status, RecordBatch output) except -1:
    """A record without a value that was skipped has none afterwards."""
    cdef Py_ssize_t i, place = 0
    for i in range(batch.columns.length):
        if status[i] == DF_SKIP and batch.columns.values[i].data == NO_VALUE:
            set_null(output, place)
        place += status[i] == DF_SUCCESS or status[i] == DF_SKIP
    return 0


cdef BatchResult finish_result(
    RecordBatch batch, const uint8_t *status, Arena arena, RecordBatch output, list errors,
    list given, MemoryPool pool
):
    """Give the output the other columns of its records.

    What was only skipped is as it came: text is text still, and need not be looked at again.
    """
    cdef BatchResult result
    cdef Py_ssize_t i, place = 0, length = batch.columns.length
    cdef Py_ssize_t *chosen = NULL
    cdef Arena scratch
    if output.columns.length != length and batch.has_more_columns():
        scratch = Arena(pool)
        chosen = <Py_ssize_t *>scratch.allocate(length * sizeof(Py_ssize_t))
        for i in range(length):
            if status[i] == DF_SUCCESS or status[i] == DF_SKIP:
                chosen[place] = i
                place += 1
    output.carry(batch, chosen)
    if given is not None:
        old = output.metadata_column
        output.metadata_column = tuple([
            (None if old is None else old[i]) if new is None else new
            for i, new in enumerate(given)
        ])
    result = make_result(status, length, arena, output, errors, given)
    if result.counts[DF_SUCCESS] == 0:
        output.text = batch.text
    return result
