"""Runs the plugins of words.c: functions by their pointers, and one with a descriptor."""

import ctypes

import dataflare
from dataflare import NativePlugin, native
from dataflare.plugins import Chain

library = ctypes.CDLL("./libwords.so")
chain = Chain(
    NativePlugin.from_function(
        library.longer_than, state=ctypes.c_ssize_t(4), thread_safe=True, name="longer than 4"
    ),
    NativePlugin.from_function(library.first_word, thread_safe=True),
    NativePlugin.from_capsule(
        native.capsule(ctypes.c_char.in_dll(library, "prefix_plugin")), config="> "
    ),
)
with dataflare.PluginManager() as manager:
    manager.register_plugin("words", chain)
    result = manager.process_batch("words", ["GET /index", "x y", "PUT /cart", "nothing"])
    print(result.output.to_pylist())
    print(*[f"record {index}: {error}" for index, error in result.errors])
