"""Run a shell line and print as JSON what it took: wall and CPU seconds, peak resident bytes.

A process of its own, and a small one: on Linux a program that is started counts the memory of the
process that starts it as its own peak.
"""

import json
import os
import subprocess
import sys
import time

KILOBYTE = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss

started = time.perf_counter()
process = subprocess.Popen(["/bin/sh", "-c", sys.argv[1]])
_, status, usage = os.wait4(process.pid, 0)
elapsed = time.perf_counter() - started
if status != 0:
    sys.exit(f"failed: {sys.argv[1]}")
print(json.dumps([elapsed, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * KILOBYTE]))
