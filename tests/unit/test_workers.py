"""The threads that share a batch: parts in order, and no thread's end is the batch's."""

import ctypes
import gc
import threading
import weakref

import pytest
from helpers import LIMIT, run_threads, threads_named, wait_until

from dataflare.errors import PluginError, PluginProcessingError


@pytest.fixture
def make_workers(backend):
    """A function that makes workers, which are closed after the test."""
    made = []

    def make(size):
        made.append(backend.Workers(size))
        return made[-1]

    yield make
    for workers in made:
        workers.close()


def lost(part, error):
    """The outcome of a part whose thread died."""
    return part, str(error)


def is_worker():
    """Whether this is one of the threads, and not a caller."""
    return threading.current_thread().name.startswith("dataflare-worker")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_outcomes_are_in_order_and_each_part_is_run_once(make_workers, size) -> None:
    """Whatever the number of threads and of parts."""
    workers = make_workers(size)
    for count in (0, 1, 2, 3, 7, 100):
        seen = []
        outcomes = workers.run(lambda part, seen=seen: seen.append(part) or -part, range(count), 0)
        assert outcomes == [-part for part in range(count)]
        assert sorted(seen) == list(range(count))


def test_one_is_the_caller_alone(make_workers) -> None:
    """No thread is started."""
    workers = make_workers(1)
    assert set(workers.run(lambda _: threading.get_ident(), range(9), lost)) == {
        threading.get_ident()
    }
    assert workers.alive == 0


def test_threads_live_from_batch_to_batch(make_workers) -> None:
    """They are started once, and all of them work."""
    workers = make_workers(3)
    barrier = threading.Barrier(3)
    idents = set()
    for _ in range(5):
        found = workers.run(lambda _: barrier.wait(LIMIT) * 0 + threading.get_ident(), "abc", lost)
        assert len(set(found)) == 3
        idents |= set(found)
    assert len(idents) == 3
    assert workers.alive == 2


def test_what_the_function_raises_is_raised_at_the_end(make_workers) -> None:
    """The other parts are run first."""
    seen = []

    def run(part):
        seen.append(part)
        if part % 2:
            raise LookupError(part)
        return part

    with pytest.raises(LookupError):
        make_workers(3).run(run, range(6), lost)
    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_thread_that_dies_takes_its_part_alone(make_workers, kind) -> None:
    """The part gets an error, the others their outcome, and the next batch has a new thread."""
    workers = make_workers(2)
    died = threading.Event()

    def run(part):
        if is_worker() and not died.is_set():
            died.set()
            raise kind("told to")
        assert died.wait(LIMIT)
        return part, "done"

    outcomes = workers.run(run, range(6), lost)
    assert [part for part, _ in outcomes] == list(range(6))
    assert sorted(story for _, story in outcomes) == ["done"] * 5 + [
        f"the worker thread died: {kind.__name__}"
    ]
    wait_until(lambda: workers.alive == 0)
    assert workers.run(lambda part: part, range(6), lost) == list(range(6))
    wait_until(lambda: workers.alive == 1)


def test_the_error_of_a_dead_thread_has_its_cause(make_workers) -> None:
    """A sentence, with what ended the thread behind it, and no frames."""
    died = threading.Event()
    errors = []

    def run(part):
        if is_worker():
            died.set()
            raise SystemExit(3)
        assert died.wait(LIMIT)
        return part

    make_workers(2).run(run, range(2), lambda part, error: errors.append(error) or part)
    (error,) = errors
    assert type(error) is PluginProcessingError
    assert type(error.__cause__) is SystemExit
    assert error.__cause__.__traceback__ is None


def test_a_thread_that_is_ended_from_outside(make_workers) -> None:
    """While it works on a part: that part is lost."""
    workers = make_workers(2)
    spinning = threading.Event()
    idents = []

    def run(part):
        if not is_worker():
            assert spinning.wait(LIMIT)
            kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
            kill(ctypes.c_ulong(idents[0]), ctypes.py_object(SystemExit))
            return part, "done"
        idents.append(threading.get_ident())
        spinning.set()
        while True:  # until it strikes
            pass

    outcomes = workers.run(run, range(4), lost)
    assert [part for part, _ in outcomes] == list(range(4))
    assert sorted(story for _, story in outcomes)[:3] == ["done"] * 3
    assert "died" in sorted(story for _, story in outcomes)[3]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("step", range(1, 41))
def test_a_thread_may_end_at_any_step(make_workers, monkeypatch, step) -> None:
    """What ends it strikes between two lines: no part is lost twice, and none forgotten."""
    code = make_workers(1).run.__func__
    monkeypatch.setitem(code.__globals__, "LOOK_AFTER", 0.005)
    file = code.__code__.co_filename
    begun = threading.Event()
    steps = []

    def trace(frame, event, argument):
        if frame.f_code.co_filename != file:
            return None
        if event == "line":
            steps.append(frame.f_lineno)
            if len(steps) == step:
                raise SystemExit
        return trace

    def run(part):
        if is_worker():
            begun.set()
        else:
            begun.wait(0.05)  # so that the thread gets a part, if it lives
        return part, "done"

    workers = make_workers(2)
    threading.settrace(trace)
    try:
        outcomes = workers.run(run, range(4), lost)
        assert [part for part, _ in outcomes] == list(range(4))
        assert sum(story != "done" for _, story in outcomes) <= 1
    finally:
        threading.settrace(None)
    assert [part for part, _ in workers.run(run, range(4), lost)] == list(range(4))


def test_an_interrupt_of_the_caller_comes_through(make_workers) -> None:
    """When the parts that others have are done; what nobody has is left undone."""
    workers = make_workers(2)
    taken, release, finished = threading.Event(), threading.Event(), []

    def run(part):
        if is_worker():
            taken.set()
            assert release.wait(LIMIT)
            finished.append(part)
            return part
        assert taken.wait(LIMIT)
        threading.Timer(0.01, release.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.run(run, range(20), lost)
    assert len(finished) == 1
    assert workers.run(lambda part: part, range(3), lost) == [0, 1, 2]


def test_batches_inside_batches(make_workers) -> None:
    """From callers and from threads, with fewer threads than batches."""
    workers = make_workers(2)

    def run(depth):
        if depth == 0:
            return 1
        return sum(workers.run(run, [depth - 1] * 3, lost))

    assert workers.run(run, [3] * 3, lost) == [27] * 3


def test_callers_at_once(make_workers) -> None:
    """Each gets its own outcomes."""
    workers = make_workers(3)

    def call(number):
        for _ in range(100):
            assert workers.run(lambda part: (number, part), range(5), lost) == [
                (number, part) for part in range(5)
            ]

    run_threads(*(lambda number=number: call(number) for number in range(4)))


def test_closing_ends_the_threads(make_workers) -> None:
    """Twice is fine, and batches that come later are run by their callers."""
    before = set(threads_named("dataflare-worker"))
    workers = make_workers(4)
    workers.run(abs, range(4), lost)
    assert len(set(threads_named("dataflare-worker")) - before) == 3
    workers.close()
    workers.close()
    assert set(threads_named("dataflare-worker")) <= before
    assert workers.run(lambda _: is_worker(), range(4), lost) == [False] * 4
    assert workers.alive == 0


def test_closing_while_batches_run(make_workers) -> None:
    """From another thread, and from one of the threads: each batch is whole."""
    workers = make_workers(3)
    results = []

    def run(part):
        if part == 5:
            workers.close(wait=not is_worker())
        return part

    def call():
        for _ in range(20):
            results.append(workers.run(run, range(10), lost))

    run_threads(call, call, workers.close)
    assert results == [list(range(10))] * 40
    wait_until(lambda: workers.alive == 0)


def test_no_thread_is_started_behind_a_close(make_workers) -> None:
    """However a batch and a close meet."""
    for _ in range(30):
        workers = make_workers(3)
        run_threads(workers.close, lambda workers=workers: workers.run(abs, range(6), lost))
        wait_until(lambda workers=workers: workers.alive == 0)


def test_workers_that_nobody_knows_end(backend) -> None:
    """Their threads do not keep them alive."""
    before = set(threads_named("dataflare-worker"))
    workers = backend.Workers(3)
    workers.run(abs, range(3), lost)
    gone = weakref.ref(workers)
    del workers
    gc.collect()
    assert gone() is None
    wait_until(lambda: set(threads_named("dataflare-worker")) <= before)


def test_offers_nobody_takes_hold_nothing(make_workers) -> None:
    """While all threads are busy elsewhere, batches that are done are forgotten."""

    class Part:
        pass

    workers = make_workers(2)
    busy, release = threading.Event(), threading.Event()

    def block(part):
        if is_worker():
            busy.set()
            assert release.wait(LIMIT)
        else:
            assert busy.wait(LIMIT)
        return part

    holder = threading.Thread(target=lambda: workers.run(block, range(2), lost))
    holder.start()
    assert busy.wait(LIMIT)
    parts = [[Part() for _ in range(2)] for _ in range(500)]
    for pair in parts:
        workers.run(id, pair, lost)
    alive = [weakref.ref(part) for pair in parts for part in pair]
    del parts, pair
    gc.collect()
    assert not any(reference() for reference in alive)
    assert workers._jobs.qsize() < 500
    release.set()
    holder.join(LIMIT)
    assert not holder.is_alive()


def test_the_outcome_of_a_lost_part_gets_an_error_of_the_library(make_workers) -> None:
    """So that it can stand in a result."""
    died = threading.Event()

    def run(part):
        if is_worker():
            died.set()
            raise SystemExit
        assert died.wait(LIMIT)
        return None, part

    outcomes = make_workers(2).run(run, range(2), lambda part, error: (error, part))
    assert sum(isinstance(error, PluginError) for error, _ in outcomes) == 1
