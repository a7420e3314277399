"""When Ctrl-C takes effect in a run of the command line."""

import signal
from collections.abc import Iterator

import pytest

from dataflare.cli.interrupts import Interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """In charge of Ctrl-C, also where it is ignored, as in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watching = Interrupts()
    try:
        with watching.watched():
            yield watching
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_work_is_not_broken_off(interrupts: Interrupts) -> None:
    """It takes effect at the next check, and at each from then on."""
    interrupts.check()
    interrupt()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_waiting_is_broken_off(interrupts: Interrupts) -> None:
    """At once; a wait that is over protects nothing and breaks nothing off."""
    with interrupts.waiting():
        pass
    with pytest.raises(KeyboardInterrupt), interrupts.waiting():
        interrupt()


def test_nothing_is_waited_for_after_it(interrupts: Interrupts) -> None:
    """What comes before the wait ends it before it begins."""
    interrupt()
    with pytest.raises(KeyboardInterrupt), interrupts.waiting():
        pytest.fail("it waits")


@pytest.mark.parametrize("waiting", [False, True])
def test_a_second_one_does_not_wait(interrupts: Interrupts, waiting: bool) -> None:
    """Whether the first took effect or not."""
    if waiting:
        with pytest.raises(KeyboardInterrupt), interrupts.waiting():
            interrupt()
    else:
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
