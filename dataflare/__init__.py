"""Record plugins at columnar speed.

Write what happens to one record, in Python, in Cython or as a C function; DataFlare runs it over
batches, keeps each record's failure to that record, and measures itself.
"""

import logging
import os  # not pathlib, which takes as long to import as a tenth of this package
from typing import TYPE_CHECKING

if not os.path.isfile(os.path.join(os.path.dirname(__file__), "_build_info.py")):
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
from dataflare.manager import PluginManager
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

if TYPE_CHECKING:
    from dataflare.dead_letters import DeadLetter
    from dataflare.health import HealthReport, PartHealth, Verdict
    from dataflare.metrics import PluginHistograms, PluginMetrics, StageMetrics
    from dataflare.observer import PluginStatus, SystemStatus, Totals
    from dataflare.samples import PluginSample, Sample

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

# What a manager answers with, by the module it is in: imported when first asked for, because making
# these classes takes as long as the rest of the package.
_LATER = {
    "DeadLetter": "dead_letters",
    "HealthReport": "health",
    "PartHealth": "health",
    "PluginHistograms": "metrics",
    "PluginMetrics": "metrics",
    "PluginSample": "samples",
    "PluginStatus": "observer",
    "Sample": "samples",
    "StageMetrics": "metrics",
    "SystemStatus": "observer",
    "Totals": "observer",
    "Verdict": "health",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """Directory of ``dataflare.h``, for building native plugins.

    Returns
    -------
    str
    """
    return os.path.join(os.path.dirname(__file__), "include")
