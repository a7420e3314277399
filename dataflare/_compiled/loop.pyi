from dataflare._compiled.batch import RecordBatch
from dataflare._compiled.plugin import DataFlarePlugin
from dataflare._compiled.pool import MemoryPool
from dataflare._compiled.record import PluginRecord, PluginResult
from dataflare._compiled.result import BatchResult

def run_record(plugin: DataFlarePlugin, record: PluginRecord) -> PluginResult: ...
def run_batch(
    plugin: DataFlarePlugin,
    batch: RecordBatch,
    pool: MemoryPool | None = None,
    timeout: float | None = None,
) -> BatchResult: ...
