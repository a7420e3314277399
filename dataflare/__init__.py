"""Record plugins at columnar speed.

Write what happens to one record, in Python, in Cython or as a C function; DataFlare runs it over
batches, keeps each record's failure to that record, and measures itself.
"""

import logging
from pathlib import Path

if not Path(__file__).with_name("_build_info.py").is_file():
    raise ImportError(
        "DataFlare is not built here: this is its source tree, so run 'pip install .' in it and "
        "start Python in another directory"
    )

from dataflare._backend import (
    BatchResult,
    Buffer,
    DataFlarePlugin,
    Histogram,
    MemoryPool,
    NativePlugin,
    PluginRecord,
    PluginResult,
    RecordBatch,
    backend,
    filter_plugin,
    map_plugin,
)
from dataflare._build_info import VERSION
from dataflare.batching import BatchAdapter, BatchPlugin
from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import (
    CircuitOpenError,
    DuplicatePluginError,
    IncompatiblePluginError,
    PluginConfigurationError,
    PluginDisabledError,
    PluginError,
    PluginInitializationError,
    PluginMemoryError,
    PluginProcessingError,
    PluginSerializationError,
    PluginTimeoutError,
    UnhealthyError,
    UnknownPluginError,
)
from dataflare.health import HealthReport, PartHealth, Verdict
from dataflare.manager import PluginManager
from dataflare.metrics import PluginHistograms, PluginMetrics, StageMetrics
from dataflare.monitor import PluginSample, PluginStatus, Sample, SystemStatus, Totals
from dataflare.recovery import DeadLetter
from dataflare.types import (
    API_VERSION,
    BufferSize,
    CircuitState,
    ClassStats,
    Loan,
    PluginInfo,
    PluginState,
    PluginType,
    PoolStats,
)

__all__ = [
    "API_VERSION",
    "BatchAdapter",
    "BatchConfig",
    "BatchPlugin",
    "BatchResult",
    "Buffer",
    "BufferSize",
    "CircuitOpenError",
    "CircuitState",
    "ClassStats",
    "DataFlarePlugin",
    "DeadLetter",
    "DuplicatePluginError",
    "FailureRecoveryConfig",
    "HealthReport",
    "Histogram",
    "IncompatiblePluginError",
    "Loan",
    "MemoryPool",
    "MemoryPoolConfig",
    "NativePlugin",
    "PartHealth",
    "PluginConfigurationError",
    "PluginDisabledError",
    "PluginError",
    "PluginHistograms",
    "PluginInfo",
    "PluginInitializationError",
    "PluginManager",
    "PluginManagerConfig",
    "PluginMemoryError",
    "PluginMetrics",
    "PluginProcessingError",
    "PluginRecord",
    "PluginResult",
    "PluginSample",
    "PluginSerializationError",
    "PluginState",
    "PluginStatus",
    "PluginTimeoutError",
    "PluginType",
    "PoolStats",
    "RecordBatch",
    "Sample",
    "StageMetrics",
    "SystemStatus",
    "Totals",
    "UnhealthyError",
    "UnknownPluginError",
    "Verdict",
    "__version__",
    "backend",
    "filter_plugin",
    "get_include",
    "map_plugin",
]

__version__ = VERSION

logging.getLogger("dataflare").addHandler(logging.NullHandler())


def get_include() -> str:
    """Directory of ``dataflare.h``, for building native plugins.

    Returns
    -------
    str
    """
    return str(Path(__file__).with_name("include"))
