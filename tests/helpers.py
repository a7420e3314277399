"""What tests with threads, processes and deadlines have in common."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

LIMIT = 60  # seconds until what hangs fails its test


def run_threads(*functions: Callable[[], object]) -> None:
    """Run each in a thread of its own, to the end; what one raises is raised here."""
    raised = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [
        threading.Thread(target=guarded, args=(function,), daemon=True) for function in functions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread hangs"
    if raised:
        raise raised[0]


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that another thread brings about."""
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, "what was waited for did not happen"
        time.sleep(0.001)


def threads_named(prefix: str) -> list[threading.Thread]:
    """The threads that run now under such a name."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def run_script(backend: str, code: str) -> str:
    """What a script prints in a process of its own; it must end well."""
    variable = "1" if backend == "python" else "0"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tempfile.gettempdir(),  # not where an unbuilt package would be found first
        env={**os.environ, "DATAFLARE_PURE_PYTHON": variable},
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def conserved(manager: Any, name: str = "x") -> Any:
    """The metrics, once it is clear that no record is missing in them."""
    metrics = manager.get_metrics(name)
    parts = (
        metrics.successful + metrics.filtered + metrics.skipped + metrics.failed
        + metrics.dead_lettered
    )  # fmt: skip
    assert metrics.total_processed == parts
    return metrics
