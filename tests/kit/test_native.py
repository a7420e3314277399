"""The kit on native plugins: a crash is a verdict, and every touch outside is found."""

from pathlib import Path

import pytest
from building import EXAMPLE, build, build_like_the_example, import_from

from dataflare.plugins import Chain, Upper
from dataflare.testing import examine_plugin

HERE = Path(__file__).parent
BEHIND = "the plugin ended the process by SIGSEGV: the page behind each value and key is forbidden"
IN_FRONT = BEHIND.replace("behind", "in front of")
KEPT = "the plugin ended the process by SIGSEGV: the records of earlier calls are forbidden"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The plugins of wrong.pyx."""
    return build_like_the_example(HERE / "wrong.pyx", "wrong", tmp_path_factory.mktemp("wrong"))


WRONG = {
    "ReadsBehind": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'')"),
    "ReadsBehindKey": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'', key=b'')"),
    "WritesBehind": ("nothing_behind_is_touched", BEHIND, "PluginRecord(b'')"),
    "ReadsInFront": ("nothing_in_front_is_touched", IN_FRONT, "PluginRecord(b'a')"),
}


@pytest.mark.parametrize("name", WRONG)
def test_x(wrong, name):
    import time

    t = time.time()
    report = examine_plugin(getattr(wrong, name), examples=20)
    print(report, time.time() - t)


@pytest.mark.parametrize(
    "name",
    [
        "Right",
        "WritesInFront",
        "WritesPastReserve",
        "KeepsPointer",
        "Mutates",
        "CrashesAtNul",
        "UnknownStatus",
        "LeavesRecordsOut",
        "Hangs",
    ],
)
def test_y(wrong, name):
    import time

    t = time.time()
    report = examine_plugin(getattr(wrong, name), examples=20, timeout=2)
    print(report, time.time() - t)
