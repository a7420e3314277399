"""Runs the plugins of words.rs."""

import ctypes

import dataflare
from dataflare import NativePlugin, native
from dataflare.plugins import Chain

library = ctypes.CDLL("./libwords.so")
chain = Chain(
    NativePlugin.from_function(library.first_word, thread_safe=True),
    NativePlugin.from_capsule(native.capsule(ctypes.c_char.in_dll(library, "title_plugin"))),
)
with dataflare.PluginManager() as manager:
    manager.register_plugin("words", chain)
    result = manager.process_batch("words", ["GET /index", "put /cart", "nothing", " x"])
    print(result.output.to_pylist())
    for index, error in result.errors:
        print(f"record {index}: {error}")
