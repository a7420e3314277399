"""The event that a signal's handler may set."""

import threading

from helpers import LIMIT, run_threads

from dataflare._events import Event


def test_all_who_wait_go_on() -> None:
    """And who comes later does not wait."""
    event, inside = Event(), threading.Barrier(4)
    seen = []

    def wait():
        inside.wait(LIMIT)
        seen.append(event.wait(LIMIT))

    def set_it():
        inside.wait(LIMIT)
        event.set()

    run_threads(wait, wait, wait, set_it)
    assert seen == [True] * 3
    assert event.wait(0)


def test_one_that_is_not_set() -> None:
    """Waits as long as it may."""
    assert not Event().wait(0.001)


def test_set_inside_of_set_and_of_wait() -> None:
    """As by a handler: it may be set any number of times."""
    event = Event()
    for _ in range(3):
        event.set()
    assert [event.wait(LIMIT) for _ in range(5)] == [True] * 5
