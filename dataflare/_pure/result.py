"""What became of a batch: a column of statuses, a batch of what goes on, and the errors."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from types import CoroutineType
from typing import Any, NoReturn, SupportsIndex, cast, final, overload

import numpy as np
import numpy.typing as npt

from dataflare._later import Later
from dataflare._pure.batch import RecordBatch, Value
from dataflare._pure.pool import MemoryPool
from dataflare._pure.record import (
    ERROR,
    FILTERED,
    SKIP,
    SUCCESS,
    Metadata,
    PluginResult,
    require,
)
from dataflare.errors import (
    PluginError,
    PluginMemoryError,
    PluginProcessingError,
    coroutine_error,
    drop_frames,
    sentence_of,
)
from dataflare.units import counted

_arrow = Later("dataflare._pure.arrow")

Errors = list[tuple[int, PluginError]]
Given = list[Metadata | None]


@final
class BatchResult:
    """What became of the records of one batch, in input order.

    Attributes
    ----------
    processing_time : float
        Seconds.
    """

    # Invariants: exactly len(output) statuses are SUCCESS or SKIP; `errors` has an entry, by rising
    # index, for every ERROR; `_given` has the metadata of the results that `output` came from.

    processing_time: float
    _output: RecordBatch
    _errors: Errors
    _given: Given
    _status: npt.NDArray[np.uint8]
    _counts: list[int]
    _found_places: list[int] | None = None

    def __init__(self) -> None:
        raise TypeError(
            "results come from a plugin; an author makes one with BatchResult.from_results"
        )

    @staticmethod
    def _make(
        status: bytes | bytearray,
        output: RecordBatch,
        errors: Errors,
        given: Given,
        pool: MemoryPool | None,
    ) -> BatchResult:
        result = BatchResult.__new__(BatchResult)
        result._output = output
        result._errors = errors
        result.processing_time = 0.0
        result._given = given
        result._status = _column(status, pool)
        result._counts = np.bincount(result._status, minlength=4).tolist()
        return result

    @staticmethod
    def from_results(
        batch: RecordBatch,
        results: Iterable[PluginResult | Exception],
        processing_time: float = 0.0,
    ) -> BatchResult:
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
        require(batch, RecordBatch, "batch")
        outcomes = list(results)
        if len(outcomes) != len(batch):
            raise ValueError(f"{len(outcomes)} results do not fit {len(batch)} records")
        gathering = Gathering(batch)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, PluginResult):
                gathering.add(outcome)
            elif isinstance(outcome, Exception):
                gathering.fail(as_plugin_error(outcome, None))
            else:
                raise TypeError(
                    f"result {index} must be a PluginResult or an exception, "
                    f"not {type(outcome).__name__}"
                )
        result = gathering.finish()
        result.processing_time = processing_time
        return result

    @staticmethod
    def failed(batch: RecordBatch, error: PluginError) -> BatchResult:
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
        require(batch, RecordBatch, "batch")
        gathering = Gathering(batch)
        for _ in range(len(batch)):
            gathering.fail(error)
        return gathering.finish()

    @staticmethod
    def joined(
        batch: RecordBatch, parts: Sequence[BatchResult], pool: MemoryPool | None = None
    ) -> BatchResult:
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
        require(batch, RecordBatch, "batch")
        length = sum(map(len, parts))
        if length != len(batch):
            raise ValueError(f"results of {length} records do not fit {len(batch)}")
        gathering = Gathering(batch, pool)
        for part in parts:
            gathering.errors += [(len(gathering.status) + i, error) for i, error in part.errors]
            gathering.status += part._status.tobytes()
            gathering.values += part._output._values
            gathering.given += part._given
        return gathering.finish()

    @staticmethod
    def merged(
        batch: RecordBatch,
        first: BatchResult,
        indices: Sequence[int],
        second: BatchResult,
        pool: MemoryPool | None = None,
    ) -> BatchResult:
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
        require(batch, RecordBatch, "batch")
        sources = {i: (first, i) for i in range(len(batch))}
        sources |= {index: (second, again) for again, index in enumerate(indices)}
        gathering = Gathering(batch, pool)
        errors = {id(result): dict(result.errors) for result in (first, second)}
        for i in range(len(batch)):
            source, at = sources[i]
            status = int(source._status[at])
            if status == ERROR:
                gathering.fail(errors[id(source)][at])
                continue
            gathering.status.append(status)
            if status in (SUCCESS, SKIP):
                place = source._places[at]
                gathering.values.append(source._output._values[place])
                gathering.given.append(source._given[place])
        return gathering.finish()

    def to_arrow(
        self, columns: Sequence[str] = ("value",), *, type: str | None = None, every: bool = False
    ) -> Any:
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
        return _arrow.Export(self._output, self, every, columns, type)

    def __arrow_c_schema__(self) -> object:
        return self.to_arrow().__arrow_c_schema__()

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return cast(tuple[object, object], self.to_arrow().__arrow_c_array__(requested_schema))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    @property
    def output(self) -> RecordBatch:
        """RecordBatch: What goes on: successes with their new value, skipped records as before."""
        return self._output

    @property
    def errors(self) -> Errors:
        """list of (int, PluginError): Input position and error of every record that failed."""
        return self._errors

    @property
    def results(self) -> Sequence[PluginResult]:
        """Sequence of PluginResult: The outcome of each record, made when it is asked for."""
        return cast(Sequence[PluginResult], _Results(self))

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """numpy.ndarray of uint8, shape (n,): 0 success, 1 filtered, 2 skip, 3 error; read-only."""
        return self._status

    @property
    def processed_count(self) -> int:
        """int: Records that came in."""
        return len(self._status)

    @property
    def success_count(self) -> int:
        """int: Records that go on with a new value."""
        return self._counts[SUCCESS]

    @property
    def filtered_count(self) -> int:
        """int: Records that were dropped."""
        return self._counts[FILTERED]

    @property
    def skipped_count(self) -> int:
        """int: Records that go on unchanged."""
        return self._counts[SKIP]

    @property
    def error_count(self) -> int:
        """int: Records that failed."""
        return self._counts[ERROR]

    @property
    def throughput_per_second(self) -> float:
        """float: Records per second of `processing_time`, 0.0 if no time was measured."""
        return len(self) / self.processing_time if self.processing_time > 0 else 0.0

    def __len__(self) -> int:
        return len(self._status)

    def __repr__(self) -> str:
        return (
            f"BatchResult({counted(len(self), 'record')}: {self.success_count} success, "
            f"{self.filtered_count} filtered, {self.skipped_count} skipped, "
            f"{self.error_count} failed)"
        )

    def _result_at(self, index: int) -> PluginResult:
        status = self._status[index]
        if status == FILTERED:
            return PluginResult.filtered()
        if status == SKIP:
            return PluginResult.skip()
        if status == ERROR:
            place = bisect_left(self.errors, index, key=operator.itemgetter(0))
            error = self.errors[place][1]
            return PluginResult.error(error.message, error.code)
        place = self._places[index]
        return PluginResult.success(self.output._value_at(place), self._given[place])

    @property
    def _places(self) -> list[int]:
        """Where the value of each record that goes on stands in the output."""
        # No cached_property: in Python 3.11 it has a lock, which a fork may find held for ever.
        if self._found_places is None:
            goes_on = (self._status == SUCCESS) | (self._status == SKIP)
            self._found_places = (np.cumsum(goes_on) - 1).tolist()
        return self._found_places


@final
class _Results:
    """A view of a `BatchResult` as a sequence of `PluginResult`."""

    index = Sequence.index
    count = Sequence.count

    def __init__(self, result: BatchResult) -> None:
        self._result = result

    def __len__(self) -> int:
        return len(self._result)

    @overload
    def __getitem__(self, index: SupportsIndex) -> PluginResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[PluginResult]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PluginResult | list[PluginResult]:
        length = len(self)
        if isinstance(index, slice):
            return [self._result._result_at(i) for i in range(*index.indices(length))]
        i = operator.index(index)
        if i < 0:
            i += length
        if not 0 <= i < length:
            raise IndexError(f"result {index} of a batch of {length}")
        return self._result._result_at(i)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'result')}: {self._result!r}>"


Sequence.register(_Results)


def _column(status: bytes | bytearray, pool: MemoryPool | None) -> npt.NDArray[np.uint8]:
    """The statuses, in memory of the pool, which gets it back when nobody looks at it any more."""
    try:
        column = None if pool is None else memoryview(pool.get_buffer(len(status)))
    except PluginMemoryError:  # closed: a plugin may close its manager, and its call goes on
        column = None
    if column is None:
        return np.frombuffer(bytes(status), np.uint8)
    column[:] = status
    return np.frombuffer(column.toreadonly(), np.uint8)


def as_plugin_error(error: Exception, plugin: str | None) -> PluginError:
    """A failure as a `PluginError` with the plugin's name; its own exception stays the cause."""
    if isinstance(error, PluginError):
        if error.plugin is None:
            error.plugin = plugin
        return error
    wrapped = PluginProcessingError(sentence_of(error), plugin=plugin)
    wrapped.__cause__ = error
    return wrapped


def record_error(error: Exception, plugin: str | None) -> PluginError:
    """`as_plugin_error` for one record of a batch, without the frames that lead to the batch."""
    drop_frames(error)
    return as_plugin_error(error, plugin)


def raise_plugin_error(error: Exception, plugin: str | None) -> NoReturn:
    """Raise a failure as a `PluginError`, whose cause and context stay as they are."""
    raise as_plugin_error(error, plugin)


def wrong_type(outcome: object) -> PluginProcessingError:
    if isinstance(outcome, CoroutineType):
        return coroutine_error(outcome, "process")
    return PluginProcessingError(
        f"the plugin returned {type(outcome).__name__}, not a PluginResult"
    )


class Gathering:
    """Collects the outcomes of a plugin, record by record."""

    def __init__(self, batch: RecordBatch, pool: MemoryPool | None = None) -> None:
        self.batch = batch
        self.pool = pool
        self.status = bytearray()
        self.values: list[Value] = []
        self.given: Given = []
        self.errors: Errors = []

    def add(self, result: PluginResult) -> None:
        """The next record has this outcome."""
        if result.data is not None:
            data = result.data
            self.succeed(data if type(data) is bytes else bytes(data), result.metadata)
        elif result.is_skip:
            self.skip()
        elif result.is_filtered:
            self.drop()
        else:
            self.fail(PluginProcessingError(str(result.message), code=result.code))

    def succeed(self, data: bytes, metadata: Metadata | None = None) -> None:
        self.values.append(data)
        self.given.append(metadata)
        self.status.append(SUCCESS)

    def skip(self) -> None:
        self.values.append(self.batch._values[len(self.status)])
        self.given.append(None)
        self.status.append(SKIP)

    def drop(self) -> None:
        self.status.append(FILTERED)

    def fail(self, error: PluginError) -> None:
        self.errors.append((len(self.status), error))
        self.status.append(ERROR)

    def finish(self) -> BatchResult:
        """The result; every record must have been decided."""
        kept = [i for i, status in enumerate(self.status) if status in (SUCCESS, SKIP)]
        output = self.batch._carry(tuple(self.values), kept)
        if SUCCESS not in self.status:  # as it came: text is text still
            output._text = self.batch._text
        if any(metadata is not None for metadata in self.given):
            before = output._metadata or (None,) * len(output)
            output._metadata = tuple(
                old if new is None else new for old, new in zip(before, self.given, strict=True)
            )
        return BatchResult._make(self.status, output, self.errors, self.given, self.pool)
