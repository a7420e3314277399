"""Work in a child: whatever it does, there is an answer in time, and nothing is left of it."""

import _thread
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from dataflare.testing.isolation import Death, in_child

PATIENCE = 10.0  # seconds that nothing may take, by far
LONG = 30.0  # seconds that nobody waits for


@pytest.fixture
def at_once():
    """The test takes next to no time."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENCE


@pytest.fixture
def life():
    """A descriptor to keep open for life; what says if all who have it are gone, or one wrote."""
    reader, writer = os.pipe()

    def hears():
        return select.select([reader], [], [], PATIENCE)[0] and os.read(reader, 1)

    def is_over():
        os.close(writer)
        return hears() == b""

    yield writer, is_over, hears
    os.close(reader)


def close_all_but(kept):
    """Close what the kit talks through, as a daemon does."""
    os.closerange(3, kept)
    os.closerange(kept + 1, 1024)


def crash():
    """Die of a signal."""
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.usefixtures("at_once")
def test_a_child_that_closes_everything_has_no_more_time(life):
    """The end of the pipe is not that of the child."""
    kept, is_over, _ = life

    def work():
        close_all_but(kept)
        time.sleep(LONG)

    assert in_child(work, 0.3) == Death("the plugin did not come to an end within 0.3 s", hung=True)
    assert is_over()


@pytest.mark.usefixtures("at_once")
def test_ctrl_c_ends_the_child(life):
    """Even if it has closed everything."""
    kept, is_over, _ = life
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background

    def work():
        close_all_but(kept)
        time.sleep(LONG)

    threading.Timer(0.3, _thread.interrupt_main).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_child(work, LONG)
    finally:
        signal.signal(signal.SIGINT, before)
    assert is_over()


@pytest.mark.parametrize(
    ("end", "answer"),
    [
        (crash, Death("the plugin ended the process by SIGSEGV")),
        (lambda: time.sleep(LONG), Death("the plugin did not come to an end within 1 s", True)),
        (lambda: 7, 7),
    ],
    ids=["crash", "hang", "answer"],
)
@pytest.mark.usefixtures("at_once")
def test_what_a_child_started_ends_with_it(life, end, answer):
    """Though it holds the pipe, the answer is there as soon as the child has ended."""
    kept, is_over, _ = life

    def work():
        subprocess.Popen(["sleep", str(LONG)], pass_fds=[kept])
        if os.fork() == 0:
            time.sleep(LONG)
            os._exit(0)
        return end()

    assert in_child(work, 1) == answer
    assert is_over()


def test_a_child_that_becomes_two_answers_once():
    """The one that was asked, and not the one that is quicker."""

    def work():
        if os.fork() == 0:
            return "another"
        time.sleep(0.2)
        return "asked"

    assert in_child(work, LONG) == "asked"


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="there are no signals for real time")
def test_a_signal_without_a_name():
    """Has a number."""
    number = signal.SIGRTMIN + 6
    death = in_child(lambda: os.kill(os.getpid(), number), LONG)
    assert death == Death(f"the plugin ended the process by signal {number}")


@pytest.mark.parametrize("timeout", [float("inf"), 1e20])
def test_all_the_time_in_the_world(timeout):
    """Is a time like any other."""
    assert in_child(lambda: 1, timeout) == 1


def test_nobody_can_wait():
    """That signal ignored, the system does not say how children end; answers come all the same."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert in_child(lambda: 1, LONG) == 1
        assert in_child(crash, LONG) == Death(
            "the plugin ended the process, and the system does not say how"
        )
    finally:
        signal.signal(signal.SIGCHLD, before)


def run(code, folder, streams=""):
    """Run some lines as a process, with streams as the shell says."""
    (folder / "code.py").write_text(
        "import os, sys, time\nfrom dataflare.testing.isolation import in_child\n" + code
    )
    command = f"exec {sys.executable} code.py {streams}"
    return subprocess.run(
        ["sh", "-c", command], check=False, cwd=folder, capture_output=True, text=True
    )


def test_what_a_child_prints_is_not_output(tmp_path):
    """It is a complaint, whatever it is written to."""
    code = (
        "def work():\n"
        "    print('one', flush=True)\n"
        "    os.write(1, b'two\\n'), os.write(2, b'three\\n')\n"
        "    print('four')\n"
        "in_child(work, 30)\n"
    )
    done = run(code, tmp_path)
    assert (done.stdout, done.stderr) == ("", "one\ntwo\nthree\nfour\n")


def test_the_last_words_of_a_child():
    """Are with what ended it."""

    def work():
        os.write(1, b"x" * 10_000 + b"\nthat was all\n")
        os._exit(3)

    assert in_child(work, LONG) == Death("the plugin ended the process by exit(3) (that was all)")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_standard_streams(closed, tmp_path):
    """What the child writes is lost, and no descriptor of the kit is taken for one of them."""
    code = (
        "def work():\n"
        "    os.write(1, b'out'), os.write(2, b'err')\n"
        "    return 7\n"
        "sys.exit(in_child(work, 30))\n"
    )
    assert run(code, tmp_path, closed).returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="only there a child can be told")
@pytest.mark.usefixtures("at_once")
def test_a_child_ends_with_who_asks(life, tmp_path):
    """However that ends: nobody else would end the child."""
    kept, is_over, hears = life
    code = (
        "import os, time\n"
        "from dataflare.testing.isolation import in_child\n"
        f"in_child(lambda: (os.write({kept}, b'.'), time.sleep(30)), 30)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, pass_fds=[kept], cwd=tmp_path) as parent:
        assert hears() == b"."
        parent.kill()
    assert is_over()
