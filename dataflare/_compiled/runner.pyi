from collections.abc import Callable

from dataflare._compiled.batch import RecordBatch
from dataflare._compiled.counters import PluginCounters
from dataflare._compiled.plugin import DataFlarePlugin
from dataflare._compiled.pool import MemoryPool
from dataflare._compiled.record import PluginRecord, PluginResult
from dataflare._compiled.result import BatchResult

class PluginRunner:
    enabled: bool
    def __init__(
        self, plugin: DataFlarePlugin, pool: MemoryPool, counters: PluginCounters | None = None
    ) -> None: ...
    @property
    def plugin(self) -> DataFlarePlugin: ...
    @property
    def counters(self) -> PluginCounters: ...
    def process_record(self, record: PluginRecord) -> PluginResult: ...
    def process_batch(self, batch: RecordBatch) -> BatchResult: ...
    def stop(self, afterwards: Callable[[], None] | None = None) -> None: ...
