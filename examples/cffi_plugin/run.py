"""C in a string, compiled by cffi and the C compiler, as a plugin."""

import subprocess
import sysconfig

import cffi

import dataflare
from dataflare import NativePlugin

ffi = cffi.FFI()
ffi.cdef(
    """
    typedef struct { ...; } df_record;
    typedef struct { ...; } df_emitter;
    int reversed(const df_record *record, df_emitter *out, void *state);
    """
)
ffi.set_source(
    "_reversed",
    """
    #include <dataflare.h>

    static int reversed(const df_record *record, df_emitter *out, void *state) {
        ptrdiff_t i, size = record->value.size;
        char *target = df_reserve(out, size);
        if (target == NULL) {
            return DF_ERROR;
        }
        for (i = 0; i < size; i++) {
            target[i] = record->value.data[size - 1 - i];
        }
        return df_commit(out, size);
    }
    """,
)
ffi.emit_c_code("_reversed.c")  # ffi.compile() does this and the next, with setuptools
subprocess.run(
    ["cc", "-O2", "-shared", "-fPIC", f"-I{dataflare.get_include()}",
     f"-I{sysconfig.get_path('include')}", "_reversed.c", "-o", "_reversed.so"],
    check=True,
)  # fmt: skip

from _reversed import ffi as compiled, lib  # noqa: E402, I001

# `lib.reversed` is what Python calls; its address is what DataFlare calls.
plugin = NativePlugin.from_function(compiled.addressof(lib, "reversed"), name="reversed")
with dataflare.PluginManager() as manager:
    manager.register_plugin("reversed", plugin)
    print(manager.process_batch("reversed", ["live", "drawer", ""]).output.to_pylist())
