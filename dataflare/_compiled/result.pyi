from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dataflare._compiled.batch import RecordBatch
from dataflare._compiled.pool import MemoryPool
from dataflare._compiled.record import PluginResult
from dataflare.errors import PluginError

class BatchResult:
    processing_time: float
    @staticmethod
    def from_results(
        batch: RecordBatch,
        results: Iterable[PluginResult | Exception],
        processing_time: float = 0.0,
    ) -> BatchResult: ...
    @staticmethod
    def failed(batch: RecordBatch, error: PluginError) -> BatchResult: ...
    @staticmethod
    def joined(
        batch: RecordBatch, parts: Sequence[BatchResult], pool: MemoryPool | None = None
    ) -> BatchResult: ...
    @staticmethod
    def merged(
        batch: RecordBatch,
        first: BatchResult,
        indices: Sequence[int],
        second: BatchResult,
        pool: MemoryPool | None = None,
    ) -> BatchResult: ...
    @property
    def output(self) -> RecordBatch: ...
    @property
    def errors(self) -> list[tuple[int, PluginError]]: ...
    @property
    def results(self) -> Sequence[PluginResult]: ...
    @property
    def status(self) -> npt.NDArray[np.uint8]: ...
    @property
    def processed_count(self) -> int: ...
    @property
    def success_count(self) -> int: ...
    @property
    def filtered_count(self) -> int: ...
    @property
    def skipped_count(self) -> int: ...
    @property
    def error_count(self) -> int: ...
    @property
    def throughput_per_second(self) -> float: ...
    def __len__(self) -> int: ...
