"""The only switch between the compiled backend and the pure one.

Which one runs is declared, never guessed: by how the package was built, or by the environment
variable ``DATAFLARE_PURE_PYTHON=1``. A compiled module that is missing is an error.
"""

import os
from typing import TYPE_CHECKING

from dataflare._build_info import COMPILED
from dataflare._later import Later

__all__ = [
    "BatchResult",
    "Buffer",
    "Chain",
    "Contains",
    "DataFlarePlugin",
    "FilterPlugin",
    "Histogram",
    "JsonField",
    "Lower",
    "MapPlugin",
    "MemoryPool",
    "NativePlugin",
    "PluginCounters",
    "PluginRecord",
    "PluginResult",
    "PluginRunner",
    "RecordBatch",
    "Regex",
    "Replace",
    "StartsWith",
    "Upper",
    "arrow",
    "as_member",
    "backend",
    "c_functions",
    "filter_plugin",
    "is_inside",
    "let_strings_name_plugins",
    "map_plugin",
    "new_capsule",
    "plugin_name",
    "run_batch",
    "run_record",
    "set_state",
    "simd_level",
    "simd_levels",
    "undefined",
]

backend = "cython" if COMPILED and os.environ.get("DATAFLARE_PURE_PYTHON") != "1" else "python"
"""``"cython"`` or ``"python"``: what runs."""

if TYPE_CHECKING:
    from dataflare._compiled import arrow
else:
    arrow = Later(f"dataflare._{'compiled' if backend == 'cython' else 'pure'}.arrow")

if TYPE_CHECKING or backend == "cython":
    try:
        from dataflare._compiled.batch import RecordBatch
        from dataflare._compiled.builtin import (
            Contains,
            JsonField,
            Lower,
            Regex,
            Replace,
            StartsWith,
            Upper,
            simd_level,
            simd_levels,
        )
        from dataflare._compiled.chain import Chain, as_member, let_strings_name_plugins
        from dataflare._compiled.counters import Histogram, PluginCounters
        from dataflare._compiled.functions import (
            FilterPlugin,
            MapPlugin,
            filter_plugin,
            map_plugin,
        )
        from dataflare._compiled.loop import run_batch, run_record
        from dataflare._compiled.output import plugin_name
        from dataflare._compiled.plugin import (
            DataFlarePlugin,
            NativePlugin,
            c_functions,
            new_capsule,
            set_state,
            undefined,
        )
        from dataflare._compiled.pool import Buffer, MemoryPool
        from dataflare._compiled.record import PluginRecord, PluginResult
        from dataflare._compiled.result import BatchResult
        from dataflare._compiled.runner import PluginRunner, is_inside
    except ImportError as error:
        raise ImportError(
            f"DataFlare's compiled backend cannot be loaded ({error}): install the package again, "
            f"or set DATAFLARE_PURE_PYTHON=1 to do without it"
        ) from error
else:
    from dataflare._pure.batch import RecordBatch
    from dataflare._pure.builtin import (
        Contains,
        JsonField,
        Lower,
        Regex,
        Replace,
        StartsWith,
        Upper,
        simd_level,
        simd_levels,
    )
    from dataflare._pure.chain import Chain, as_member, let_strings_name_plugins
    from dataflare._pure.counters import Histogram, PluginCounters
    from dataflare._pure.loop import run_batch, run_record
    from dataflare._pure.plugin import (
        DataFlarePlugin,
        FilterPlugin,
        MapPlugin,
        NativePlugin,
        c_functions,
        filter_plugin,
        map_plugin,
        new_capsule,
        plugin_name,
        set_state,
        undefined,
    )
    from dataflare._pure.pool import Buffer, MemoryPool
    from dataflare._pure.record import PluginRecord, PluginResult
    from dataflare._pure.result import BatchResult
    from dataflare._pure.runner import PluginRunner, is_inside
