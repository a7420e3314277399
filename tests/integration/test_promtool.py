"""What Prometheus's own checker says; only with ``-m promtool``, for it needs promtool."""

import subprocess
import urllib.request

import observed
import pytest

pytestmark = pytest.mark.promtool


def test_promtool_finds_nothing(backend) -> None:
    """No error and no lint, in what is served of a manager that has everything to show."""
    with backend.PluginManager(observed.CONFIG) as manager:
        observed.fill(backend, manager)
        observed.break_circuit(manager)
        with (
            backend.serve_metrics(manager, 0) as server,
            urllib.request.urlopen(server.url) as answer,
        ):
            text = answer.read()
    assert b"dataflare_records_total{" in text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
